//! What a transaction will write, in its normal form, and how it overlays what is stored.

use crate::range_set::RangeSet;
use crate::{KEY_BYTES_MAX, KEY_END, KeyRange, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use kiln_types::{Code, Error, Result};
use std::collections::BTreeMap;

/// What happens to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The key gets this value.
    Set(Vec<u8>),
    /// The key goes away.
    Clear,
    /// The stored value is merged with these, in order.
    Merge(Vec<Merge>),
}

/// A blind change of an 8-byte number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Adds to an i64, wrapping.
    Add(i64),
    /// Raises a u64.
    Max(u64),
}

impl Merge {
    /// The value that results from `stored` (absent = 0).
    ///
    /// # Errors
    /// `Corrupt` when `stored` is not 8 bytes.
    pub fn apply(self, stored: Option<&[u8]>) -> Result<[u8; 8]> {
        let bytes: [u8; 8] = match stored {
            None => [0; 8],
            Some(bytes) => bytes.try_into().map_err(|_| {
                Error::corrupt(format!("a number has 8 bytes, the stored value {}", bytes.len()))
            })?,
        };
        Ok(match self {
            Self::Add(delta) => i64::from_le_bytes(bytes).wrapping_add(delta).to_le_bytes(),
            Self::Max(value) => u64::from_le_bytes(bytes).max(value).to_le_bytes(),
        })
    }
}

impl Write {
    /// The value that this leaves where `stored` was.
    ///
    /// # Errors
    /// `Corrupt` when a merge meets a value that is not 8 bytes.
    pub fn apply(&self, stored: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Set(value) => Ok(Some(value.clone())),
            Self::Clear => Ok(None),
            Self::Merge(merges) => {
                let mut value = stored.map(<[u8]>::to_vec);
                for merge in merges {
                    value = Some(merge.apply(value.as_deref())?.to_vec());
                }
                Ok(value)
            }
        }
    }
}

/// The writes of one transaction: the cleared ranges go first, then the keys.
#[derive(Debug, Default)]
pub struct Writes {
    keys: BTreeMap<Vec<u8>, Write>,
    cleared: RangeSet,
    conflicts: RangeSet,
    bytes: usize,
    refused: Option<Error>,
}

