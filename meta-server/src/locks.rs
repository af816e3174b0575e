//! The locks of one inode. Pure.
//!
//! An owner holds at most one lock on each byte in each family; a new one replaces what it held there. Locks of
//! different owners exclude each other as [`Lock::excludes`] says.

use crate::records::{Record, read_flag};
use kiln_types::{
    ClientId, Code, Decoder, Encoder, Error, Lock, LockFamily, LockMode, LockOwner, LockRange,
    Result,
};

/// The most locks on one inode: its record stays far below what a value may be.
const LOCKS_MAX: usize = 1024;

/// A lock and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) client: ClientId,
    pub(crate) owner: LockOwner,
    pub(crate) lock: Lock,
}

impl Held {
    fn is_of(&self, other: &Self) -> bool {
        let family = self.lock.family == other.lock.family;
        family && self.client == other.client && self.owner == other.owner
    }

    /// The right to append is a client's; its owners are one behind the other.
    fn shares_with(&self, other: &Self) -> bool {
        let one_client = self.client == other.client;
        self.is_of(other) || one_client && self.lock.family == LockFamily::Append
    }
}

/// All locks of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Locks {
    held: Vec<Held>,
    /// Somebody was told to wait since watchers were told last that locks ended.
    pub(crate) awaited: bool,
}

impl Locks {
    /// Whether nobody holds or waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.awaited
    }

    /// Whether `client` holds a lock.
    pub(crate) fn has(&self, client: ClientId) -> bool {
        self.held.iter().any(|held| held.client == client)
    }

    /// Whose locks there are; one with several comes several times.
    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.held.iter().map(|held| held.client)
    }

    /// Somebody else's lock that excludes `wanted`.
    pub(crate) fn conflict(&self, wanted: &Held) -> Option<&Held> {
        self.held.iter().find(|held| held.lock.excludes(&wanted.lock) && !held.shares_with(wanted))
    }

    /// Takes a lock that nothing excludes. Whether others can lock more than before.
    ///
    /// # Errors
    /// `NoLocks` when there are too many; nothing has changed then.
    pub(crate) fn lock(&mut self, wanted: &Held) -> Result<bool> {
        debug_assert!(self.conflict(wanted).is_none(), "a lock that another one excludes");
        let mut next = self.clone();
        let had = next.carve(wanted, wanted.lock.range);
        let mut range = wanted.lock.range;
        next.held.retain(|held| {
            let joins = held.is_of(wanted) && held.lock.mode == wanted.lock.mode;
            let joins = joins && touches(&held.lock.range, &range);
            if joins {
                range.start = range.start.min(held.lock.range.start);
                range.last = range.last.max(held.lock.range.last);
            }
            !joins
        });
        next.held.push(Held { lock: Lock { range, ..wanted.lock }, ..*wanted });
        self.replace_by(next)?;
        Ok(had == Some(LockMode::Exclusive) && wanted.lock.mode == LockMode::Shared)
    }

    /// Ends what the owner of `of` holds in its family and range. Whether that was anything.
    ///
    /// # Errors
    /// `NoLocks` when what is left of a lock would be one lock too many; nothing has changed then.
    pub(crate) fn unlock(&mut self, of: &Held) -> Result<bool> {
        let mut next = self.clone();
        let had = next.carve(of, of.lock.range);
        self.replace_by(next)?;
        Ok(had.is_some())
    }

    /// Ends all locks of a client. Whether there were any.
    pub(crate) fn end_client(&mut self, client: ClientId) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.client != client);
        self.held.len() < before
    }

    /// Cuts `range` out of what the owner of `of` holds: the strongest mode in which it held any of it.
    fn carve(&mut self, of: &Held, range: LockRange) -> Option<LockMode> {
        let mut strongest = None;
        let mut left = Vec::new();
        self.held.retain(|held| {
            let cut = held.is_of(of) && held.lock.range.overlaps(&range);
            if cut {
                strongest = strongest.max(Some(held.lock.mode));
                left.extend(
                    outside(held.lock.range, range)
                        .map(|range| Held { lock: Lock { range, ..held.lock }, ..*held }),
                );
            }
            !cut
        });
        self.held.extend(left);
        strongest
    }

    fn replace_by(&mut self, next: Self) -> Result<()> {
        if next.held.len() > LOCKS_MAX {
            let text = format!("a file has at most {LOCKS_MAX} locks");
            return Err(Error::new(Code::NoLocks, text));
        }
        *self = next;
        Ok(())
    }
}

