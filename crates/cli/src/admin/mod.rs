//! `kiln admin`: what an operator looks at.

mod chains;
mod config;
mod meta;
mod operations;
mod tables;

use crate::check;
use crate::failure::Outcome;
use crate::output;
use crate::place::Place;
use crate::remote::{self, Remote};
use clap::Subcommand;
use kiln_manager_link::ManagerClient;
use kiln_rpc::v1;
use kiln_types::{
    Chain, ChainId, Code, Context, Credential, CredentialLimits, CredentialRecord, Error,
    LocalState, PublicState, Result, RoutingInfo, ServiceKind, Target,
};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Show(Show),
    #[command(flatten)]
    Operate(operations::Command),
    /// The chain tables, over which files are spread
    ChainTable {
        #[command(subcommand)]
        command: Option<operations::TableCommand>,
    },
    /// Look for losses, replicas that differ, leaks and servers that are missing, and say what to do
    ///
    /// Every stored chunk is compared with the metadata and with its other replicas: no acknowledged byte
    /// of a file may be missing, and every chunk must belong to a file. The cluster may be in use meanwhile.
    /// Exits with 0 when nothing is wrong, 1 when something is, 2 when that could not be found out.
    Check(check::Args),
    /// Settings of all servers of a kind, changed while they run [default: get]
    Config {
        #[command(subcommand)]
        command: Option<config::Command>,
    },
    /// The metadata's store itself: check it, move it to another engine
    ///
    /// These commands open the store that a metadata server's configuration names; that server is stopped before.
    Meta {
        #[command(subcommand)]
        command: meta::Command,
    },
    /// Credentials of clients
    Credential {
        #[command(subcommand)]
        command: CredentialCommand,
    },
}

#[derive(Debug, Subcommand)]
enum Show {
    /// The servers: kind, address, whether their lease holds
    Nodes,
    /// The targets: their chain, server, disk and states
    Targets,
    /// The chains: their version and members, head first, and how far members are filled that were away
    Chains,
}

#[derive(Debug, Subcommand)]
enum CredentialCommand {
    /// Make a credential and write it to a new file, mode 0600
    Create {
        /// Its name: letters, digits, '.', '_' or '-'; a name is never used again
        name: String,
        /// The file that it is written to
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// A user id that its holder may act as; may be given several times [default: any]
        #[arg(long = "uid", value_name = "UID")]
        uids: Vec<u32>,
        /// Its holder may not act as root
        #[arg(long)]
        no_root: bool,
        /// The directory that its holder may not leave
        #[arg(long, value_name = "DIR", default_value = "/")]
        subtree: String,
        /// Its holder may run operator commands
        #[arg(long)]
        operator: bool,
    },
    /// Make a credential worthless, for good
    Revoke {
        /// Its name
        name: String,
    },
    /// The credentials that there are
    List,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    match &args.command {
        Command::Show(what) => {
            remote::run(place, async |remote| show_what(args, what, remote).await)
        }
        Command::Operate(command) => {
            remote::run(place, async |remote| operations::run(args, command, remote).await)
        }
        Command::ChainTable { command } => remote::run(place, async |remote| match command {
            Some(command) => operations::change_table(remote, command).await,
            None => {
                let routing = remote.client.routing();
                let views: Vec<_> = tables::views(&routing).collect();
                show(args, &views, tables::table(&views))
            }
        }),
        Command::Check(check) => check::run(place, check, args.json),
        Command::Config { command } => {
            let command = command.as_ref().unwrap_or(&config::Command::Get { name: None });
            remote::run(place, async |remote| config::run(remote, command, args.json).await)
        }
        Command::Meta { command } => meta::run(place, command, args.json),
        Command::Credential { command } => {
            remote::run(place, async |remote| credential(args, remote, command).await)
        }
    }
}

async fn show_what(args: &Args, what: &Show, remote: &Remote) -> Outcome {
    let routing = remote.client.routing();
    let routing = routing.as_ref();
    match what {
        Show::Nodes => show(args, &routing.nodes.values().collect::<Vec<_>>(), nodes(routing)),
        Show::Targets => {
            show(args, &routing.targets.values().collect::<Vec<_>>(), targets(routing))
        }
        Show::Chains => {
            let views = chains::views(remote, routing).await?;
            show(args, &views, chains::table(routing, &views))
        }
    }
}

fn show(args: &Args, value: &impl Serialize, text: String) -> Outcome {
    match args.json {
        true => output::print_json(value)?,
        false => output::print(&text)?,
    }
    Ok(())
}

fn nodes(routing: &RoutingInfo) -> String {
    let rows = routing.nodes.values().map(|node| {
        let tags: Vec<_> = node.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = if node.alive { "alive" } else { "dead" };
        let [id, kind] = [node.id.to_string(), node.kind.to_string()];
        vec![id, kind, state.into(), node.address.clone(), tags.join(" ")]
    });
    output::table(&["NODE", "KIND", "STATE", "ADDRESS", "TAGS"], &[0], rows.collect())
}

