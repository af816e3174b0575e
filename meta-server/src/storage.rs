//! The chunk service over the storage servers, through the client library.

use crate::chunks::{ChunkFile, ChunkService, ChunkSpace, Removal};
use crate::removal::{Doomed, Run, Step, Sweep};
use async_trait::async_trait;
use kiln_client::{ChunkClient, Grant, Granted, Place};
use kiln_env::Env;
use kiln_types::{
    ChainId, ChunkId, Code, Deadline, Error, Layout, Result, ServiceKind, TruncateEpoch,
};
use kiln_wire::{Change, DiskSpace, List, Listed, Listing};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long one chunk operation is tried.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one server may take to say how full it is.
const SPACE_TIMEOUT: Duration = Duration::from_secs(3);
/// Chunks of a page of a listing.
const PAGE: u32 = 1024;
/// Requests of one sweep of a chain that may be under way.
const REQUESTS: usize = 16;

/// [`ChunkService`] with the server's own identity.
pub struct StorageChunks {
    env: Env,
    chunks: Arc<ChunkClient>,
}

/// A server needs no capability; its epoch and floor are the operation's.
struct ServerGrant {
    epoch: TruncateEpoch,
    floor: TruncateEpoch,
}

#[async_trait]
impl Grant for ServerGrant {
    async fn current(&self, _index: u64) -> Result<Granted> {
        Ok(Granted { capability: [].into(), epoch: self.epoch, floor: self.floor })
    }

    /// There is no newer one: the chunk has moved on.
    async fn renew(&self) -> Result<()> {
        Err(Error::new(Code::StaleEpoch, "the chunk is of a later epoch"))
    }
}

impl StorageChunks {
    /// Reaches storage through `chunks`.
    pub fn new(env: Env, chunks: Arc<ChunkClient>) -> Self {
        Self { env, chunks }
    }

    fn place(&self, file: &ChunkFile, stripe: &[ChainId], index: u64) -> Place {
        Place {
            chain: stripe[(index % stripe.len() as u64) as usize],
            chunk: ChunkId::file(file.tree, file.inode, index),
            index,
            chunk_bytes: file.layout.chunk_bytes,
        }
    }

    /// The page at the cursor, which moves behind it; `None` when the chain has no more in `range`.
    async fn page(
        &self,
        file: &ChunkFile,
        chain: ChainId,
        range: &Range<u64>,
        cursor: &mut Option<u64>,
    ) -> Result<Option<Vec<Listed>>> {
        let Some(start) = *cursor else { return Ok(None) };
        let id = |index| ChunkId::file(file.tree, file.inode, index);
        let list = List { chain, from: id(start), to: id(range.end), limit: PAGE };
        let deadline = self.env.deadline_after(CHANGE_TIMEOUT);
        let listing = self.chunks.list(&list, deadline).await?;
        *cursor = listing.last.and_then(|last| last.as_file()).map(|(_, _, index)| index + 1);
        Ok(Some(listing.chunks))
    }

    /// Lists the chunks of each run at once.
    async fn list_all(&self, chain: ChainId, runs: &[Run]) -> Vec<Result<Listing>> {
        let list = |run: &Run| List { chain, from: run.from, to: run.to, limit: PAGE };
        let requests = runs.iter().map(list).map(|list| {
            let (chunks, deadline) =
                (Arc::clone(&self.chunks), self.env.deadline_after(CHANGE_TIMEOUT));
            async move { chunks.list(&list, deadline).await }
        });
        self.together("list chunks", requests).await
    }

    /// Removes chunks at once.
    async fn remove_all(
        &self,
        chain: ChainId,
        removals: &[Removal],
        doomed: &[Doomed],
    ) -> Vec<Result<()>> {
        let requests = doomed.iter().map(|doomed| {
            let Removal { file, below, .. } = &removals[doomed.removal];
            let place = Place {
                chain,
                chunk: ChunkId::file(file.tree, file.inode, doomed.index),
                index: doomed.index,
                chunk_bytes: file.layout.chunk_bytes,
            };
            let deadline = self.env.deadline_after(CHANGE_TIMEOUT);
            remove(Arc::clone(&self.chunks), place, *below, deadline)
        });
        self.together("remove chunk", requests).await
    }

    async fn together<T: Send + 'static>(
        &self,
        what: &'static str,
        requests: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
    ) -> Vec<Result<T>> {
        let tasks: Vec<_> = requests.map(|request| self.env.spawn(what, request)).collect();
        let mut outcomes = Vec::with_capacity(tasks.len());
        for task in tasks {
            outcomes.push(task.join().await.flatten());
        }
        outcomes
    }
}

async fn remove(
    chunks: Arc<ChunkClient>,
    place: Place,
    below: TruncateEpoch,
    deadline: Deadline,
) -> Result<()> {
    // Under the last epoch that goes: a chunk that a writer has renewed since the listing refuses.
    let epoch = TruncateEpoch(below.0.saturating_sub(1));
    let grant = ServerGrant { epoch, floor: TruncateEpoch(0) };
    unless_newer(chunks.change(&grant, place, Change::Remove, None, deadline).await.map(drop))
}

/// A chunk that has moved on was dealt with before, or renewed by a writer: it stays.
fn unless_newer(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.code() == Code::StaleEpoch => Ok(()),
        result => result,
    }
}

