//! What the key-value engine commits.

use crate::run::Bench;
use crate::sample::Sample;
use kiln_kv::Kv;
use kiln_types::{Code, Error, Result};
use std::sync::Arc;

/// About what an inode's record takes.
const VALUE: [u8; 128] = [7; 128];
/// Keys of each client.
const KEYS: u64 = 10_000;

/// An engine of this run's own.
pub(crate) struct Commits {
    pub(crate) kv: Arc<dyn Kv>,
}

impl Commits {
    /// Small read-modify-write transactions of several clients, on keys of their own: what a metadata
    /// operation commits at least.
    pub(crate) async fn measure(&self, bench: &Bench, clients: usize) -> Result<Sample> {
        let kv = Arc::clone(&self.kv);
        let commit = move |turn: crate::workers::Turn| {
            let kv = Arc::clone(&kv);
            async move {
                let key = format!("client {} {}", turn.worker, turn.own % KEYS);
                let mut transaction = kv.begin().await?;
                transaction.get(key.as_bytes()).await?;
                transaction.set(key.as_bytes(), &VALUE);
                transaction.add(b"commits", 1);
                match transaction.commit().await {
                    Err(error) if error.code() == Code::Conflict => {
                        Err(Error::internal("transactions on different keys conflict"))
                    }
                    committed => committed.map(|()| 1),
                }
            }
        };
        bench.timed(clients).tasks(commit).await
    }
}
