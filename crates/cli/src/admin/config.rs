//! `kiln admin config`: settings of all servers of a kind, changed while they run.

use crate::failure::Outcome;
use crate::output;
use crate::remote::Remote;
use clap::Subcommand;
use kiln_manager_link::ManagerClient;
use kiln_rpc::v1;
use kiln_types::{Code, Error, Result, SettingChange};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The settings, what they are set to, and what counts where nothing else is configured
    Get {
        /// Only this one [default: all]
        name: Option<String>,
    },
    /// Set a setting for all servers of its kind: it counts within a heartbeat, over their own configuration
    Set {
        /// Its name, for example storage.recovery.rate
        name: String,
        /// Its value, as in a configuration file
        value: String,
    },
    /// Take a setting back: each server's own configuration counts again
    Reset {
        /// Its name
        name: String,
    },
    /// Who changed what, and when
    History {
        /// Only this one [default: all]
        name: Option<String>,
    },
    /// The manager's own configuration
    Show,
}

/// A setting as it is shown.
#[derive(Serialize)]
struct View {
    name: String,
    value: Option<String>,
    default: String,
}

pub(super) async fn run(remote: &Remote, command: &Command, json: bool) -> Outcome {
    match command {
        Command::Get { name } => {
            let set: BTreeMap<_, _> = list(remote).await?.settings.into_iter().collect();
            let all = kiln_config::settings().into_iter();
            let view = |(name, default): (String, String)| View {
                value: set.get(&name).cloned(),
                name,
                default,
            };
            let views = only(name.as_deref(), all.map(view).collect(), |view| &view.name)?;
            show(json, &views, || values(&views))
        }
        Command::Set { name, value } => {
            // Here first: it says what there is without a way to the manager.
            kiln_config::check_setting(name, value)?;
            change(remote, name, Some(value)).await?;
            Ok(output::print(&format!("{name} is {value} on all servers\n"))?)
        }
        Command::Reset { name } => {
            change(remote, name, None).await?;
            Ok(output::print(&format!("{name} is what each server's configuration says\n"))?)
        }
        Command::History { name } => {
            let changes = list(remote).await?.changes.into_iter().map(SettingChange::from);
            let wanted = |change: &SettingChange| name.as_ref().is_none_or(|n| *n == change.name);
            let changes: Vec<_> = changes.filter(wanted).collect();
            show(json, &changes, || history(&changes))
        }
        Command::Show => {
            let get = async |mut m: ManagerClient| m.get_config(v1::Empty {}).await;
            Ok(output::print(&remote.manager("configuration", get).await?.toml)?)
        }
    }
}

async fn list(remote: &Remote) -> Result<v1::SettingList> {
    let list = async |mut m: ManagerClient| m.list_settings(v1::Empty {}).await;
    remote.manager("settings", list).await
}

async fn change(remote: &Remote, name: &str, value: Option<&String>) -> Result<()> {
    let request = v1::SetSettingRequest { name: name.into(), value: value.cloned() };
    let set = async |mut m: ManagerClient| m.set_setting(request).await;
    remote.manager("new setting", set).await.map(drop)
}

fn only<T>(name: Option<&str>, all: Vec<T>, of: impl Fn(&T) -> &String) -> Result<Vec<T>> {
    let Some(name) = name else { return Ok(all) };
    let found: Vec<_> = all.into_iter().filter(|one| of(one) == name).collect();
    match found.is_empty() {
        true => Err(Error::new(Code::NotFound, format!("there is no setting '{name}'"))
            .with_hint("'kiln admin config get' lists all")),
        false => Ok(found),
    }
}

fn show(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Outcome {
    match json {
        true => output::print_json(value)?,
        false => output::print(&text())?,
    }
    Ok(())
}

fn values(views: &[View]) -> String {
    let row = |view: &View| {
        let value = view.value.clone().unwrap_or_else(|| "-".into());
        vec![view.name.clone(), value, view.default.clone()]
    };
    output::table(&["NAME", "SET TO", "DEFAULT"], &[], views.iter().map(row).collect())
}

fn history(changes: &[SettingChange]) -> String {
    let row = |change: &SettingChange| {
        let nanoseconds = u64::try_from(change.at.0).unwrap_or_default();
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        vec![
            humantime::format_rfc3339_seconds(at).to_string(),
            change.by.clone(),
            change.name.clone(),
            shown(&change.before),
            shown(&change.after),
        ]
    };
    let header = ["TIME", "BY", "NAME", "BEFORE", "AFTER"];
    output::table(&header, &[], changes.iter().map(row).collect())
}
