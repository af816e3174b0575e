//! How a target that was away is filled again: what the commit point, its predecessor, decides.
//!
//! The target is in state syncing, behind the commit point, and takes every write meanwhile. The
//! commit point goes once through all chunks in the order of their ids, compares which versions the
//! two hold, page by page, and makes the target's chunk the same where they differ, in turn with the
//! writes of that chunk. Then it passes on the retry records and says that the target is complete; the
//! target reports itself up-to-date, and the manager lets it serve.
//!
//! Invariants:
//! - Everything happens under one version of the chain, which both check: in another one it begins
//!   anew, and finds equal what was made equal before.
//! - Once a chunk was found or made equal it stays so: both take the same writes, in the same order.
//!   What either began before this version of the chain is excluded: the target waits until it has
//!   nothing of the kind under way before it says what it holds, and the commit point compares such
//!   chunks again when they are at rest.
//! - The target's chunk is replaced only if it holds what the commit point saw there: a late copy of a
//!   message changes nothing.
//! - A retry record travels only when its write is not pending here: the record of a pending one comes
//!   with the write, so that nobody who lacks the write answers for it.
//! - What the target holds may go back: a version that the chain does not know (an operator chose
//!   another replica, or a write that was never acknowledged) goes away.

use kiln_types::rehearsal::planted;
use kiln_types::{ChunkId, Held, HeldPage};
use std::collections::BTreeMap;

/// What two pages show that begin at the same chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Chunks that are not the same, or not at rest.
    pub differing: Vec<ChunkId>,
    /// How many are the same.
    pub same: u64,
    /// The last chunk that was compared: the next pages begin behind it. `None`: all are done.
    pub last: Option<ChunkId>,
}

/// Compares what the commit point and the target hold, as far as both pages reach. Chunks in
/// `changing` count as different: those behind the last page that were being changed at the commit
/// point by what it began before this version of the chain, as it was *before* it made its page. A
/// change that ends in between is then on the page or among them.
pub fn compare(
    here: &HeldPage,
    there: &HeldPage,
    changing: impl IntoIterator<Item = ChunkId>,
) -> Compared {
    let last = match (here.last, there.last) {
        (Some(here), Some(there)) => Some(here.min(there)),
        (one, other) => one.or(other),
    };
    let covered = |chunk: ChunkId| last.is_none_or(|last| chunk <= last);
    let changing = changing.into_iter().filter(|chunk| covered(*chunk));
    let mut chunks: BTreeMap<ChunkId, [Held; 2]> = BTreeMap::new();
    for (side, page) in [here, there].into_iter().enumerate() {
        for (chunk, held) in page.chunks.iter().filter(|(chunk, _)| covered(*chunk)) {
            chunks.entry(*chunk).or_default()[side] = *held;
        }
    }
    let all = chunks.len();
    let overlooks = planted("a filling overlooks what is pending");
    chunks.retain(|_, [here, there]| {
        here != there && !(overlooks && here.committed == there.committed)
    });
    let same = (all - chunks.len()) as u64;
    let mut differing: Vec<_> = chunks.into_keys().chain(changing).collect();
    differing.sort_unstable();
    differing.dedup();
    Compared { differing, same, last }
}
