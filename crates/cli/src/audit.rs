//! `kiln admin check` of what is stored: replicas against each other, chunks against the metadata.
//!
//! The cluster may be in use meanwhile, so that whatever looks wrong is looked at again before it is told.

use crate::remote::Remote;
use kiln_rpc::v1;
use kiln_types::{
    Chain, ChainId, ChunkId, Context, InodeId, Result, TargetId, TreeId, TruncateEpoch,
};
use kiln_wire::{LIST_LIMIT_MAX, List, Listed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long one server may take for one page.
const PAGE_WITHIN: Duration = Duration::from_secs(20);
/// How long what is under way gets to settle before it is looked at again.
const SETTLE: Duration = Duration::from_secs(2);
/// Findings of one kind that are told one by one.
const TOLD_MAX: usize = 10;

/// What was found: how many chunks were looked at, and what is wrong with some of them.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) chunks: u64,
    pub(crate) findings: Vec<(String, String)>,
}

/// A page of a chain: the range that it covers, and each replica's chunks in it.
struct Page {
    chain: ChainId,
    range: (ChunkId, ChunkId),
    replicas: Vec<(TargetId, BTreeMap<ChunkId, Listed>)>,
}

/// Looks at every chunk of every serving target.
pub(crate) async fn audit(remote: &Remote) -> Result<Audit> {
    let mut audit = Audit::default();
    let mut owners: BTreeMap<InodeId, Vec<ChainId>> = BTreeMap::new();
    let mut suspects = Vec::new();
    let routing = remote.client.routing();
    for chain in routing.chains.values() {
        let mut from = Some(ChunkId::file(TreeId(0), InodeId(0), 0));
        while let Some(start) = from {
            let page = read_page(remote, chain, start, &mut from).await?;
            let Some(page) = page else { break };
            for chunk in page.replicas.iter().flat_map(|(_, chunks)| chunks.keys()) {
                if let Some((_, inode, _)) = chunk.as_file() {
                    let chains = owners.entry(inode).or_default();
                    if chains.last() != Some(&chain.id) {
                        chains.push(chain.id);
                    }
                }
            }
            audit.chunks += page.replicas.first().map_or(0, |(_, chunks)| chunks.len() as u64);
            let differences = different(&page);
            if !differences.is_empty() {
                suspects.push((page, differences));
            }
        }
    }
    for inode in known_inodes(remote).await? {
        owners.remove(&inode);
    }
    if suspects.is_empty() && owners.is_empty() {
        return Ok(audit);
    }
    remote.env.sleep(SETTLE).await;
    look_again(remote, suspects, &mut audit).await?;
    look_for_owners(remote, owners, &mut audit).await?;
    Ok(audit)
}

/// The end of all files' chunks.
fn end() -> ChunkId {
    ChunkId::kv_block(0, 0, 0)
}

/// The chunks from `start` on at each serving target, as far as the head's page reaches; sets where the
/// next page begins. `None` when nobody serves.
async fn read_page(
    remote: &Remote,
    chain: &Chain,
    start: ChunkId,
    next: &mut Option<ChunkId>,
) -> Result<Option<Page>> {
    let Some(head) = chain.head() else { return Ok(None) };
    let (_, last) = list(remote, chain.id, head, (start, end())).await?;
    *next = last.and_then(behind);
    let range = (start, next.unwrap_or(end()));
    read_range(remote, chain.id, chain.serving().collect(), range).await.map(Some)
}

async fn read_range(
    remote: &Remote,
    chain: ChainId,
    targets: Vec<TargetId>,
    range: (ChunkId, ChunkId),
) -> Result<Page> {
    let mut replicas = Vec::new();
    for target in targets {
        let (mut all, mut from) = (BTreeMap::new(), Some(range.0));
        while let Some(start) = from {
            let (chunks, last) = list(remote, chain, target, (start, range.1)).await?;
            all.extend(chunks.into_iter().map(|listed| (listed.chunk, listed)));
            from = last.and_then(behind).filter(|next| *next < range.1);
        }
        replicas.push((target, all));
    }
    Ok(Page { chain, range, replicas })
}

async fn list(
    remote: &Remote,
    chain: ChainId,
    target: TargetId,
    (from, to): (ChunkId, ChunkId),
) -> Result<(Vec<Listed>, Option<ChunkId>)> {
    let list = List { chain, from, to, limit: LIST_LIMIT_MAX };
    let deadline = remote.env.deadline_after(PAGE_WITHIN);
    let listing = remote.client.chunks().list_at(target, &list, deadline).await;
    let listing = listing.context(format_args!("chunks of target {target}"))?;
    Ok((listing.chunks, listing.last))
}