fn targets(routing: &RoutingInfo) -> String {
    let rows = routing.targets.values().map(|target| {
        let state = routing.chains.get(&target.chain).and_then(|c| c.state_of(target.id));
        vec![
            target.id.to_string(),
            target.chain.to_string(),
            target.node.to_string(),
            state.map_or_else(|| "-".into(), |state| state.to_string()),
            target.local.to_string(),
            target.disk.to_string(),
        ]
    });
    let header = ["TARGET", "CHAIN", "NODE", "STATE", "ITSELF", "DISK"];
    output::table(&header, &[0, 1, 2], rows.collect())
}

/// Why files cannot be made, read or written yet.
pub(crate) fn unusable(routing: &RoutingInfo) -> Option<String> {
    let alive = |kind| routing.nodes.values().any(|node| node.kind == kind && node.alive);
    if !alive(ServiceKind::Meta) {
        return Some("no metadata server is alive".into());
    }
    if routing.tables.is_empty() {
        return Some("too few storage servers have registered: no file can be made".into());
    }
    let stuck = |chain: &&Chain| chain.serving().count() < chain.min_serving as usize;
    match routing.chains.values().filter(stuck).count() {
        0 => None,
        count => Some(format!("{count} of {} chains take no writes", routing.chains.len())),
    }
}

/// What is not as it should be.
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// What keeps a cluster from being whole, worst first.
pub(crate) fn problems(routing: &RoutingInfo) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut problem = |what: String, why: String| found.push(Problem { what, why });
    if let Some(why) = unusable(routing) {
        problem("cluster".into(), why);
    }
    for chain in routing.chains.values() {
        if let Some(why) = chain_problem(chain) {
            problem(format!("chain {}", chain.id), why);
        }
    }
    for node in routing.nodes.values().filter(|node| !node.alive) {
        problem(format!("{} {}", node.kind, node.id), format!("not heard from ({})", node.address));
    }
    // One that is online and does not serve is told with its chain; one that moves is no trouble.
    let whole = |chain: &ChainId| routing.chains.get(chain).is_some_and(|c| !c.is_degraded());
    let out = |t: &&Target| t.local == LocalState::Offline && !whole(&t.chain);
    for target in routing.targets.values().filter(out) {
        problem(format!("target {}", target.id), format!("says of itself: {}", target.local));
    }
    found
}

fn chain_problem(chain: &Chain) -> Option<String> {
    let serving = chain.serving().count();
    if !chain.is_degraded() {
        return None;
    }
    let others = chain.members.iter().filter(|member| member.state != PublicState::Serving);
    let others: Vec<_> =
        others.map(|member| format!("target {} is {}", member.target, member.state)).collect();
    let effect = match serving {
        0 => "it can be neither read nor written",
        _ if serving < chain.min_serving as usize => "it can be read and not be written",
        _ => "it has fewer copies than it should",
    };
    Some(format!("{effect}: {}", others.join(", ")))
}

async fn credential(args: &Args, remote: &Remote, command: &CredentialCommand) -> Outcome {
    match command {
        CredentialCommand::Create { name, output: file, uids, no_root, subtree, operator } => {
            if file.symlink_metadata().is_ok() {
                let taken = format!("{} exists already", file.display());
                return Err(Error::new(Code::Exists, taken).with_hint("name a new file").into());
            }
            let limits = CredentialLimits {
                uids: (!uids.is_empty()).then(|| uids.clone()),
                root: !no_root,
                subtree: subtree.clone(),
                operator: *operator,
            };
            let limits = Some(v1::CredentialLimits::from(&limits));
            let request = v1::CreateCredentialRequest { name: name.clone(), limits };
            let create = async |mut m: ManagerClient| m.create_credential(request).await;
            let made = remote.manager("new credential", create).await?;
            kiln_config::create_credential(file, &Credential::try_from(made)?)?;
            Ok(output::print(&format!("wrote the credential '{name}' to {}\n", file.display()))?)
        }
        CredentialCommand::Revoke { name } => {
            let request = v1::RevokeCredentialRequest { name: name.clone() };
            let revoke = async |mut m: ManagerClient| m.revoke_credential(request).await;
            remote.manager("revocation", revoke).await?;
            Ok(output::print(&format!("the credential '{name}' opens nothing any more\n"))?)
        }
        CredentialCommand::List => {
            let list = async |mut m: ManagerClient| m.list_credentials(v1::Empty {}).await;
            let list = remote.manager("credentials", list).await?;
            let records = list.credentials.into_iter().map(CredentialRecord::try_from);
            let records = records.collect::<Result<Vec<_>>>().context("credentials")?;
            show(args, &records, credentials(&records))
        }
    }
}

fn credentials(records: &[CredentialRecord]) -> String {
    let row = |record: &CredentialRecord| {
        let limits = &record.limits;
        let uids = limits.uids.as_ref().map_or_else(
            || "any".to_string(),
            |uids| uids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        );
        let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
        vec![
            record.name.clone(),
            if record.revoked { "revoked" } else { "valid" }.into(),
            uids,
            yes(limits.root),
            limits.subtree.clone(),
            yes(limits.operator),
        ]
    };
    let header = ["NAME", "STATE", "UIDS", "ROOT", "SUBTREE", "OPERATOR"];
    output::table(&header, &[], records.iter().map(row).collect())
}
