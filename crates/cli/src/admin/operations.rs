//! Where targets are, and what changes that: drains, rebalancing, new disks, more chains.

use super::chains::Filling;
use super::{Args, show};
use crate::failure::Outcome;
use crate::output;
use crate::remote::{Remote, usage};
use clap::Subcommand;
use kiln_manager_link::ManagerClient;
use kiln_rpc::{
    DiskState, Drain, DrainProgress, Drained, FillProgress, Move, MoveProgress, Operations, Reason,
    v1,
};
use kiln_types::{ChainId, Context, DiskId, NodeId, Result, TargetId};
use serde::Serialize;
use std::time::Duration;

/// How often a command that waits looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Move everything off a server or a disk, which takes nothing new from then on
    ///
    /// The targets are made anew on other servers and filled while clients go on; each old one is
    /// deleted when the new one serves. The order stays until it is cancelled, also over restarts. When
    /// nothing is left, a server can be stopped, and 'kiln admin forget-node' ends it.
    Drain {
        /// A node's id, or a disk's (or how that begins): see 'kiln admin disks'
        #[arg(value_name = "NODE|DISK")]
        what: String,
        /// It takes targets again; what has not left yet stays
        #[arg(long)]
        cancel: bool,
        /// Wait until nothing is left, and tell how far it is
        #[arg(long, conflicts_with = "cancel")]
        wait: bool,
    },
    /// Move targets until all disks carry equally many, after servers or disks were added
    Rebalance {
        /// Only say what would move
        #[arg(long)]
        dry_run: bool,
        /// What has not moved yet stays
        #[arg(long, conflicts_with = "dry_run")]
        cancel: bool,
        /// Wait until it is done, and tell how far it is
        #[arg(long, conflicts_with_all = ["cancel", "dry_run"])]
        wait: bool,
    },
    /// Make the targets of a dead or failing disk anew
    ///
    /// On the disk NEW; without it on the new, empty disk of the same server, if it has one, or else
    /// wherever there is room. Afterwards the old disk is drained: it takes nothing new.
    ReplaceDisk {
        /// The old disk: its id, or how that begins
        old: String,
        /// The new one
        new: Option<String>,
        /// Wait until nothing is left, and tell how far it is
        #[arg(long)]
        wait: bool,
    },
    /// Let a chain whose last serving target is lost for good go on from another one
    ///
    /// A chain of which no target serves waits for the one that served last, since that alone has
    /// everything. Only when its disk is lost is there a reason not to wait: name a member that is
    /// waiting. What was acknowledged after that one had left the chain is lost.
    RecoverChain {
        /// The chain
        chain: u64,
        /// The target from which it goes on
        #[arg(long, value_name = "TARGET")]
        from: u64,
        /// Acknowledged writes may be lost, and that is accepted
        #[arg(long)]
        i_accept_data_loss: bool,
    },
    /// Forget a server that is gone for good and has no targets
    ForgetNode {
        /// Its id
        node: u64,
    },
    /// What moves, is drained or will be rebuilt, how far, and for how long still
    Operations,
    /// The disks: their server, space, targets, whether they are drained
    Disks,
}

/// A change of the chain table.
#[derive(Debug, Subcommand)]
pub(super) enum TableCommand {
    /// Add chains until each disk carries so many targets, as a new version of the table
    ///
    /// New files are spread over all chains of the new version; files that exist keep theirs.
    Extend {
        /// Targets on each disk
        #[arg(long, value_name = "COUNT")]
        targets_per_disk: u32,
    },
}

pub(super) async fn run(args: &Args, command: &Command, remote: &Remote) -> Outcome {
    match command {
        Command::Drain { what, cancel, wait } => drain(remote, what, *cancel, *wait).await,
        Command::Rebalance { dry_run, cancel, wait } => {
            let request = v1::RebalanceRequest { dry_run: *dry_run, cancel: *cancel };
            rebalance(args, remote, request, *wait).await
        }
        Command::ReplaceDisk { old, new, wait } => {
            replace_disk(remote, old, new.as_deref(), *wait).await
        }
        Command::RecoverChain { chain, from, i_accept_data_loss } => {
            recover_chain(remote, *chain, *from, *i_accept_data_loss).await
        }
        Command::ForgetNode { node } => {
            let request = v1::ForgetNodeRequest { node: *node };
            let forget = async |mut m: ManagerClient| m.forget_node(request).await;
            remote.manager("forget a node", forget).await?;
            Ok(output::print(&format!("node {node} is forgotten\n"))?)
        }
        Command::Operations => {
            let operations = ask(remote).await?;
            let views = View::of(&operations);
            show(args, &views, views.text())
        }
        Command::Disks => {
            let operations = ask(remote).await?;
            show(args, &operations.disks, disks(&operations.disks))
        }
    }
}