/// Whether two ranges overlap or are neighbours.
fn touches(one: &LockRange, other: &LockRange) -> bool {
    one.start <= other.last.saturating_add(1) && other.start <= one.last.saturating_add(1)
}

/// What of `range` lies outside of `hole`, which overlaps it.
fn outside(range: LockRange, hole: LockRange) -> impl Iterator<Item = LockRange> {
    let before = (range.start < hole.start)
        .then(|| LockRange { start: range.start, last: hole.start.saturating_sub(1) });
    let behind = (hole.last < range.last)
        .then(|| LockRange { start: hole.last.saturating_add(1), last: range.last });
    before.into_iter().chain(behind)
}

impl Record for Locks {
    const TYPE: u16 = 9;
    const WHAT: &'static str = "locks";

    fn write(&self, to: &mut Encoder) {
        to.u8(u8::from(self.awaited)).u32(self.held.len() as u32);
        for Held { client, owner, lock } in &self.held {
            to.u128(client.0).u64(owner.0).u8(lock.family as u8).u8(lock.mode as u8);
            to.u64(lock.range.start).u64(lock.range.last).u32(lock.pid);
        }
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        let awaited = read_flag(from)?;
        let count = from.u32()? as usize;
        if count > LOCKS_MAX {
            return Err(Error::corrupt(format!("{count} locks on one inode")));
        }
        let held = (0..count).map(|_| read_held(from)).collect::<Result<_>>()?;
        Ok(Self { held, awaited })
    }
}

