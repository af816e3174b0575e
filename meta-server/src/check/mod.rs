//! Is a tree as it has to be? Reads all of it, says what is wrong, and sets it right when it is told to.
//!
//! [`tables`] keep about 100 bytes for each inode and 40 for each name in memory; [`judge`] is pure.

mod judge;
mod repair;
mod tables;
#[cfg(test)]
mod tests;

pub use judge::Kind;

use crate::chunks::{ChunkFile, ChunkService, ChunkSpace, Removal};
use crate::moving;
use crate::name::NameHash;
use crate::placement::{Table, Tables as ChainTables};
use crate::records::{Format, Record};
use crate::store::{Settings, Store, StoreParts};
use async_trait::async_trait;
use judge::{Repair, Wrong};
use kiln_env::Env;
use kiln_kv::{Kv, transact};
use kiln_types::{ChainId, Code, Error, InodeId, Layout, Result, TruncateEpoch};
use kiln_wire::CapabilityKey;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tables::{KEYS, Tables};

/// How long what is under way gets to settle before it is looked at again.
const SETTLE: Duration = Duration::from_secs(2);
/// One repair may show what another one hid: so often all is looked at.
const PASSES_MAX: u32 = 8;

/// Checks the tree in a store.
pub struct Checker {
    kv: Arc<dyn Kv>,
    env: Env,
    key: CapabilityKey,
}

/// Something that is, or was, wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// The inode, when it is about one.
    pub inode: Option<InodeId>,
    /// A path of it, when there is one.
    pub path: Option<Vec<u8>>,
    /// What is wrong.
    pub why: String,
    /// Whether it has been set right.
    pub repaired: bool,
    /// Whether `--repair` can.
    pub repairable: bool,
}

/// What a check came to.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Inodes that there are.
    pub inodes: u64,
    /// Names that there are.
    pub names: u64,
    /// Pairs in the store.
    pub pairs: u64,
    /// What is wrong, and what was.
    pub findings: Vec<Finding>,
}

impl Checker {
    /// A checker of the tree in `kv`; `key` as the servers' over it.
    pub fn new(kv: Arc<dyn Kv>, env: &Env, key: CapabilityKey) -> Self {
        Self { kv, env: env.clone(), key }
    }

    /// Looks at everything. Servers may go on meanwhile: what seems wrong is looked at again.
    ///
    /// # Errors
    /// `NotFound` when there is no tree, or what kv reports.
    pub async fn check(&self) -> Result<Checked> {
        let (mut tables, mut wrong) = self.look().await?;
        if !wrong.is_empty() && !self.kv.is_exclusive() {
            self.env.sleep(SETTLE).await;
            let (again, still) = self.look().await?;
            let still: BTreeSet<Wrong> = still.into_iter().collect();
            wrong.retain(|found| still.contains(found));
            tables = again;
        }
        let (mut checked, store) = (counted(&tables), self.store().await?);
        for found in &wrong {
            checked.findings.push(finding(&store, found, false).await);
        }
        Ok(checked)
    }

    /// Looks at everything and sets it right. No server runs over the store meanwhile.
    ///
    /// # Errors
    /// As [`check`](Self::check), and `Busy` when the tree may not be changed here.
    pub async fn repair(&self) -> Result<Checked> {
        // Where there is no tree none is made.
        self.names().await?;
        moving::begin_repair(&*self.kv, &self.env).await?;
        let (store, mut repaired) = (self.store().await?, Vec::new());
        let mut passes = 0;
        let mut checked = loop {
            let (tables, wrong) = self.look().await?;
            passes += 1;
            if passes > PASSES_MAX || wrong.iter().all(|found| found.repair == Repair::None) {
                let mut checked = counted(&tables);
                for found in &wrong {
                    checked.findings.push(finding(&store, found, false).await);
                }
                break checked;
            }
            for found in wrong.iter().filter(|found| found.repair != Repair::None) {
                repaired.push(finding(&store, found, true).await);
                repair::repair(&store, &found.repair).await?;
            }
        };
        checked.findings.splice(0..0, repaired);
        moving::end_repair(&*self.kv, &self.env).await?;
        Ok(checked)
    }

    async fn look(&self) -> Result<(Tables, Vec<Wrong>)> {
        look(&*self.kv, &self.env, self.names().await?).await
    }

    /// Where names lie in this tree.
    async fn names(&self) -> Result<NameHash> {
        let format = transact(&*self.kv, &self.env, "check", |tx| {
            Box::pin(async move {
                moving::check_whole(tx).await?;
                tx.get(&KEYS.format()).await
            })
        });
        let format = format.await?;
        let format = format
            .ok_or_else(|| Error::new(Code::NotFound, "there is no metadata in this store"))?;
        Ok(NameHash::new(Format::decode(&format)?.hash_key))
    }

    /// The tree, for those who know how its parts hang together.
    async fn store(&self) -> Result<Store> {
        let parts = StoreParts {
            kv: Arc::clone(&self.kv),
            env: self.env.clone(),
            chunks: Arc::new(NoStorage),
            tables: Arc::new(NoStorage),
            key: self.key.clone(),
        };
        Store::open_to_repair(parts, Settings::default()).await
    }
}

/// Reads the whole tree, and what is wrong with it.
pub(crate) async fn look(kv: &dyn Kv, env: &Env, names: NameHash) -> Result<(Tables, Vec<Wrong>)> {
    let (mut tables, mut last) = (Tables::new(names), None::<Vec<u8>>);
    loop {
        let page = moving::page(kv, env, last.as_deref()).await?;
        let Some((end, _)) = page.last() else { break };
        last = Some(end.clone());
        page.into_iter().for_each(|(key, value)| tables.take(key, &value));
    }
    let wrong = judge::judge(&tables);
    Ok((tables, wrong))
}

fn counted(tables: &Tables) -> Checked {
    let (inodes, names) = (tables.inodes.len() as u64, tables.entries.len() as u64);
    Checked { inodes, names, pairs: tables.pairs, findings: Vec::new() }
}

async fn finding(store: &Store, wrong: &Wrong, repaired: bool) -> Finding {
    let path = match wrong.inode {
        // Without one when its way up is what is wrong: it is shown by its number.
        Some(inode) => store.path_of(inode).await.ok().flatten(),
        None => None,
    };
    let repairable = wrong.repair != Repair::None;
    let (kind, inode, why) = (wrong.kind, wrong.inode, wrong.why.clone());
    Finding { kind, inode, path, why, repaired, repairable }
}

/// A check asks no storage server.
struct NoStorage;

impl ChainTables for NoStorage {
    fn newest(&self) -> Option<Table> {
        None
    }
}

fn no_storage() -> Error {
    Error::new(Code::Unreachable, "a check of the metadata asks no storage server")
}

#[async_trait]
impl ChunkService for NoStorage {
    async fn truncate_chunk(
        &self,
        _file: &ChunkFile,
        _index: u64,
        _length: u32,
        _epoch: TruncateEpoch,
        _floor: TruncateEpoch,
    ) -> Result<()> {
        Err(no_storage())
    }

    fn chains(&self, _layout: &Layout) -> Result<BTreeSet<ChainId>> {
        Err(no_storage())
    }

    async fn remove_chunks(&self, _chain: ChainId, removals: &[Removal]) -> Vec<Result<()>> {
        removals.iter().map(|_| Err(no_storage())).collect()
    }

    async fn stored_end(&self, _file: &ChunkFile, _floors: &[(u64, TruncateEpoch)]) -> Result<u64> {
        Err(no_storage())
    }

    async fn space(&self) -> Result<ChunkSpace> {
        Err(no_storage())
    }
}