pub(super) async fn change_table(remote: &Remote, command: &TableCommand) -> Outcome {
    let TableCommand::Extend { targets_per_disk } = command;
    let request = v1::ExtendTableRequest { targets_per_disk: *targets_per_disk };
    let extend = async |mut m: ManagerClient| m.extend_table(request).await;
    let reply = remote.manager("more chains", extend).await?;
    let (chains, version) = (reply.chains, reply.version);
    Ok(output::print(&format!(
        "{chains} chains are made; then version {version} of the table is there\n"
    ))?)
}

async fn ask(remote: &Remote) -> Result<Operations> {
    let list = async |mut m: ManagerClient| m.list_operations(v1::Empty {}).await;
    let list = remote.manager("operations", list).await?;
    Operations::try_from(list).context("operations")
}

/// The disk that an id, or how it begins, means.
fn find_disk(
    disks: &[DiskState],
    text: &str,
) -> std::result::Result<DiskId, crate::failure::Failure> {
    let begins = |disk: &&DiskState| disk.disk.to_string().starts_with(&text.to_lowercase());
    let found: Vec<_> = disks.iter().filter(begins).map(|disk| disk.disk).collect();
    match found[..] {
        [disk] if text.len() >= 4 || disk.to_string() == text => Ok(disk),
        [] => Err(usage(format!("there is no disk '{text}'"), "kiln admin disks lists them")),
        _ => Err(usage(format!("'{text}' may mean several disks"), "give more digits of its id")),
    }
}

async fn drain(remote: &Remote, what: &str, cancel: bool, wait: bool) -> Outcome {
    let operations = ask(remote).await?;
    let node = what.parse().map(NodeId).ok();
    let node = node.filter(|node| remote.client.routing().nodes.contains_key(node));
    let what = match node {
        Some(node) => Drained::Node(node),
        None => Drained::Disk(find_disk(&operations.disks, what)?),
    };
    send_drain(remote, Drain { what, onto: None }, cancel).await?;
    if cancel {
        return Ok(output::print(&format!("{what} takes targets again\n"))?);
    }
    finish_drain(remote, what, wait).await
}

async fn send_drain(remote: &Remote, drain: Drain, cancel: bool) -> Result<()> {
    let request = v1::DrainRequest { drain: Some(v1::DrainInfo::from(&drain)), cancel };
    let send = async |mut m: ManagerClient| m.drain(request).await;
    remote.manager("drain", send).await.map(drop)
}

async fn finish_drain(remote: &Remote, what: Drained, wait: bool) -> Outcome {
    if !wait {
        let text = format!("{what} is drained; kiln admin operations shows how far it is\n");
        return Ok(output::print(&text)?);
    }
    follow(remote, |operations| {
        let drain = operations.drains.iter().find(|drain| drain.drain.what == what);
        match drain {
            Some(drain) if drain.targets > 0 => Some(drain_line(drain, operations)),
            _ => None,
        }
    })
    .await?;
    Ok(output::print(&format!("nothing is left on {what}\n"))?)
}

async fn rebalance(
    args: &Args,
    remote: &Remote,
    request: v1::RebalanceRequest,
    wait: bool,
) -> Outcome {
    let (dry_run, cancel) = (request.dry_run, request.cancel);
    let rebalance = async |mut m: ManagerClient| m.rebalance(request).await;
    let list = remote.manager("rebalance", rebalance).await?;
    if cancel {
        return Ok(output::print("what has not moved yet stays\n")?);
    }
    let moves = list.moves.into_iter().map(Move::try_from).collect::<Result<Vec<_>>>()?;
    if dry_run {
        let rows: Vec<_> = moves.iter().map(|what| MoveView::of(what, None, "")).collect();
        return show(args, &rows, move_table(&rows));
    }
    let count = moves.len();
    if !wait || count == 0 {
        let text = match count {
            0 => "the disks carry equally many targets already\n".into(),
            _ => format!("{count} targets move; kiln admin operations shows how far they are\n"),
        };
        return Ok(output::print(&text)?);
    }
    follow(remote, |operations| {
        let mine = |what: &&MoveProgress| what.what.reason == Reason::Rebalance;
        let left = operations.moves.iter().filter(mine).count();
        (left > 0).then(|| format!("{left} of {count} targets still move"))
    })
    .await?;
    Ok(output::print("the disks carry equally many targets\n")?)
}

