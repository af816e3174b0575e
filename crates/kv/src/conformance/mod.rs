//! What every engine has to do, as one suite that any engine runs.
//!
//! [`exact`] fixes, case by case, which transactions conflict, what the limits are and what reads
//! return; it wants an engine without injected faults. [`concurrent`] runs random transactions side by
//! side and checks what came out; it also runs with faults injected. Every check keeps to keys of its
//! own, so that all share one store; a failure names the seed.

mod accounts;
mod conflicts;
mod counters;
mod limits;
mod lists;
mod model;

pub use limits::cleared_keys;

use crate::{KeyRange, Kv, RangeOptions, Transaction, transact};
use kiln_env::Env;
use kiln_types::{Context, Error, Result};
use std::future::Future;
use std::sync::Arc;

/// One engine under test, and the seed of everything random.
#[derive(Clone)]
pub struct Case {
    /// The engine.
    pub kv: Arc<dyn Kv>,
    /// The seams that it runs on.
    pub env: Env,
    /// Decides everything random in the checks.
    pub seed: u64,
}

/// Which transactions conflict, limits, and random operations of one client against a model.
///
/// # Errors
/// What the engine reports where it should not.
///
/// # Panics
/// When the engine does not behave.
pub async fn exact(case: &Case) -> Result<()> {
    let all = async {
        conflicts::run(case).await.context("conflicts")?;
        limits::run(case).await.context("limits")?;
        model::run(case).await.context("model")
    };
    all.await.context(format_args!("seed {}", case.seed))
}

/// Random concurrent transactions, checked for strict serializability, and the invariants that only
/// serializable transactions keep.
///
/// # Errors
/// What the engine reports where it should not.
///
/// # Panics
/// When the engine does not behave.
pub async fn concurrent(case: &Case) -> Result<()> {
    let all = async {
        lists::run(case).await.context("lists")?;
        accounts::transfers(case).await.context("transfers")?;
        accounts::write_skew(case).await.context("write skew")?;
        accounts::phantoms(case).await.context("phantoms")?;
        counters::run(case).await.context("counters")
    };
    all.await.context(format_args!("seed {}", case.seed))
}

impl Case {
    fn random(&self, salt: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt)
    }

    /// A key prefix that no other check and no other seed has.
    fn prefix(&self, check: u8) -> Vec<u8> {
        crate::KeyWriter::new().u8(b'~').u8(check).u64(self.seed).finish()
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        self.kv.begin().await
    }

    /// What is in a range, however often reading it fails on the way.
    async fn pairs(&self, range: &KeyRange) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        transact(&*self.kv, &self.env, "look", |tx| {
            Box::pin(tx.range(range.clone(), RangeOptions::default()))
        })
        .await
    }

    /// Runs `count` tasks side by side, and returns what each returned.
    async fn side_by_side<T, F>(&self, count: usize, task: impl Fn(usize) -> F) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let tasks: Vec<_> = (0..count).map(|at| self.env.spawn("conformance", task(at))).collect();
        let mut outputs = Vec::new();
        for task in tasks {
            outputs.push(task.join().await??);
        }
        Ok(outputs)
    }
}

fn key(prefix: &[u8], name: impl AsRef<[u8]>) -> Vec<u8> {
    [prefix, name.as_ref()].concat()
}

fn number(value: Option<Vec<u8>>) -> Result<i64> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value.try_into().map_err(|_| Error::corrupt("a number is not 8 bytes"))?;
    Ok(i64::from_le_bytes(bytes))
}
