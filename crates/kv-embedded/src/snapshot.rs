//! Reading the tree at one moment.

use async_trait::async_trait;
use fjall::{Keyspace, Readable, Snapshot};
use kiln_kv::optimistic::Visit;
use kiln_kv::{KeyRange, RangeOptions};
use kiln_types::{Code, Error, Result};

/// The tree as it was when `version` became durable.
pub(crate) struct Published {
    pub(crate) version: u64,
    pub(crate) keyspace: Keyspace,
    pub(crate) snapshot: Snapshot,
}

impl Published {
    /// The value of `key`.
    pub(crate) fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.snapshot.get(&self.keyspace, key);
        Ok(value.map_err(|error| failed("read", &error))?.map(|value| value.to_vec()))
    }

    /// Shows the pairs of a range to `visit` until it breaks.
    pub(crate) fn show(&self, range: &KeyRange, reverse: bool, visit: Visit<'_>) -> Result<()> {
        let bounds = range.start.as_slice()..range.end.as_slice();
        let mut pairs = self.snapshot.range(&self.keyspace, bounds);
        let mut next = || if reverse { pairs.next_back() } else { pairs.next() };
        while let Some(pair) = next() {
            let (key, value) = pair.into_inner().map_err(|error| failed("read", &error))?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Up to `most` keys of a range that `counts` accepts, in order.
    pub(crate) fn keys(
        &self,
        range: &KeyRange,
        most: usize,
        counts: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let bounds = range.start.as_slice()..range.end.as_slice();
        let mut keys = Vec::new();
        for pair in self.snapshot.range(&self.keyspace, bounds) {
            if keys.len() == most {
                break;
            }
            let key = pair.key().map_err(|error| failed("read", &error))?;
            if counts(&key) {
                keys.push(key.to_vec());
            }
        }
        Ok(keys)
    }
}

#[async_trait]
impl kiln_kv::optimistic::Snapshot for Published {
    fn version(&self) -> u64 {
        self.version
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.value(key)
    }

    async fn scan(&self, range: &KeyRange, options: RangeOptions, visit: Visit<'_>) -> Result<()> {
        self.show(range, options.reverse, visit)
    }
}

/// The error of an open store whose disk or data fails.
pub(crate) fn failed(what: &str, error: &fjall::Error) -> Error {
    let hint = "check the disk and the kernel's log, then restart the server; it recovers everything \
                that was acknowledged";
    match error {
        fjall::Error::Io(_)
        | fjall::Error::Poisoned
        | fjall::Error::Storage(fjall::LsmError::Io(_)) => {
            Error::new(Code::DiskFailed, format!("{what}: {error:?}")).with_hint(hint)
        }
        _ => Error::corrupt(format!("{what}: {error:?}")).with_hint("restore from a backup"),
    }
}