async fn replace_disk(remote: &Remote, old: &str, new: Option<&str>, wait: bool) -> Outcome {
    let disks = ask(remote).await?.disks;
    let old = find_disk(&disks, old)?;
    let node = disks.iter().find(|disk| disk.disk == old).map(|disk| disk.node);
    let onto = match new {
        Some(new) => Some(find_disk(&disks, new)?),
        None => {
            let fresh = |disk: &&DiskState| {
                Some(disk.node) == node && disk.present && !disk.drained && disk.targets == 0
            };
            let fresh: Vec<_> = disks.iter().filter(fresh).collect();
            match fresh[..] {
                [one] => Some(one.disk),
                [] => None,
                _ => return Err(usage("the server has several empty disks", "name the new one")),
            }
        }
    };
    let what = Drained::Disk(old);
    send_drain(remote, Drain { what, onto }, false).await?;
    match onto {
        Some(onto) => output::print(&format!("its targets are made anew on disk {onto}\n"))?,
        None => output::print("its targets are made anew wherever there is room\n")?,
    }
    finish_drain(remote, what, wait).await
}

async fn recover_chain(remote: &Remote, chain: u64, from: u64, accepted: bool) -> Outcome {
    if !accepted {
        return Err(usage(
            "acknowledged writes may be lost: the target that served last has them, if any has",
            "when its disk is lost for good, say so with --i-accept-data-loss",
        ));
    }
    let request = v1::RecoverChainRequest { chain, from };
    let recover = async |mut m: ManagerClient| m.recover_chain(request).await;
    remote.manager("recover a chain", recover).await?;
    let (chain, from) = (ChainId(chain), TargetId(from));
    let text =
        format!("chain {chain} goes on from target {from}; kiln admin check says what is lost\n");
    Ok(output::print(&text)?)
}