/// The chunk id right behind a file's chunk.
fn behind(chunk: ChunkId) -> Option<ChunkId> {
    let (tree, inode, index) = chunk.as_file()?;
    index.checked_add(1).map(|index| ChunkId::file(tree, inode, index))
}

/// The chunks of which the replicas do not have the same, and what each has.
fn different(page: &Page) -> BTreeMap<ChunkId, String> {
    let all: BTreeSet<_> = page.replicas.iter().flat_map(|(_, chunks)| chunks.keys()).collect();
    let differs = |chunk: &ChunkId| {
        let has = |chunks: &BTreeMap<ChunkId, Listed>| chunks.get(chunk).copied();
        let found: Vec<_> = page.replicas.iter().map(|(t, chunks)| (*t, has(chunks))).collect();
        let settled = found.iter().all(|(_, listed)| listed.is_some_and(|l| !l.pending));
        if settled && found.windows(2).all(|two| two[0].1 == two[1].1) {
            return None;
        }
        let say = |(target, listed): (TargetId, Option<Listed>)| match listed {
            None => format!("target {target} has none"),
            Some(l) => {
                let pending = if l.pending { ", and one pending" } else { "" };
                format!("target {target} has version {} of {} bytes{pending}", l.version, l.length)
            }
        };
        Some((*chunk, found.into_iter().map(say).collect::<Vec<_>>().join(", ")))
    };
    all.into_iter().filter_map(differs).collect()
}

/// Tells of chunks that differ as they did before: what is under way has moved on.
async fn look_again(
    remote: &Remote,
    suspects: Vec<(Page, BTreeMap<ChunkId, String>)>,
    audit: &mut Audit,
) -> Result<()> {
    for (page, before) in suspects {
        let targets = page.replicas.iter().map(|(target, _)| *target).collect();
        let fresh = read_range(remote, page.chain, targets, page.range).await?;
        for (chunk, why) in different(&fresh) {
            if before.get(&chunk) == Some(&why) {
                audit.tell(format!("chunk {chunk} of chain {}", page.chain), why);
            }
        }
    }
    Ok(())
}

/// Every inode that may have chunks, those that are being removed included.
async fn known_inodes(remote: &Remote) -> Result<BTreeSet<InodeId>> {
    let (mut known, mut after) = (BTreeSet::new(), 0);
    loop {
        let page = v1::ListInodesRequest { after, limit: 1024 };
        let page = remote.client.meta().list_inodes(page).await?;
        known.extend(page.inodes.iter().map(|found| InodeId(found.inode)));
        match known.last() {
            Some(last) if !page.end => after = last.0,
            _ => return Ok(known),
        }
    }
}

/// Chunks of inodes that the metadata does not know, if they are still there and still unknown.
async fn look_for_owners(
    remote: &Remote,
    mut orphans: BTreeMap<InodeId, Vec<ChainId>>,
    audit: &mut Audit,
) -> Result<()> {
    if orphans.is_empty() {
        return Ok(());
    }
    for inode in known_inodes(remote).await? {
        orphans.remove(&inode);
    }
    let routing = remote.client.routing();
    for (inode, chains) in orphans {
        let range =
            (ChunkId::file(TreeId::MAIN, inode, 0), ChunkId::file(TreeId::MAIN, inode, u64::MAX));
        for chain in chains {
            let head = routing.chains.get(&chain).and_then(Chain::head);
            let Some(head) = head else { continue };
            let (left, _) = list(remote, chain, head, range).await?;
            if let Some(listed) = left.first() {
                let bytes: u64 = left.iter().map(|listed| u64::from(listed.length)).sum();
                let epoch: TruncateEpoch = listed.epoch;
                let why = format!(
                    "{} chunks, {bytes} bytes, epoch {epoch}, and no such inode in the metadata",
                    left.len()
                );
                audit.tell(format!("inode {inode} on chain {chain}"), why);
            }
        }
    }
    Ok(())
}

impl Audit {
    fn tell(&mut self, what: String, why: String) {
        match self.findings.len() {
            count if count < TOLD_MAX => self.findings.push((what, why)),
            TOLD_MAX => self.findings.push(("more".into(), "and further ones like these".into())),
            _ => {}
        }
    }
}
