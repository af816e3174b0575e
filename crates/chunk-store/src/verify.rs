//! Checks a store against itself: every block has the owners that the descriptors say, and no
//! others.

use crate::api::Verification;
use crate::core::Core;
use crate::extent::{Extent, blocks_of};
use crate::record::{Head, Key};
use crate::space::Bits;
use crate::superblock::SUPERBLOCKS;
use kiln_types::{Code, Error, Result, TargetId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often readers are given time to go away, and how long.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

impl Core {
    /// The chunks of a target, removed or not.
    fn keys(&self, target: TargetId) -> Vec<Key> {
        let state = self.state.lock();
        let Some(found) = state.targets.get(&target) else { return Vec::new() };
        let chunks = found.index.iter().map(|(chunk, _)| chunk);
        let mut keys: Vec<Key> = chunks
            .chain(found.pending.keys().copied())
            .map(|chunk| Key { target, chunk })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Both versions of a chunk, also of a target that is being removed.
    async fn versions(&self, key: Key) -> Result<(Vec<Arc<Head>>, crate::space::Lease)> {
        let (slot, pending, lease) = {
            let state = self.state.lock();
            state.check()?;
            let target = state.targets.get(&key.target);
            let slot = target.and_then(|target| target.index.get(&key.chunk));
            let pending = target.and_then(|target| target.pending.get(&key.chunk));
            (slot, pending.map(|p| Arc::clone(&p.head)), self.space.lease())
        };
        let mut heads = Vec::new();
        if let Some(slot) = slot {
            heads.push(self.head(key, slot.position, &lease).await?);
        }
        heads.extend(pending);
        Ok((heads, lease))
    }

    /// The blocks of a chunk's versions, each once.
    async fn chunk_extents(&self, key: Key) -> Result<Vec<Extent>> {
        let (heads, lease) = self.versions(key).await?;
        let mut extents = Vec::new();
        let none = BTreeMap::new();
        let mut before: Option<&Head> = None;
        for head in &heads {
            extents.extend(self.footprint(key, before, head, &none, &lease).await?.added);
            before = Some(head);
        }
        Ok(extents)
    }

    /// All blocks of a target's data.
    pub(crate) async fn all_extents(&self, target: TargetId) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for key in self.keys(target) {
            match self.chunk_extents(key).await {
                Ok(some) => extents.extend(some),
                // What nobody can name any more is free when the store is opened next.
                Err(error) if error.code() == Code::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(extents)
    }

    /// Compares the allocator and all counts with what the descriptors say, while changes wait.
    pub(crate) async fn verify(&self) -> Result<Verification> {
        let _gate = self.gate.write().await;
        self.barrier().await?;
        let mut tries = 0;
        let (used, owned) = loop {
            if let Some(snapshot) = self.space.snapshot() {
                break snapshot;
            }
            tries += 1;
            if tries == TRIES {
                return Err(Error::new(Code::Busy, "readers did not pause: verify again later"));
            }
            self.env.sleep(PAUSE).await;
        };
        let mut found = Verification::default();
        let mut expected = Bits::new(used.len());
        self.mark_structures(&owned, &mut expected, &mut found);
        let targets: Vec<TargetId> = self.state.lock().targets.keys().copied().collect();
        for target in targets {
            self.verify_target(target, &mut expected, &mut found).await?;
        }
        let mut at = 0;
        while let Some(block) = used.difference(&expected, at) {
            if used.contains(block) {
                found.leaked_blocks += 1;
            } else {
                found.problems.push(format!("block {block} is in use and free"));
            }
            at = block + 1;
        }
        Ok(found)
    }

    fn mark_structures(&self, owned: &[Extent], expected: &mut Bits, found: &mut Verification) {
        expected.put_range(0, SUPERBLOCKS, true);
        for extent in owned {
            mark(expected, *extent, "the log", found);
        }
        for segment in &self.state.lock().segments {
            if !owned.contains(&segment.extent) {
                found.problems.push(format!("the log's {:?} is not the log's", segment.extent));
            }
        }
    }

    async fn verify_target(
        &self,
        target: TargetId,
        expected: &mut Bits,
        found: &mut Verification,
    ) -> Result<()> {
        let (mut blocks, mut live) = (0, 0);
        for key in self.keys(target) {
            found.chunks += 1;
            let extents = match self.chunk_extents(key).await {
                Ok(extents) => extents,
                Err(error) if error.code() == Code::Corrupt => {
                    found.problems.push(error.message().to_owned());
                    continue;
                }
                Err(error) => return Err(error),
            };
            blocks += blocks_of(&extents);
            for extent in extents {
                mark(expected, extent, &key.chunk.to_string(), found);
            }
            let mut parts: Vec<_> = self
                .versions(key)
                .await?
                .0
                .iter()
                .flat_map(|h| h.stored().collect::<Vec<_>>())
                .collect();
            parts.sort_unstable();
            parts.dedup();
            live += parts.iter().map(|part| part.cost()).sum::<u64>();
        }
        let state = self.state.lock();
        let Some(known) = state.targets.get(&target) else { return Ok(()) };
        let committed = known.index.iter().map(|(_, slot)| slot.position.cost());
        let pending = known.pending.values().map(|pending| pending.position.cost());
        live += known.position.cost() + committed.sum::<u64>() + pending.sum::<u64>();
        if (blocks, live) != (known.blocks, known.live) {
            found.problems.push(format!(
                "target {target}: counts {} blocks and {} bytes of log, has {blocks} and {live}",
                known.blocks, known.live
            ));
        }
        Ok(())
    }
}

fn mark(expected: &mut Bits, extent: Extent, owner: &str, found: &mut Verification) {
    if extent.is_hole() {
        return;
    }
    if expected.find(true, extent.start, extent.end()).is_some() {
        found.problems.push(format!(
            "blocks {}..{} of {owner} have another owner",
            extent.start,
            extent.end()
        ));
    }
    expected.put_range(extent.start, u64::from(extent.count), true);
}
