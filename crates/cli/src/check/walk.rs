//! The first look: every chunk of every serving replica, beside the other replicas and the metadata.
//! The cluster may be in use: what looks wrong here is only suspected.

use super::known::Batch;
use crate::remote::Remote;
use kiln_types::{
    Chain, ChainId, ChainVersion, ChunkId, Context, InodeId, Result, TargetId, TreeId,
};
use kiln_wire::{LIST_LIMIT_MAX, List, Listed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long one server may take for one page.
const PAGE_WITHIN: Duration = Duration::from_secs(20);
/// The most that is suspected of one batch of files.
const SUSPECTS_MAX: usize = 10_000;

/// The most files of one chain that are suspected to be newer than the metadata: mostly they were made
/// since the batch was read.
const NEWER_MAX: usize = 100;

/// A replica and what it has of a chunk.
pub(super) type State = (TargetId, Option<Listed>);

/// What may be wrong with a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Bytes of it are missing.
    Loss,
    /// The replicas are not the same, or something is pending.
    Difference(Vec<State>),
    /// It is of no file; told once for all chunks of an inode on a chain.
    Leak,
}

/// A chunk with which something may be wrong.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub(super) chain: ChainId,
    pub(super) version: ChainVersion,
    pub(super) chunk: ChunkId,
    pub(super) what: Suspicion,
}

/// What is suspected; `is_full`: and more, which was not noted.
#[derive(Default)]
pub(super) struct Suspects {
    pub(super) list: Vec<Suspect>,
    pub(super) is_full: bool,
    /// How many more of the chain at hand may be newer than the metadata.
    newer_left: usize,
}

impl Suspects {
    fn add(&mut self, chain: &Chain, chunk: ChunkId, what: Suspicion) {
        if self.list.len() >= SUSPECTS_MAX {
            self.is_full = true;
            return;
        }
        let inode = |chunk: ChunkId| chunk.as_file().map(|(tree, inode, _)| (tree, inode));
        let is_known_leak = self.list.last().is_some_and(|last| {
            let same = (last.chain, inode(last.chunk)) == (chain.id, inode(chunk));
            same && what == Suspicion::Leak && last.what == Suspicion::Leak
        });
        if !is_known_leak {
            self.list.push(Suspect { chain: chain.id, version: chain.version, chunk, what });
        }
    }
}

/// A range of a chain, and each serving replica's chunks in it.
struct Page {
    end: ChunkId,
    replicas: Vec<(TargetId, BTreeMap<ChunkId, Listed>)>,
}

/// Walks a chain through a batch's range; how many chunks it has there.
pub(super) async fn walk(
    remote: &Remote,
    chain: &Chain,
    batch: &Batch,
    suspects: &mut Suspects,
) -> Result<u64> {
    let (mut from, mut chunks) = (Some(batch.range.0), 0);
    let mut expected = batch.expected(chain.id).peekable();
    suspects.newer_left = NEWER_MAX;
    while let Some(start) = from {
        let Some(page) = read_page(remote, chain, (start, batch.range.1)).await? else { break };
        from = Some(page.end).filter(|next| *next < batch.range.1);
        chunks += page.replicas.first().map_or(0, |(_, chunks)| chunks.len() as u64);
        let ids: BTreeSet<ChunkId> =
            page.replicas.iter().flat_map(|(_, chunks)| chunks.keys().copied()).collect();
        for chunk in &ids {
            judge(chain, batch, *chunk, &page.states(chunk), suspects);
        }
        while let Some(chunk) = expected.next_if(|chunk| *chunk < page.end) {
            if suspects.is_full {
                break;
            }
            if !ids.contains(&chunk) {
                suspects.add(chain, chunk, Suspicion::Loss);
            }
        }
    }
    Ok(chunks)
}

/// Whether something seems to be wrong with a chunk that at least one replica has.
fn judge(chain: &Chain, batch: &Batch, chunk: ChunkId, states: &[State], suspects: &mut Suspects) {
    if !are_equal(states) {
        suspects.add(chain, chunk, Suspicion::Difference(states.to_vec()));
    }
    let Some((known, index)) = batch.file_of(chunk) else {
        if batch.may_know(chunk) || suspects.newer_left > 0 {
            let before = suspects.list.len();
            suspects.add(chain, chunk, Suspicion::Leak);
            let added = suspects.list.len() > before && !batch.may_know(chunk);
            suspects.newer_left -= usize::from(added);
        }
        return;
    };
    let counted = states.iter().map(|(_, listed)| known.counted(index, listed.as_ref()));
    if counted.max().unwrap_or(0) < known.needed(index) {
        suspects.add(chain, chunk, Suspicion::Loss);
    }
}

/// Whether all replicas have the same, and nothing is under way.
pub(super) fn are_equal(states: &[State]) -> bool {
    let settled = states.iter().all(|(_, listed)| listed.is_none_or(|listed| !listed.pending));
    settled && states.windows(2).all(|two| two[0].1 == two[1].1)
}

impl Page {
    fn states(&self, chunk: &ChunkId) -> Vec<State> {
        self.replicas.iter().map(|(target, chunks)| (*target, chunks.get(chunk).copied())).collect()
    }
}

/// The chunks of a range at each serving target, as far as the head's page reaches. `None` when nobody
/// serves.
async fn read_page(
    remote: &Remote,
    chain: &Chain,
    (start, end): (ChunkId, ChunkId),
) -> Result<Option<Page>> {
    let Some(head) = chain.head() else { return Ok(None) };
    let (first, last) = list(remote, chain.id, head, (start, end)).await?;
    let end = last.and_then(behind).unwrap_or(end).min(end);
    let by_id = |chunks: Vec<Listed>| chunks.into_iter().map(|listed| (listed.chunk, listed));
    let mut replicas = vec![(head, by_id(first).collect())];
    for target in chain.serving().skip(1) {
        let (mut all, mut from) = (BTreeMap::new(), Some(start));
        while let Some(start) = from {
            let (chunks, last) = list(remote, chain.id, target, (start, end)).await?;
            all.extend(by_id(chunks));
            from = last.and_then(behind).filter(|next| *next < end);
        }
        replicas.push((target, all));
    }
    Ok(Some(Page { end, replicas }))
}

/// What each serving target has of one chunk.
pub(super) async fn states(remote: &Remote, chain: &Chain, chunk: ChunkId) -> Result<Vec<State>> {
    let mut states = Vec::new();
    let end = behind(chunk).unwrap_or(all_files().1);
    for target in chain.serving() {
        let (found, _) = list(remote, chain.id, target, (chunk, end)).await?;
        states.push((target, found.first().copied()));
    }
    Ok(states)
}

/// A page of a target's chunks, and its last one if there may be more.
pub(super) async fn list(
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

/// Where the chunks of files lie: from the first id up to, and not with, the second.
pub(super) fn all_files() -> (ChunkId, ChunkId) {
    (ChunkId::file(TreeId(0), InodeId(0), 0), ChunkId::kv_block(0, 0, 0))
}

/// The chunk id right behind a file's chunk.
pub(super) fn behind(chunk: ChunkId) -> Option<ChunkId> {
    let (tree, inode, index) = chunk.as_file()?;
    index.checked_add(1).map(|index| ChunkId::file(tree, inode, index))
}
