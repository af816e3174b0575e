//! `kiln quota`.

use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use clap::{Args as ClapArgs, Subcommand};
use kiln_types::{Account, Code, Context, Error, Quota, QuotaLimits, Result};
use serde::Serialize;
use std::ffi::OsString;
use std::process::Command;

/// Limit what directories, users and groups may have; show what they have
///
/// Bytes are the lengths of files, holes included; inodes are everything that has attributes. A directory's quota
/// is for everything below it, but for what another directory with a quota is nearer to.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Set limits (root only); one that is not named stays as it is
    Set {
        #[command(flatten)]
        whose: Whose,

        #[command(flatten)]
        limits: Limits,
    },
    /// Take a quota away (root only)
    Clear {
        #[command(flatten)]
        whose: Whose,
    },
    /// Show limits and usage: of a path, those that it counts for
    Show {
        #[command(flatten)]
        whose: Whose,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all quotas; who is not root sees those of themselves and their groups
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
struct Limits {
    /// Bytes in files, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = kiln_config::parse_size)]
    bytes: Option<u64>,

    /// Files, directories and other inodes
    #[arg(long, value_name = "COUNT")]
    inodes: Option<u64>,
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
struct Whose {
    /// A directory
    #[arg(value_name = "KILN_PATH")]
    path: Option<OsString>,

    /// A user, wherever their files are
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,

    /// A group, wherever its files are
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
}

/// A quota in JSON.
#[derive(Serialize)]
struct Shown {
    kind: &'static str,
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    bytes: u64,
    bytes_limit: Option<u64>,
    inodes: u64,
    inodes_limit: Option<u64>,
    counting: bool,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    remote::run(place, async |remote| {
        let (client, caller) = (&remote.client, &remote.caller);
        match &args.command {
            Action::Set { whose, limits: Limits { bytes, inodes } } => {
                let account = whose.account(remote).await?;
                let limits = QuotaLimits { bytes: *bytes, inodes: *inodes };
                client.set_quota(caller, account, limits).await.context(whose)?;
            }
            Action::Clear { whose } => {
                let account = whose.account(remote).await?;
                client.clear_quota(caller, account).await.context(whose)?;
            }
            Action::Show { whose, json } => {
                let account = whose.account(remote).await?;
                let quota = client.quota(caller, account).await.context(whose)?;
                match json {
                    true => output::print_json(&Shown::of(&quota))?,
                    false => print_table(&[quota])?,
                }
            }
            Action::List { json } => {
                let quotas = client.quotas(caller).await?;
                match json {
                    true => {
                        output::print_json(&quotas.iter().map(Shown::of).collect::<Vec<_>>())?;
                    }
                    false => print_table(&quotas)?,
                }
            }
        }
        Ok(())
    })
}

impl Whose {
    async fn account(&self, remote: &Remote) -> Outcome<Account> {
        if let Some(user) = &self.user {
            return Ok(Account::User(number_of("passwd", "user", user)?));
        }
        if let Some(group) = &self.group {
            return Ok(Account::Group(number_of("group", "group", group)?));
        }
        let path = KilnPath::parse(self.path.as_deref().unwrap_or_default())?;
        Ok(Account::Directory(remote.look(&path, true).await?.inode))
    }
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, &self.user, &self.group) {
            (Some(path), ..) => write!(f, "{}", path.display()),
            (_, Some(user), _) => write!(f, "user {user}"),
            (.., group) => write!(f, "group {}", group.as_deref().unwrap_or_default()),
        }
    }
}

/// The number of a user or group of this machine, or the number itself.
fn number_of(database: &str, what: &str, name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let line = entry(database, name)?;
    let number = line.split(':').nth(2).and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        Error::new(Code::NotFound, format!("no {what} '{name}' is known on this machine"))
            .with_hint("give the number")
    })
}

/// The name of a user or group of this machine, or the number.
pub(crate) fn name_of(database: &str, number: u32) -> String {
    let line = entry(database, &number.to_string()).unwrap_or_default();
    let name = line.split(':').next().filter(|name| !name.is_empty());
    name.map_or_else(|| number.to_string(), str::to_owned)
}

/// A line of /etc/passwd or /etc/group, wherever the machine keeps them; empty when there is none.
fn entry(database: &str, key: &str) -> Result<String> {
    let output = Command::new("getent").args([database, "--", key]).output();
    let output = output.context(format_args!("getent {database} {key}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Shown {
    fn of(quota: &Quota) -> Self {
        let (kind, id) = match quota.account {
            Account::Directory(inode) => ("directory", inode.0),
            Account::User(uid) => ("user", uid.into()),
            Account::Group(gid) => ("group", gid.into()),
        };
        let path = String::from_utf8_lossy(&quota.path).into_owned();
        Self {
            kind,
            id,
            path: (!path.is_empty()).then_some(path),
            bytes: quota.usage.bytes,
            bytes_limit: quota.limits.bytes,
            inodes: quota.usage.inodes,
            inodes_limit: quota.limits.inodes,
            counting: quota.counting,
        }
    }
}

fn print_table(quotas: &[Quota]) -> Result<()> {
    let header = ["OF", "BYTES", "LIMIT", "INODES", "LIMIT", "STATE"];
    let rows = quotas.iter().map(row).collect();
    output::print(&output::table(&header, &[1, 2, 3, 4], rows))
}

fn row(quota: &Quota) -> Vec<String> {
    let whose = match quota.account {
        Account::Directory(_) if !quota.path.is_empty() => {
            format!("kiln:{}", quota.path.escape_ascii())
        }
        Account::Directory(inode) => format!("directory {inode}"),
        Account::User(uid) => format!("user {}", name_of("passwd", uid)),
        Account::Group(gid) => format!("group {}", name_of("group", gid)),
    };
    let none = || "none".to_owned();
    vec![
        whose,
        output::bytes(quota.usage.bytes),
        quota.limits.bytes.map_or_else(none, output::bytes),
        quota.usage.inodes.to_string(),
        quota.limits.inodes.map_or_else(none, |limit| limit.to_string()),
        if quota.counting { "counting" } else { "" }.to_owned(),
    ]
}
