//! After the faults: everything starts again, and must be well.

use crate::cluster::Cluster;
use crate::history::Kind;
use crate::log::note;
use crate::workload::CHUNK_BYTES;
use kiln_chunk_store::{VersionStat, Which};
use kiln_storage_server::Target;
use kiln_types::{
    Chain, ChunkId, Code, Error, InodeId, PublicState, Result, RoutingInfo, TargetId, TreeId,
    TruncateEpoch,
};
use kiln_wire::{LIST_LIMIT_MAX, List};
use std::sync::Arc;
use std::time::Duration;

/// In this time another manager takes the seat, and hears of a disk that failed.
const HEARD_AFTER: Duration = Duration::from_secs(6);
/// Within this time after the last fault every chain serves again.
const HEAL_TIME_MAX: Duration = Duration::from_secs(120);
/// Within this time after that no version is pending any more.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// Whether all replicas of a chain serve.
fn is_well(chain: &Chain) -> bool {
    chain.members.iter().all(|member| member.state == PublicState::Serving)
}

fn wrong(text: String) -> Error {
    Error::internal(text)
}

/// Waits until a cluster without faults is well, and checks what it holds.
///
/// # Errors
/// What is not as it must be.
pub(crate) async fn settle(cluster: &Arc<Cluster>) -> Result<()> {
    if cluster.ground.random_below(2) == 0 {
        restart_all(cluster);
    }
    // A disk that failed at the very end has to be heard of before its chain is believed to be well.
    cluster.ground.sleep(HEARD_AFTER).await;
    let observer = cluster.observe()?;
    let mut routing = observer.routing().subscribe();
    let all_well = |routing: &Arc<RoutingInfo>| {
        !routing.tables.is_empty() && routing.chains.values().all(is_well)
    };
    let healed = routing.wait_for(all_well);
    let healed = cluster.ground.timeout(HEAL_TIME_MAX, "healing", healed).await;
    if healed.map(drop).is_err() {
        let ill: Vec<_> =
            observer.routing().now().chains.values().filter(|c| !is_well(c)).cloned().collect();
        return Err(wrong(format!("chains do not heal: {ill:?}")));
    }
    note!(cluster.log, "all chains are well");
    let quiet = async {
        while !is_settled(cluster, &observer.routing().now()) {
            cluster.ground.sleep(LOOK).await;
        }
    };
    let settled = cluster.ground.timeout(SETTLE_TIME_MAX, "settling", quiet).await;
    settled.map_err(|_| wrong("versions stay pending".into()))?;
    scrub(cluster, &observer.routing().now()).await?;
    read_all(cluster).await?;
    let routing = observer.routing().now();
    for chain in routing.chains.values() {
        compare(cluster, &routing, chain).await?;
    }
    verify(cluster).await
}

fn restart_all(cluster: &Cluster) {
    for server in &cluster.servers {
        server.crash(true);
        server.start();
    }
    for manager in &cluster.managers {
        manager.crash();
        manager.start();
    }
}

/// The serving targets of a chain, as their servers have them.
fn serving(
    cluster: &Cluster,
    routing: &RoutingInfo,
    chain: &Chain,
) -> Option<Vec<(TargetId, Arc<Target>)>> {
    let target = |id: TargetId| {
        let service = cluster.server_of(id, routing)?.service()?;
        let target = service.targets().into_iter().find(|target| target.id() == id)?;
        Some((id, target))
    };
    chain.serving().map(target).collect()
}

fn is_settled(cluster: &Cluster, routing: &RoutingInfo) -> bool {
    routing.chains.values().all(|chain| {
        serving(cluster, routing, chain).is_some_and(|targets| {
            targets.iter().all(|(id, target)| {
                target.store().pending(*id).is_empty()
                    && target.waiting() == 0
                    && target.chain_version() == chain.version
            })
        })
    })
}