/// Tells how far something is, each time that changes, until there is nothing to tell.
async fn follow(remote: &Remote, line: impl Fn(&Operations) -> Option<String>) -> Result<()> {
    let mut last = String::new();
    while let Some(line) = line(&ask(remote).await?) {
        if line != last {
            output::tell(&line);
            last = line;
        }
        remote.env.sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn drain_line(drain: &DrainProgress, operations: &Operations) -> String {
    let moving = operations.moves.iter().filter(|m| m.what.reason == Reason::Drain).count();
    let left = match drain.targets {
        1 => "1 target is left".into(),
        left => format!("{left} targets are left"),
    };
    match drain.stuck.as_str() {
        "" => format!("{left}, {moving} move now"),
        stuck => format!("{left}, {moving} move now; some cannot: {stuck}"),
    }
}

/// What goes on, as it is shown.
#[derive(Serialize)]
struct View {
    drains: Vec<DrainView>,
    moves: Vec<MoveView>,
    rebuilds: Vec<RebuildView>,
    /// The version of the chain table whose chains are being made.
    table_version: Option<u64>,
    /// Targets whose space is being freed.
    deleting: u64,
}

#[derive(Serialize)]
struct DrainView {
    what: String,
    onto: Option<DiskId>,
    targets_left: u64,
    stuck: String,
}

#[derive(Serialize)]
struct MoveView {
    chain: ChainId,
    from: TargetId,
    to: Option<TargetId>,
    node: NodeId,
    disk: DiskId,
    reason: String,
    cancelled: bool,
    filling: Option<Filling>,
    waits_for: String,
}

#[derive(Serialize)]
struct RebuildView {
    target: TargetId,
    begins_in_seconds: f64,
    stuck: String,
}

impl View {
    fn of(operations: &Operations) -> Self {
        let drain = |drain: &DrainProgress| DrainView {
            what: drain.drain.what.to_string(),
            onto: drain.drain.onto,
            targets_left: drain.targets,
            stuck: drain.stuck.clone(),
        };
        let rebuilds = operations.rebuilds.iter().map(|rebuild| RebuildView {
            target: rebuild.target,
            begins_in_seconds: rebuild.left.as_secs_f64(),
            stuck: rebuild.stuck.clone(),
        });
        let moves = operations.moves.iter();
        Self {
            drains: operations.drains.iter().map(drain).collect(),
            moves: moves.map(|m| MoveView::of(&m.what, m.fill.as_ref(), &m.waits)).collect(),
            rebuilds: rebuilds.collect(),
            table_version: operations.extension.map(|extension| extension.version),
            deleting: operations.retired,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for DrainView { what, onto, targets_left, stuck } in &self.drains {
            let onto = onto.map_or_else(String::new, |disk| format!(" onto disk {disk}"));
            let left = match (targets_left, stuck.as_str()) {
                (0, _) => "nothing is left there".to_string(),
                (left, "") => format!("{left} targets are left"),
                (left, stuck) => format!("{left} targets are left; some cannot move: {stuck}"),
            };
            text += &format!("{what} is drained{onto}: {left}\n");
        }
        for RebuildView { target, begins_in_seconds, stuck } in &self.rebuilds {
            let left = Duration::from_secs(begins_in_seconds.ceil() as u64);
            text += &match (left.is_zero(), stuck.as_str()) {
                (true, "") => {
                    format!("target {target} is gone and will be rebuilt elsewhere now\n")
                }
                (true, stuck) => {
                    format!("target {target} is gone and cannot be rebuilt: {stuck}\n")
                }
                (false, _) => format!(
                    "target {target} is gone and will be rebuilt elsewhere in {}\n",
                    humantime::format_duration(left)
                ),
            };
        }
        if let Some(version) = self.table_version {
            text += &format!("chains of version {version} of the chain table are made\n");
        }
        if self.deleting > 0 {
            text += &format!("{} old targets are deleted\n", self.deleting);
        }
        match (self.moves.is_empty(), text.is_empty()) {
            (true, true) => "nothing goes on\n".into(),
            (true, false) => text,
            (false, _) => text + &move_table(&self.moves),
        }
    }
}

impl MoveView {
    fn of(what: &Move, fill: Option<&FillProgress>, waits: &str) -> Self {
        Self {
            chain: what.chain,
            from: what.from,
            to: what.to,
            node: what.node,
            disk: what.disk,
            reason: what.reason.to_string(),
            cancelled: what.cancelled,
            filling: fill.map(Filling::of),
            waits_for: waits.into(),
        }
    }

    fn state(&self) -> String {
        match (&self.filling, self.waits_for.as_str(), self.cancelled) {
            (_, waits, true) => format!("cancelled; waits for {waits}"),
            (Some(filling), ..) => format!("filled{}", filling.show()),
            (None, "", _) if self.to.is_none() => "planned".into(),
            (None, "", _) => "begins".into(),
            (None, waits, _) => format!("waits for {waits}"),
        }
    }
}

fn move_table(moves: &[MoveView]) -> String {
    let row = |what: &MoveView| {
        vec![
            what.chain.to_string(),
            what.from.to_string(),
            what.to.map_or_else(|| "-".into(), |to| to.to_string()),
            what.node.to_string(),
            what.disk.to_string(),
            what.reason.clone(),
            what.state(),
        ]
    };
    let header = ["CHAIN", "TARGET", "NEW", "TO NODE", "TO DISK", "WHY", "STATE"];
    output::table(&header, &[0, 1, 2, 3], moves.iter().map(row).collect())
}

fn disks(disks: &[DiskState]) -> String {
    let row = |disk: &DiskState| {
        let state = match (disk.present, disk.drained) {
            (true, false) => "in use",
            (true, true) => "drained",
            (false, false) => "missing",
            (false, true) => "missing, drained",
        };
        vec![
            disk.disk.to_string(),
            disk.node.to_string(),
            state.into(),
            disk.targets.to_string(),
            output::bytes(disk.used_bytes),
            output::bytes(disk.capacity_bytes),
        ]
    };
    let header = ["DISK", "NODE", "STATE", "TARGETS", "USED", "CAPACITY"];
    output::table(&header, &[1, 3, 4, 5], disks.iter().map(row).collect())
}