impl Writes {
    /// Sets a key.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        if value.len() > VALUE_BYTES_MAX {
            let message = format!("a value of {} bytes, at most {VALUE_BYTES_MAX}", value.len());
            self.refuse(Error::new(Code::TransactionTooLarge, message));
        } else if self.admit_key(key, value.len()) {
            self.keys.insert(key.to_vec(), Write::Set(value.to_vec()));
        }
    }

    /// Removes a key.
    pub fn clear(&mut self, key: &[u8]) {
        if self.admit_key(key, 0) {
            self.keys.insert(key.to_vec(), Write::Clear);
        }
    }

    /// Removes a range of keys.
    pub fn clear_range(&mut self, range: KeyRange) {
        if !self.admit_range(&range) {
            return;
        }
        let inside = self.keys.range(range.start.clone()..range.end.clone());
        let inside: Vec<_> = inside.map(|(key, _)| key.clone()).collect();
        for key in inside {
            self.keys.remove(&key);
        }
        self.cleared.insert(range.clone());
        self.conflicts.insert(range);
    }

    /// Merges into a key without reading it.
    pub fn merge(&mut self, key: &[u8], merge: Merge) {
        if !self.admit_key(key, 8) {
            return;
        }
        let resolved = match self.keys.get_mut(key) {
            Some(Write::Merge(merges)) => return push_merge(merges, merge),
            Some(Write::Set(value)) => merge.apply(Some(value)),
            Some(Write::Clear) => merge.apply(None),
            None if self.cleared.contains(key) => merge.apply(None),
            None => {
                self.keys.insert(key.to_vec(), Write::Merge(vec![merge]));
                return;
            }
        };
        match resolved {
            Ok(value) => {
                self.keys.insert(key.to_vec(), Write::Set(value.to_vec()));
            }
            Err(error) => self.refuse(error),
        }
    }

    /// Makes readers of `range` conflict.
    pub fn add_conflict(&mut self, range: KeyRange) {
        if self.admit_range(&range) {
            self.conflicts.insert(range);
        }
    }

    /// Counts `bytes` of the transaction that are not writes (its read conflicts).
    pub fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes > TRANSACTION_BYTES_MAX {
            let message = format!("a transaction above {TRANSACTION_BYTES_MAX} bytes");
            let hint = "split it into several";
            self.refuse(Error::new(Code::TransactionTooLarge, message).with_hint(hint));
        }
    }

    /// The first write that was above the limits, if any.
    ///
    /// # Errors
    /// `TransactionTooLarge`, `Invalid` or `Corrupt`.
    pub fn check(&self) -> Result<()> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    /// Whether nothing is written and no write conflict was added.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.conflicts.is_empty()
    }

    /// The bytes counted so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The ranges to clear before [`Self::keys`] are written.
    pub fn cleared(&self) -> &RangeSet {
        &self.cleared
    }

    /// The keys to write, in order.
    pub fn keys(&self) -> &BTreeMap<Vec<u8>, Write> {
        &self.keys
    }

    /// The ranges whose readers conflict with this transaction beside those of the keys.
    pub fn conflicts(&self) -> &RangeSet {
        &self.conflicts
    }

    /// Every range whose readers conflict with this transaction.
    pub fn conflict_ranges(&self) -> impl Iterator<Item = KeyRange> + '_ {
        self.conflicts.iter().chain(self.keys.keys().map(|key| KeyRange::key(key)))
    }

    /// Whether the value of `key` is decided here, whatever is stored.
    pub fn decides(&self, key: &[u8]) -> bool {
        match self.keys.get(key) {
            Some(Write::Set(_) | Write::Clear) => true,
            Some(Write::Merge(_)) => false,
            None => self.cleared.contains(key),
        }
    }

    /// The value of `key` over what is `stored`.
    ///
    /// # Errors
    /// `Corrupt` when a merge meets a value that is not 8 bytes.
    pub fn overlay(&self, key: &[u8], stored: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let stored = stored.filter(|_| !self.cleared.contains(key));
        match self.keys.get(key) {
            Some(write) => write.apply(stored),
            None => Ok(stored.map(<[u8]>::to_vec)),
        }
    }

    fn admit_key(&mut self, key: &[u8], value_bytes: usize) -> bool {
        if let Err(error) = check_key(key) {
            self.refuse(error);
        }
        self.count(key.len() + value_bytes);
        self.refused.is_none()
    }

    /// Checks and counts the bounds of a conflict range; whether it is to be kept.
    pub(crate) fn admit_range(&mut self, range: &KeyRange) -> bool {
        if let Err(error) = check_range(range) {
            self.refuse(error);
        }
        self.count(range.start.len() + range.end.len());
        self.refused.is_none() && !range.is_empty()
    }

    fn refuse(&mut self, error: Error) {
        self.refused.get_or_insert(error);
    }
}

fn push_merge(merges: &mut Vec<Merge>, merge: Merge) {
    match (merges.last_mut(), merge) {
        (Some(Merge::Add(sum)), Merge::Add(delta)) => *sum = sum.wrapping_add(delta),
        (Some(Merge::Max(most)), Merge::Max(value)) => *most = value.max(*most),
        _ => merges.push(merge),
    }
}

/// Checks that `key` may be stored.
///
/// # Errors
/// `TransactionTooLarge` for a long key, `Invalid` for an empty or reserved one.
pub fn check_key(key: &[u8]) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        let message = format!("a key of {} bytes, at most {KEY_BYTES_MAX}", key.len());
        return Err(Error::new(Code::TransactionTooLarge, message));
    }
    match key.first() {
        None => Err(Error::invalid("an empty key")),
        Some(&KEY_END) => Err(Error::invalid("a key that begins with 0xff, which is reserved")),
        Some(_) => Ok(()),
    }
}

/// Checks the bounds of a range: as long as a key and its [`successor`](crate::successor), and not
/// beyond [`KeyRange::all`].
///
/// # Errors
/// `TransactionTooLarge` for a long bound, `Invalid` for one beyond the end.
pub fn check_range(range: &KeyRange) -> Result<()> {
    let longest = range.start.len().max(range.end.len());
    if longest > KEY_BYTES_MAX + 1 {
        let message = format!("a range bound of {longest} bytes, at most {}", KEY_BYTES_MAX + 1);
        return Err(Error::new(Code::TransactionTooLarge, message));
    }
    if range.end.as_slice() > [KEY_END].as_slice() {
        return Err(Error::invalid("a range beyond the last key, which ends at 0xff"));
    }
    Ok(())
}