/// Reads every chunk as a client, several times, so that each replica is asked.
async fn read_all(cluster: &Cluster) -> Result<()> {
    let (auditor, _watch) = cluster.auditor.connect(&cluster.ground).await?;
    for chunk in 0..cluster.options.chunks {
        for _ in 0..3 {
            let whole = Kind::Read { offset: 0, length: CHUNK_BYTES };
            let deadline = cluster.ground.deadline_after(Duration::from_secs(20));
            if !auditor.perform(chunk, whole, deadline).await {
                return Err(wrong(format!("chunk {chunk} cannot be read in a quiet cluster")));
            }
        }
    }
    Ok(())
}

/// Lets the server whose disks rot look through them, until nothing is damaged any more.
async fn scrub(cluster: &Cluster, routing: &RoutingInfo) -> Result<()> {
    let Some(rotten) = cluster.options.rotten else { return Ok(()) };
    let node = cluster.servers[rotten].node;
    let (auditor, _watch) = cluster.auditor.connect(&cluster.ground).await?;
    for target in routing.targets.values().filter(|target| target.node == node) {
        let start = cluster.ground.now();
        loop {
            let id = |inode| ChunkId::file(TreeId::MAIN, InodeId(inode), 0);
            let (from, to) = (id(0), id(u64::MAX));
            let list = List { chain: target.chain, from, to, limit: LIST_LIMIT_MAX };
            let deadline = cluster.ground.deadline_after(SETTLE_TIME_MAX);
            let found = auditor.chunks.scrub_at(target.id, &list, deadline).await;
            if found.as_ref().is_ok_and(|found| found.damaged.is_empty()) {
                break;
            }
            if cluster.ground.now().since(start) > SETTLE_TIME_MAX {
                return Err(wrong(format!("{found:?} of target {} is not repaired", target.id)));
            }
            cluster.ground.sleep(LOOK).await;
        }
    }
    Ok(())
}

/// All replicas of a chain that serve hold the same.
async fn compare(cluster: &Cluster, routing: &RoutingInfo, chain: &Chain) -> Result<()> {
    let targets = serving(cluster, routing, chain)
        .ok_or_else(|| wrong(format!("chain {}: a server does not run", chain.id)))?;
    let mut first = None;
    for (id, target) in targets {
        let held = contents(&target, id).await?;
        match &first {
            None => first = Some((id, held)),
            Some((other, expected)) if *expected != held => {
                let text = format!("chain {}: targets {other} and {id} differ", chain.id);
                return Err(wrong(format!("{text}:\n  {}", difference(expected, &held))));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

type Held = Vec<(ChunkId, VersionStat, Vec<u8>)>;

async fn contents(target: &Target, id: TargetId) -> Result<Held> {
    let store = target.store();
    let mut held = Vec::new();
    for (chunk, stat) in store.list(id, ChunkId::MIN, ChunkId::MAX, 10_000).await? {
        let (which, floor) = (Which::Committed, TruncateEpoch(0));
        let bytes = match store.read(id, chunk, which, 0, u32::MAX, floor).await {
            Ok(read) => read.bytes.to_vec(),
            Err(error) if error.code() == Code::ChunkNotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if stat.pending.is_some() {
            return Err(wrong(format!("target {id}: chunk {chunk} has a version pending")));
        }
        // A tombstone that was collected and one that was not are the same to everybody; and what a
        // target is filled with comes without the request that made it.
        if let Some(committed) = stat.committed.filter(|committed| !committed.removed) {
            held.push((chunk, VersionStat { retry: None, ..committed }, bytes));
        }
    }
    Ok(held)
}

fn difference(one: &Held, other: &Held) -> String {
    let differ = one.iter().zip(other).find(|(one, other)| one != other);
    match differ {
        Some(((chunk, one, _), (_, other, _))) => format!("{chunk}: {one:?}\n  {other:?}"),
        None => format!("{} chunks and {}", one.len(), other.len()),
    }
}

/// Every store is well by its own books.
async fn verify(cluster: &Cluster) -> Result<()> {
    for server in &cluster.servers {
        let Some(service) = server.service() else {
            return Err(wrong(format!("{} does not run", server.name)));
        };
        for store in service.stores() {
            let found = store.verify().await?;
            if !found.is_clean() {
                return Err(wrong(format!("a store of {}: {found:?}", server.name)));
            }
        }
    }
    Ok(())
}
