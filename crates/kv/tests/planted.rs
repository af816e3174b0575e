//! The conformance suite finds engines that are wrong on purpose.

use async_trait::async_trait;
use kiln_env::Executor;
use kiln_kv::conformance::{self, Case};
use kiln_kv::{KeyRange, Kv, MemoryKv, RangeOptions, Transaction};
use kiln_types::Result;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    None,
    /// Point reads cause no conflict: snapshot isolation.
    UntrackedGet,
    /// Ranges conflict only at the pairs that they returned: phantoms.
    Phantoms,
    /// `add` reads and sets, without a conflict.
    LostAdd,
    /// The first write of a commit becomes visible before the rest, and whatever becomes of it.
    Torn,
    /// A commit is reported, but did not happen, now and then.
    LostCommit,
}

struct Wrong(MemoryKv, Defect, kiln_env::Env);

struct WrongTransaction {
    inner: Box<dyn Transaction>,
    defect: Defect,
    kv: MemoryKv,
    sets: Vec<(Vec<u8>, Vec<u8>)>,
    adds: Vec<(Vec<u8>, i64)>,
    env: kiln_env::Env,
}

#[async_trait]
impl Kv for Wrong {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let (inner, kv, env) = (self.0.begin().await?, self.0.clone(), self.2.clone());
        let (sets, adds) = (Vec::new(), Vec::new());
        Ok(Box::new(WrongTransaction { inner, defect: self.1, kv, sets, adds, env }))
    }
}

#[async_trait]
impl Transaction for WrongTransaction {
    async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.defect {
            Defect::UntrackedGet => self.inner.snapshot_get(key).await,
            _ => self.inner.get(key).await,
        }
    }
    async fn snapshot_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.snapshot_get(key).await
    }
    async fn range(
        &mut self,
        range: KeyRange,
        options: RangeOptions,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if self.defect != Defect::Phantoms || options.snapshot {
            return self.inner.range(range, options).await;
        }
        let pairs = self.inner.range(range, options.snapshot()).await?;
        pairs.iter().for_each(|(key, _)| self.inner.add_read_conflict(KeyRange::key(key)));
        Ok(pairs)
    }
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.sets.push((key.to_vec(), value.to_vec()));
        self.inner.set(key, value);
    }
    fn clear(&mut self, key: &[u8]) {
        self.inner.clear(key);
    }
    fn clear_range(&mut self, range: KeyRange) {
        self.inner.clear_range(range);
    }
    fn add(&mut self, key: &[u8], delta: i64) {
        match self.defect {
            Defect::LostAdd => self.adds.push((key.to_vec(), delta)),
            _ => self.inner.add(key, delta),
        }
    }
    fn max(&mut self, key: &[u8], value: u64) {
        self.inner.max(key, value);
    }
    fn add_read_conflict(&mut self, range: KeyRange) {
        self.inner.add_read_conflict(range);
    }
    fn add_write_conflict(&mut self, range: KeyRange) {
        self.inner.add_write_conflict(range);
    }
    async fn commit(mut self: Box<Self>) -> Result<()> {
        for (key, delta) in std::mem::take(&mut self.adds) {
            let old = self.inner.snapshot_get(&key).await?;
            let old = old.and_then(|value| value.try_into().ok()).map_or(0, i64::from_le_bytes);
            self.inner.set(&key, &(old + delta).to_le_bytes());
        }
        if self.defect == Defect::LostCommit && self.env.random_below(20) == 0 {
            return Ok(());
        }
        if self.defect == Defect::Torn && self.sets.len() > 1 {
            let mut early = self.kv.begin().await?;
            early.set(&self.sets[0].0, &self.sets[0].1);
            early.commit().await?;
        }
        self.inner.commit().await
    }
}

/// Whether `exact` or `concurrent` finds the defect within a few seeds.
fn finds(defect: Defect, exact: bool) -> bool {
    (0..20).any(|seed| {
        let executor = Executor::new(seed);
        let env = executor.env();
        let run = || {
            executor.run(async move {
                let kv = Arc::new(Wrong(MemoryKv::new(&env), defect, env.clone()));
                let case = Case { kv, env, seed };
                match exact {
                    true => conformance::exact(&case).await,
                    false => conformance::concurrent(&case).await,
                }
            })
        };
        !matches!(catch_unwind(AssertUnwindSafe(run)), Ok(Ok(())))
    })
}

#[test]
fn defects_are_found() {
    assert!(!finds(Defect::None, true) && !finds(Defect::None, false));
    for defect in [Defect::UntrackedGet, Defect::Phantoms] {
        assert!(finds(defect, true), "exact misses {defect:?}");
        assert!(finds(defect, false), "concurrent misses {defect:?}");
    }
    for defect in [Defect::LostAdd, Defect::Torn, Defect::LostCommit] {
        assert!(finds(defect, false), "concurrent misses {defect:?}");
    }
}
