//! Reading everything: each server verifies the chunks of its serving targets, all servers at once.

use super::finding::{Finding, Findings, Kind, Place};
use super::known;
use super::walk::{all_files, behind};
use crate::remote::Remote;
use kiln_types::{ChainId, ChunkId, Context, NodeId, Result, TargetId};
use kiln_wire::{Damaged, List, Scrubbed};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long one server may take for one page.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// Chunks of one page; servers answer earlier when these are large.
const PAGE: u32 = 256;
/// Damaged chunks of one server that are looked at; more than that is a broken disk.
const DAMAGED_MAX: usize = 1000;

/// What was read.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Verified {
    pub(crate) replicas: u64,
    pub(crate) bytes: u64,
}

/// Damaged chunks of one server, and what it read.
#[derive(Default)]
struct OfServer {
    verified: Verified,
    damaged: Vec<(ChainId, TargetId, Damaged)>,
}

/// Reads all chunks of all serving replicas.
pub(super) async fn scrub(remote: &Arc<Remote>, findings: &mut Findings) -> Result<Verified> {
    let routing = remote.client.routing();
    let mut servers: BTreeMap<NodeId, Vec<(ChainId, TargetId)>> = BTreeMap::new();
    for chain in routing.chains.values() {
        for target in chain.serving() {
            if let Some(node) = routing.node_of(target) {
                servers.entry(node.id).or_default().push((chain.id, target));
            }
        }
    }
    let tasks: Vec<_> = servers
        .into_values()
        .map(|targets| {
            let remote_ = Arc::clone(remote);
            remote.env.spawn("scrub", async move { scrub_server(&remote_, targets).await })
        })
        .collect();
    let mut all = Verified::default();
    for task in tasks {
        let found = task.join().await??;
        all.replicas += found.verified.replicas;
        all.bytes += found.verified.bytes;
        for (chain, target, damaged) in found.damaged {
            tell(remote, findings, (chain, target), damaged).await?;
        }
    }
    Ok(all)
}

async fn scrub_server(remote: &Remote, targets: Vec<(ChainId, TargetId)>) -> Result<OfServer> {
    let mut found = OfServer::default();
    for (chain, target) in targets {
        let (first, end) = all_files();
        let mut from = Some(first);
        while let Some(start) = from {
            let page = page(remote, (chain, target), (start, end)).await?;
            from = page.last.and_then(behind);
            found.verified.replicas += u64::from(page.chunks);
            found.verified.bytes += page.bytes;
            let damaged = page.damaged.into_iter().map(|damaged| (chain, target, damaged));
            found.damaged.extend(damaged);
            if found.damaged.len() > DAMAGED_MAX {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

async fn page(
    remote: &Remote,
    (chain, target): (ChainId, TargetId),
    (from, to): (ChunkId, ChunkId),
) -> Result<Scrubbed> {
    let list = List { chain, from, to, limit: PAGE };
    let deadline = remote.env.deadline_after(PAGE_WITHIN);
    let done = remote.client.chunks().scrub_at(target, &list, deadline).await;
    done.context(format_args!("verification of target {target}"))
}

/// Tells of a chunk that was damaged. The server has read it twice, and writes it anew from now on: what
/// was found stays found.
async fn tell(
    remote: &Remote,
    findings: &mut Findings,
    (chain, target): (ChainId, TargetId),
    damaged: Damaged,
) -> Result<()> {
    let Some((_, inode, index)) = damaged.chunk.as_file() else { return Ok(()) };
    let known = known::find(remote, inode).await?;
    let path = match findings.keeps(Kind::Damage) {
        true => known::path_of(remote, inode).await?,
        false => None,
    };
    let in_chunk = u64::from(damaged.offset);
    let start = known.map(|known| index * u64::from(known.layout.chunk_bytes));
    let place = Place {
        path,
        inode: Some(inode),
        offset: start.map(|start| start + in_chunk),
        length: None,
        chains: vec![chain],
        target: Some(target),
    };
    let at = match place.offset {
        Some(offset) => format!("byte {offset}"),
        None => format!("chunk {index}, byte {in_chunk}"),
    };
    let what = format!("{}, {at} on target {target}", place.file());
    let why = format!("what was read is not what was written: chunk {index} of chain {chain}");
    findings.add(Finding { kind: Kind::Damage, what, why, place });
    Ok(())
}
