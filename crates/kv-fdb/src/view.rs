//! What was committed up to one version.

use crate::Shared;
use async_trait::async_trait;
use foundationdb::options::StreamingMode;
use foundationdb::{KeySelector, RangeOption, Transaction};
use kiln_kv::optimistic::{Snapshot, Visit};
use kiln_kv::{KeyRange, RangeOptions};
use kiln_types::{Error, Result};
use std::sync::Arc;

/// A consistent view of the store.
pub(crate) struct View {
    shared: Arc<Shared>,
    transaction: Transaction,
    version: u64,
}

impl View {
    /// Of everything that is committed.
    pub(crate) async fn now(shared: &Arc<Shared>) -> Result<Self> {
        let asking = shared.transaction()?;
        let version = shared.wait("read version", asking.get_read_version()).await?;
        let version = u64::try_from(version).map_err(|_| Error::internal("a read version"))?;
        let transaction = shared.transaction_at(version)?;
        Ok(Self { shared: Arc::clone(shared), transaction, version })
    }
}

#[async_trait]
impl Snapshot for View {
    fn version(&self) -> u64 {
        self.version
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.transaction.get(&self.shared.key(key), true);
        let value = self.shared.wait("read", value).await?;
        Ok(value.map(|value| value.to_vec()))
    }

    async fn scan(&self, range: &KeyRange, options: RangeOptions, visit: Visit<'_>) -> Result<()> {
        let skip = self.shared.key(&[]).len();
        let (start, end) = (self.shared.key(&range.start), self.shared.key(&range.end));
        let mut rest = Some(RangeOption {
            begin: KeySelector::first_greater_or_equal(start),
            end: KeySelector::first_greater_or_equal(end),
            mode: mode(options.limit),
            reverse: options.reverse,
            ..RangeOption::default()
        });
        let mut iteration = 1;
        while let Some(option) = rest {
            let page = self.transaction.get_range(&option, iteration, true);
            let page = self.shared.wait("range read", page).await?;
            for pair in &page {
                let key = pair.key().get(skip..).unwrap_or_default();
                if visit(key, pair.value()).is_break() {
                    return Ok(());
                }
            }
            rest = option.next_range(&page);
            iteration += 1;
        }
        Ok(())
    }
}

/// How much comes at once. Not exactly as many as are wanted: own writes may take some of them away.
fn mode(limit: usize) -> StreamingMode {
    match limit {
        0..=16 => StreamingMode::Small,
        17..=256 => StreamingMode::Medium,
        _ => StreamingMode::WantAll,
    }
}