#[async_trait]
impl ChunkService for StorageChunks {
    async fn truncate_chunk(
        &self,
        file: &ChunkFile,
        index: u64,
        length: u32,
        epoch: TruncateEpoch,
        floor: TruncateEpoch,
    ) -> Result<()> {
        let stripe = self.chunks.routing().stripe(&file.layout)?;
        let place = self.place(file, &stripe, index);
        let deadline = self.env.deadline_after(CHANGE_TIMEOUT);
        let (grant, change) = (ServerGrant { epoch, floor }, Change::Truncate { length });
        unless_newer(self.chunks.change(&grant, place, change, None, deadline).await.map(drop))
    }

    fn chains(&self, layout: &Layout) -> Result<BTreeSet<ChainId>> {
        Ok(self.chunks.routing().stripe(layout)?.into_iter().collect())
    }

    async fn remove_chunks(&self, chain: ChainId, removals: &[Removal]) -> Vec<Result<()>> {
        let mut sweep = Sweep::new(removals);
        loop {
            match sweep.next(REQUESTS) {
                Step::List(runs) => {
                    let listings = self.list_all(chain, &runs).await;
                    for (run, listing) in runs.into_iter().zip(listings) {
                        sweep.listed(run, listing);
                    }
                }
                Step::Remove(doomed) => {
                    let outcomes = self.remove_all(chain, removals, &doomed).await;
                    for (doomed, outcome) in doomed.into_iter().zip(outcomes) {
                        sweep.removed(doomed, outcome);
                    }
                }
                Step::Done => return sweep.outcomes(),
            }
        }
    }

    async fn stored_end(&self, file: &ChunkFile, floors: &[(u64, TruncateEpoch)]) -> Result<u64> {
        let chains = self.chains(&file.layout)?;
        let floor = |index: u64| {
            let found = floors.iter().rev().find(|(first, _)| *first <= index);
            found.map_or(TruncateEpoch(0), |(_, epoch)| *epoch)
        };
        let chunk_bytes = u64::from(file.layout.chunk_bytes);
        let mut end = 0;
        for chain in chains {
            let mut cursor = Some(0);
            while let Some(page) = self.page(file, chain, &(0..u64::MAX), &mut cursor).await? {
                if page.iter().any(|listed| listed.pending) {
                    let text = format!("a write to inode {} is not decided yet", file.inode);
                    return Err(Error::new(Code::Busy, text));
                }
                let counts = page.iter().filter_map(|listed| {
                    let (_, _, index) = listed.chunk.as_file()?;
                    let counts = listed.length > 0 && listed.epoch >= floor(index);
                    counts.then(|| index * chunk_bytes + u64::from(listed.length))
                });
                end = end.max(counts.max().unwrap_or(0));
            }
        }
        Ok(end)
    }

    async fn space(&self) -> Result<ChunkSpace> {
        let routing = self.chunks.routing();
        let alive = |kind| routing.nodes.values().filter(move |n| n.kind == kind && n.alive);
        let deadline = self.env.deadline_after(SPACE_TIMEOUT);
        let mut disks = Vec::new();
        let mut answered = false;
        for node in alive(ServiceKind::Storage) {
            match self.chunks.space(&node.address, deadline).await {
                Ok(space) => {
                    answered = true;
                    disks.extend(space.disks);
                }
                Err(error) => tracing::warn!(address = %node.address, %error, "no space answer"),
            }
        }
        if !answered {
            return Err(Error::new(Code::NotReady, "no storage server is up"));
        }
        let replicas = routing.chains.values().map(|chain| chain.replicas).max();
        let replicas = u64::from(replicas.unwrap_or(1).max(1));
        let used: u64 = disks.iter().map(|disk| disk.used).sum();
        let free = free_bytes(&disks);
        Ok(ChunkSpace { total_bytes: (used + free) / replicas, free_bytes: free / replicas })
    }
}

/// What writers may still take of disks, of which some may share a file system.
fn free_bytes(disks: &[DiskSpace]) -> u64 {
    let mut systems = BTreeMap::<u128, (u64, u64, u64)>::new();
    let mut free = 0;
    for disk in disks {
        match disk.beneath {
            None => free += disk.free,
            Some((id, room)) => {
                let (free, backed, least) = systems.entry(id).or_insert((0, 0, room));
                *free += disk.free;
                *backed += disk.backed.min(disk.free);
                *least = room.min(*least);
            }
        }
    }
    free + systems.values().map(|(free, backed, room)| (*free).min(backed + room)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::DiskId;

    #[test]
    fn disks_share_what_their_file_system_has_left() {
        let disk = |free, backed, beneath| DiskSpace {
            disk: DiskId(1),
            capacity: 1000,
            used: 100,
            free,
            backed,
            beneath,
        };
        assert_eq!(free_bytes(&[disk(700, 0, None), disk(100, 0, None)]), 800);
        let plenty = [disk(700, 50, Some((1, 5000))), disk(300, 0, Some((1, 4000)))];
        assert_eq!(free_bytes(&plenty), 1000);
        let scarce = [disk(700, 50, Some((1, 500))), disk(300, 400, Some((1, 450)))];
        assert_eq!(free_bytes(&scarce), 50 + 300 + 450);
        let two = [disk(700, 0, Some((1, 500))), disk(700, 0, Some((2, 20)))];
        assert_eq!(free_bytes(&two), 520);
    }
}
