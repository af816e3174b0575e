//! The second look at what the first one suspects. A file that is written, truncated or removed
//! meanwhile is no finding:
//!
//! - A chunk is lost if it is missing after the metadata said that it must be there, and the metadata says
//!   afterwards that the file has not been truncated in between.
//! - Replicas differ if they did so before, each with the same version as now, and their chain's members
//!   have not changed.
//! - A chunk leaks if its inode is unknown after the chunk was seen, and the chunk is there still: an inode
//!   is made before its chunks, its id is never used again, and it stays known until they are gone.

use super::finding::{Finding, Findings, Kind, Place};
use super::known::{self, Known};
use super::many;
use super::walk::{State, Suspect, Suspicion, are_equal, behind, list, states};
use crate::remote::Remote;
use async_trait::async_trait;
use kiln_client::{Grant, Granted};
use kiln_types::{
    CHUNK_BYTES_MAX, Chain, ChainId, ChunkId, Code, Error, InodeId, Result, TreeId, TruncateEpoch,
};
use kiln_wire::{Change, Listed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long one chunk's removal is tried.
const REMOVE_WITHIN: Duration = Duration::from_secs(20);

/// Leaked chunks of one inode on one chain that are counted, or removed in one run; give or take a page.
const LEAKED_MAX: usize = 100_000;

/// Chunks that were removed because they were of no file.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Removed {
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
}

/// Decides about suspects and tells what is certain.
pub(super) struct Judge<'a> {
    pub(super) remote: &'a Remote,
    pub(super) remove_leaks: bool,
    pub(super) findings: &'a mut Findings,
    pub(super) removed: &'a mut Removed,
}

/// Missing bytes of a file, chunks that follow each other taken together.
struct Missing {
    first: u64,
    last: u64,
    offset: u64,
    end: u64,
    chains: BTreeSet<ChainId>,
}

