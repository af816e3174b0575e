use super::*;
use crate::chunks::ChunkFile;
use kiln_types::{ChunkVersion, InodeId, Layout, Redundancy, TreeId, TruncateEpoch};
use kiln_wire::Listed;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: usize = 7;

fn removal(inode: u64, range: Range<u64>, below: u64) -> Removal {
    let layout = Layout {
        table: 1.into(),
        table_version: 1,
        chunk_bytes: 1 << 20,
        stripe: 3,
        base: 0,
        seed: 0,
        redundancy: Redundancy::Replicated,
    };
    let file = ChunkFile { tree: TreeId::MAIN, inode: InodeId(inode), layout };
    Removal { file, range, below: TruncateEpoch(below) }
}

/// A chain's chunks: inode and index, and the epoch.
#[derive(Default)]
struct Chain {
    chunks: BTreeMap<(u64, u64), u64>,
    /// Listings that meet one of its chunks fail.
    rotten: Option<u64>,
    /// After so many requests nothing is answered.
    left: Option<usize>,
    listings: usize,
}

impl Chain {
    fn answer(&mut self) -> Result<()> {
        match &mut self.left {
            Some(0) => Err(Error::from(Code::DeadlineExceeded)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn list(&mut self, run: &Run) -> Result<Listing> {
        self.answer()?;
        self.listings += 1;
        let key = |chunk: ChunkId| chunk.as_file().map(|(_, inode, index)| (inode.0, index));
        let range = key(run.from).expect("a file")..key(run.to).expect("a file");
        let page: Vec<_> = self.chunks.range(range).take(PAGE).collect();
        if page.iter().any(|((inode, _), _)| Some(*inode) == self.rotten) {
            return Err(Error::from(Code::Corrupt));
        }
        let chunk = |(inode, index)| ChunkId::file(TreeId::MAIN, InodeId(inode), index);
        let listed = |(key, epoch): &(&(u64, u64), &u64)| Listed {
            chunk: chunk(**key),
            version: ChunkVersion::NONE,
            epoch: TruncateEpoch(**epoch),
            length: 1,
            pending: false,
        };
        let last = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| chunk(**key));
        Ok(Listing { chunks: page.iter().map(listed).collect(), last })
    }

    fn sweep(&mut self, removals: &[Removal]) -> Vec<Result<()>> {
        let mut sweep = Sweep::new(removals);
        loop {
            match sweep.next(4) {
                Step::List(runs) => {
                    for run in runs {
                        let listing = self.list(&run);
                        sweep.listed(run, listing);
                    }
                }
                Step::Remove(doomed) => {
                    assert!(doomed.len() <= 4);
                    for doomed in doomed {
                        let inode = removals[doomed.removal].file.inode.0;
                        let outcome = self.answer();
                        if outcome.is_ok() {
                            // Two removals may be of one file: what is removed twice is removed.
                            self.chunks.remove(&(inode, doomed.index));
                        }
                        sweep.removed(doomed, outcome);
                    }
                }
                Step::Done => return sweep.outcomes(),
            }
        }
    }
}

#[test]
fn what_is_told_to_be_removed_is_and_nothing_else_goes() {
    for seed in 0..500 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut chain = Chain::default();
        for _ in 0..200 {
            chain.chunks.insert((random.u64(..40), random.u64(..20)), random.u64(..4));
        }
        let mut named = BTreeMap::new();
        for _ in 0..random.usize(1..60) {
            let start = if random.bool() { 0 } else { random.u64(..20) };
            let end = if random.u8(..4) > 0 { u64::MAX } else { random.u64(start..25) };
            let below = if random.bool() { u64::MAX } else { random.u64(..5) };
            named.insert((random.u64(..40), below), start..end);
        }
        let removals: Vec<_> =
            named.into_iter().map(|((inode, below), range)| removal(inode, range, below)).collect();
        let go = |removal: &Removal, (inode, index): &(u64, u64), epoch: &u64| {
            let Removal { file, range, below } = removal;
            file.inode.0 == *inode && range.contains(index) && *epoch < below.0
        };
        let before = chain.chunks.clone();
        let stays: BTreeSet<_> = before
            .iter()
            .filter(|(key, epoch)| !removals.iter().any(|removal| go(removal, key, epoch)))
            .map(|(key, _)| *key)
            .collect();
        chain.rotten = (random.u8(..3) == 0).then(|| random.u64(..40));
        chain.left = (random.u8(..3) == 0).then(|| random.usize(..100));
        let outcomes = chain.sweep(&removals);
        for (removal, outcome) in removals.iter().zip(outcomes) {
            let left = chain.chunks.iter().filter(|(key, epoch)| go(removal, key, epoch)).count();
            assert!(left == 0 || outcome.is_err(), "{removal:?}: {left} chunks stay unnoticed");
            let may_fail = chain.left == Some(0) || chain.rotten == Some(removal.file.inode.0);
            assert!(outcome.is_ok() || may_fail, "{removal:?}: {outcome:?}");
        }
        assert!(stays.iter().all(|key| chain.chunks.contains_key(key)));
        (chain.rotten, chain.left) = (None, None);
        assert!(chain.sweep(&removals).iter().all(Result::is_ok));
        assert_eq!(chain.chunks.keys().copied().collect::<BTreeSet<_>>(), stays);
    }
}

#[test]
fn files_whose_inodes_follow_each_other_are_listed_together() {
    let mut chain = Chain::default();
    let removals: Vec<_> = (10..200).map(|n| removal(n, 0..u64::MAX, u64::MAX)).collect();
    assert!(chain.sweep(&removals).iter().all(Result::is_ok));
    assert_eq!(chain.listings, 1);
}