fn read_held(from: &mut Decoder<'_>) -> Result<Held> {
    let unknown = || Error::corrupt("a lock of an unknown family or mode");
    Ok(Held {
        client: ClientId(from.u128()?),
        owner: LockOwner(from.u64()?),
        lock: Lock {
            family: LockFamily::from_number(from.u8()?).ok_or_else(unknown)?,
            mode: LockMode::from_number(from.u8()?).ok_or_else(unknown)?,
            range: LockRange { start: from.u64()?, last: from.u64()? },
            pid: from.u32()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that the model knows; the last one stands for everything behind.
    const BYTES: u64 = 8;

    type Model = std::collections::BTreeMap<(LockFamily, u128, u64, u64), LockMode>;

    fn wanted() -> impl Strategy<Value = Held> {
        let range = (0..BYTES, 0..BYTES).prop_map(|(one, other)| LockRange {
            start: one.min(other),
            last: Some(one.max(other)).filter(|last| *last < BYTES - 1).unwrap_or(u64::MAX),
        });
        let who = (1u128..3, 1u64..3);
        (who, range, any::<bool>(), any::<bool>()).prop_map(|(who, range, flock, shared)| Held {
            client: ClientId(who.0),
            owner: LockOwner(who.1),
            lock: Lock {
                family: if flock { LockFamily::Flock } else { LockFamily::Posix },
                mode: if shared { LockMode::Shared } else { LockMode::Exclusive },
                range,
                pid: 7,
            },
        })
    }

    fn bytes_of(held: &Held) -> impl Iterator<Item = (LockFamily, u128, u64, u64)> + use<> {
        let Held { client, owner, lock } = *held;
        (lock.range.start..=lock.range.last.min(BYTES - 1))
            .map(move |byte| (lock.family, client.0, owner.0, byte))
    }

    fn model_conflict(model: &Model, wanted: &Held) -> bool {
        bytes_of(wanted).any(|(family, client, owner, byte)| {
            model.iter().any(|(held, mode)| {
                let meets =
                    held.0 == family && held.3 == byte && (held.1, held.2) != (client, owner);
                let shared = *mode == LockMode::Shared && wanted.lock.mode == LockMode::Shared;
                meets && !shared
            })
        })
    }

    fn bytes_held(locks: &Locks) -> Model {
        let mut all = Model::new();
        for held in &locks.held {
            for byte in bytes_of(held) {
                assert_eq!(all.insert(byte, held.lock.mode), None, "a byte is locked twice");
            }
        }
        all
    }

    proptest! {
        #[test]
        fn locks_are_what_a_table_of_bytes_says(
            steps in proptest::collection::vec((wanted(), 0u8..8), 1..60)
        ) {
            let (mut locks, mut model) = (Locks::default(), Model::new());
            for (wanted, what) in steps {
                match what {
                    0 => {
                        let client = wanted.client;
                        let had = model.keys().any(|held| held.1 == client.0);
                        prop_assert_eq!(locks.has(client), had);
                        prop_assert_eq!(locks.end_client(client), had);
                        model.retain(|held, _| held.1 != client.0);
                    }
                    1 | 2 => {
                        let had = bytes_of(&wanted).filter(|byte| model.remove(byte).is_some()).count();
                        prop_assert_eq!(locks.unlock(&wanted), Ok(had > 0));
                    }
                    _ => {
                        let conflict = model_conflict(&model, &wanted);
                        prop_assert_eq!(locks.conflict(&wanted).is_some(), conflict);
                        if !conflict {
                            locks.lock(&wanted).unwrap();
                            model.extend(bytes_of(&wanted).map(|byte| (byte, wanted.lock.mode)));
                        }
                    }
                }
                prop_assert_eq!(&bytes_held(&locks), &model);
                prop_assert_eq!(Locks::decode(&locks.encode()), Ok(locks.clone()));
            }
        }
    }

    #[test]
    fn the_right_to_append_is_a_clients() {
        let of = |client, owner| Held {
            client: ClientId(client),
            owner: LockOwner(owner),
            lock: Lock {
                family: LockFamily::Append,
                mode: LockMode::Exclusive,
                range: LockRange::ALL,
                pid: 0,
            },
        };
        let mut locks = Locks::default();
        for owner in [1, 2] {
            assert_eq!(locks.conflict(&of(1, owner)), None);
            locks.lock(&of(1, owner)).unwrap();
        }
        assert!(locks.conflict(&of(2, 1)).is_some());
        // What one let go of, another one still has.
        locks.unlock(&of(1, 1)).unwrap();
        assert!(locks.conflict(&of(2, 1)).is_some());
        locks.unlock(&of(1, 2)).unwrap();
        assert_eq!(locks.conflict(&of(2, 1)), None);
    }

    #[test]
    fn neighbours_become_one_and_too_many_are_refused() {
        let at = |start, last, mode| Held {
            client: ClientId(1),
            owner: LockOwner(1),
            lock: Lock {
                family: LockFamily::Posix,
                mode,
                range: LockRange { start, last },
                pid: 1,
            },
        };
        let mut locks = Locks::default();
        for byte in [2, 0, 1] {
            locks.lock(&at(byte, byte, LockMode::Shared)).unwrap();
        }
        assert_eq!(locks.held, [at(0, 2, LockMode::Shared)]);
        assert_eq!(locks.lock(&at(1, 1, LockMode::Exclusive)), Ok(false));
        assert_eq!(locks.held.len(), 3);
        assert_eq!(locks.lock(&at(1, 1, LockMode::Shared)), Ok(true), "others can read it now");
        assert_eq!(locks.held, [at(0, 2, LockMode::Shared)]);
        for byte in 5..5 + LOCKS_MAX as u64 - 1 {
            locks.lock(&at(byte * 2, byte * 2, LockMode::Exclusive)).unwrap();
        }
        let before = locks.clone();
        let refused =
            [locks.lock(&at(1, 1, LockMode::Exclusive)), locks.unlock(&at(1, 1, LockMode::Shared))];
        assert!(
            refused.iter().all(|tried| tried.as_ref().is_err_and(|e| e.code() == Code::NoLocks))
        );
        assert_eq!(locks, before);
        assert!(locks.encode().len() < 90_000);
    }
}