impl Judge<'_> {
    pub(super) async fn judge(&mut self, suspects: Vec<Suspect>) -> Result<()> {
        let mut losses: BTreeMap<InodeId, BTreeMap<u64, Suspect>> = BTreeMap::new();
        let mut leaks = BTreeSet::new();
        for suspect in suspects {
            let Some((tree, inode, index)) = suspect.chunk.as_file() else { continue };
            match &suspect.what {
                Suspicion::Loss => {
                    losses.entry(inode).or_default().insert(index, suspect);
                }
                Suspicion::Difference(before) => self.difference(&suspect, before).await?,
                Suspicion::Leak => {
                    leaks.insert((tree, inode, suspect.chain));
                }
            }
        }
        for (inode, losses) in losses {
            self.losses(inode, losses).await?;
        }
        for (tree, inode, chain) in leaks {
            self.leak(tree, inode, chain).await?;
        }
        Ok(())
    }

    fn chain(&self, id: ChainId) -> Option<Chain> {
        self.remote.client.routing().chains.get(&id).cloned()
    }

    async fn losses(&mut self, inode: InodeId, losses: BTreeMap<u64, Suspect>) -> Result<()> {
        let Some(before) = known::find(self.remote, inode).await? else { return Ok(()) };
        let mut missing: Vec<Missing> = Vec::new();
        for (index, suspect) in losses {
            let Some(chain) = self.chain(suspect.chain) else { continue };
            let states = states(self.remote, &chain, suspect.chunk).await?;
            let counted =
                states.iter().map(|(_, listed)| before.counted(index, listed.as_ref())).max();
            let (there, needed) = (counted.unwrap_or(u32::MAX), before.needed(index));
            if there >= needed {
                continue;
            }
            let start = index * u64::from(before.layout.chunk_bytes);
            let (offset, end) = (start + u64::from(there), start + u64::from(needed));
            let chains = BTreeSet::from([suspect.chain]);
            match missing.last_mut().filter(|last| last.end == offset && last.last + 1 == index) {
                Some(last) => {
                    (last.last, last.end) = (index, end);
                    last.chains.extend(chains);
                }
                None => missing.push(Missing { first: index, last: index, offset, end, chains }),
            }
        }
        let after = known::find(self.remote, inode).await?;
        if !missing.is_empty() && after.is_some_and(|after| is_same(&before, &after)) {
            for missing in missing {
                self.tell_loss(inode, missing).await?;
            }
        }
        Ok(())
    }

    async fn tell_loss(&mut self, inode: InodeId, missing: Missing) -> Result<()> {
        let Missing { first, last, offset, end, chains } = missing;
        let away = chains.iter().filter_map(|chain| self.chain(*chain)).flat_map(|chain| {
            let serving: Vec<_> = chain.serving().collect();
            chain.members.into_iter().map(|m| m.target).filter(move |t| !serving.contains(t))
        });
        let mut away: Vec<_> = away.map(|target| target.to_string()).collect();
        away.truncate(4);
        let which = match first == last {
            true => format!("chunk {first}"),
            false => format!("chunks {first} to {last}"),
        };
        let listed: Vec<_> = chains.iter().take(4).map(ToString::to_string).collect();
        let more = if chains.len() > 4 { " and others" } else { "" };
        let mut why = format!("lost: {which} on chain {}{more}", listed.join(", "));
        if !away.is_empty() {
            why += &format!("; target {}, which does not serve, may have it", away.join(", "));
        }
        let place = Place {
            offset: Some(offset),
            length: Some(end - offset),
            chains: chains.into_iter().collect(),
            ..self.place(Kind::Loss, inode).await?
        };
        let what = format!("{}, bytes {offset} to {}", place.file(), end - 1);
        self.findings.add(Finding { kind: Kind::Loss, what, why, place });
        Ok(())
    }

    async fn place(&self, kind: Kind, inode: InodeId) -> Result<Place> {
        let path = match self.findings.keeps(kind) {
            true => known::path_of(self.remote, inode).await?,
            false => None,
        };
        Ok(Place { path, inode: Some(inode), ..Place::default() })
    }

    async fn difference(&mut self, suspect: &Suspect, before: &[State]) -> Result<()> {
        let Some((_, inode, index)) = suspect.chunk.as_file() else { return Ok(()) };
        let Some(chain) = self.chain(suspect.chain).filter(|c| c.version == suspect.version) else {
            return Ok(());
        };
        let now = states(self.remote, &chain, suspect.chunk).await?;
        let is_current = self.chain(suspect.chain).is_some_and(|c| c.version == suspect.version);
        if !is_current || now != before || are_equal(&now) {
            return Ok(());
        }
        let say = |(target, listed): &State| match listed {
            None => format!("target {target} has none"),
            Some(l) => {
                let pending = if l.pending { ", and one pending" } else { "" };
                format!("target {target} has version {} of {} bytes{pending}", l.version, l.length)
            }
        };
        let why = now.iter().map(say).collect::<Vec<_>>().join(", ");
        let known = known::find(self.remote, inode).await?;
        let chunk_bytes = known.map(|known| u64::from(known.layout.chunk_bytes));
        let place = Place {
            offset: chunk_bytes.map(|bytes| index * bytes),
            chains: vec![suspect.chain],
            ..self.place(Kind::Difference, inode).await?
        };
        let what = format!("{}, chunk {index} on chain {}", place.file(), suspect.chain);
        // A write that does not end: a server hangs, or is gone and will soon be out of the chain.
        let hangs = now.iter().any(|(_, listed)| listed.is_some_and(|listed| listed.pending));
        let kind = if hangs { Kind::Cluster } else { Kind::Difference };
        self.findings.add(Finding { kind, what, why, place });
        Ok(())
    }

    async fn leak(&mut self, tree: TreeId, inode: InodeId, chain: ChainId) -> Result<()> {
        let is_ours = tree == TreeId::MAIN;
        if is_ours && known::find(self.remote, inode).await?.is_some() {
            return Ok(());
        }
        let Some(chain) = self.chain(chain) else { return Ok(()) };
        let is_newer = is_ours && !known::Ids::now(self.remote).await?.has(inode);
        let mut found = self.chunks_of(&chain, tree, inode).await?;
        if self.remove_leaks && is_ours && !is_newer {
            // The rest, if there is more, is left for the next run.
            for listed in found.into_values() {
                self.remove(&chain, listed).await?;
            }
            found = self.chunks_of(&chain, tree, inode).await?;
        }
        if !found.is_empty() {
            let bytes = found.values().map(|listed| u64::from(listed.length)).sum();
            let left = Removed { chunks: found.len() as u64, bytes };
            self.tell_leak(tree, inode, chain.id, left, is_newer);
        }
        Ok(())
    }

    /// The chunks of an inode that any serving replica of a chain has, or many of them.
    async fn chunks_of(
        &self,
        chain: &Chain,
        tree: TreeId,
        inode: InodeId,
    ) -> Result<BTreeMap<ChunkId, Listed>> {
        let (first, end) = (ChunkId::file(tree, inode, 0), ChunkId::file(tree, inode, u64::MAX));
        let mut found = BTreeMap::new();
        for target in chain.serving() {
            let mut from = Some(first);
            while let Some(start) = from.filter(|_| found.len() < LEAKED_MAX) {
                let (page, last) = list(self.remote, chain.id, target, (start, end)).await?;
                found.extend(page.into_iter().map(|listed| (listed.chunk, listed)));
                from = last.and_then(behind);
            }
        }
        Ok(found)
    }

    fn tell_leak(
        &mut self,
        tree: TreeId,
        inode: InodeId,
        chain: ChainId,
        left: Removed,
        is_newer: bool,
    ) {
        let kind = if is_newer { Kind::Newer } else { Kind::Leak };
        let what = match tree {
            TreeId::MAIN => format!("inode {inode} on chain {chain}"),
            tree => format!("inode {inode} of tree {tree} on chain {chain}"),
        };
        let Removed { chunks, bytes } = left;
        let whose = if is_newer { "an inode that was never made" } else { "no file" };
        let why = format!("{}, {bytes} bytes, of {whose}", many(chunks, "chunk"));
        let place = Place { inode: Some(inode), chains: vec![chain], ..Place::default() };
        self.findings.add(Finding { kind, what, why, place });
    }

    /// Lets the chain remove a chunk; one that was written anew meanwhile refuses.
    async fn remove(&mut self, chain: &Chain, listed: Listed) -> Result<()> {
        let Some((_, _, index)) = listed.chunk.as_file() else { return Ok(()) };
        let place = kiln_client::Place {
            chain: chain.id,
            chunk: listed.chunk,
            index,
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let deadline = self.remote.env.deadline_after(REMOVE_WITHIN);
        let grant = OperatorGrant(listed.epoch.next());
        let chunks = self.remote.client.chunks();
        match chunks.change(&grant, place, Change::Remove, None, deadline).await {
            Ok(_) => {
                self.removed.chunks += 1;
                self.removed.bytes += u64::from(listed.length);
                Ok(())
            }
            // Another replica listed it, too, and it is gone by now; or it is of a later epoch.
            Err(error) if matches!(error.code(), Code::ChunkNotFound | Code::StaleEpoch) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_same(before: &Known, after: &Known) -> bool {
    after.epoch == before.epoch && !after.removed && !before.removed
}

/// An operator's own right, for chunks below this epoch.
struct OperatorGrant(TruncateEpoch);

#[async_trait]
impl Grant for OperatorGrant {
    async fn current(&self, _index: u64) -> Result<Granted> {
        let capability: Arc<[u8]> = [].into();
        Ok(Granted { capability, epoch: self.0, floor: TruncateEpoch(0) })
    }

    async fn renew(&self) -> Result<()> {
        Err(Error::new(Code::StaleEpoch, "the chunk is of a later epoch"))
    }
}
