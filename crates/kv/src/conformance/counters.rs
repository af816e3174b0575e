//! Blind additions and maxima: nothing is lost, nobody conflicts.

use super::{Case, key, number};
use crate::KeyRange;
use kiln_types::{Code, Result};
use std::collections::BTreeMap;

const TASKS: usize = 6;
const EACH: u64 = 25;

/// What one task knows about its additions.
#[derive(Default)]
struct Sum {
    certain: i64,
    /// Sums of the positive and of the negative deltas whose commit was `MaybeCommitted`.
    uncertain: (i64, i64),
    highest: u64,
    highest_uncertain: u64,
}

pub(super) async fn run(case: &Case) -> Result<()> {
    let prefix = case.prefix(9);
    let tasks = case.side_by_side(TASKS, |task| {
        let (case, prefix) = (case.clone(), prefix.clone());
        async move { add(&case, &prefix, task as u64).await }
    });
    let sums = tasks.await?;
    let numbers: BTreeMap<_, _> =
        case.pairs(&KeyRange::prefix(&prefix)).await?.into_iter().collect();
    let sum = number(numbers.get(&key(&prefix, "sum")).cloned())?;
    let highest = number(numbers.get(&key(&prefix, "max")).cloned())? as u64;
    let certain: i64 = sums.iter().map(|sum| sum.certain).sum();
    let least = certain + sums.iter().map(|sum| sum.uncertain.1).sum::<i64>();
    let most = certain + sums.iter().map(|sum| sum.uncertain.0).sum::<i64>();
    let seed = case.seed;
    assert!((least..=most).contains(&sum), "seed {seed}: {sum} is not in {least}..={most}");
    let least = sums.iter().map(|sum| sum.highest).max().unwrap_or(0);
    let most = sums.iter().map(|sum| sum.highest_uncertain).max().unwrap_or(0).max(least);
    let is_known = (least..=most).contains(&highest);
    assert!(is_known, "seed {seed}: {highest} is not in {least}..={most}");
    Ok(())
}

async fn add(case: &Case, prefix: &[u8], task: u64) -> Result<Sum> {
    let mut random = case.random(900 + task);
    let mut known = Sum::default();
    for _ in 0..EACH {
        let (delta, value) = (random.i64(-50..50), random.u64(..1 << 40));
        let mut tx = case.begin().await?;
        tx.add(&key(prefix, "sum"), delta);
        tx.max(&key(prefix, "max"), value);
        match tx.commit().await {
            Ok(()) => {
                known.certain += delta;
                known.highest = known.highest.max(value);
            }
            Err(error) if error.code() == Code::MaybeCommitted => {
                known.uncertain.0 += delta.max(0);
                known.uncertain.1 += delta.min(0);
                known.highest_uncertain = known.highest_uncertain.max(value);
            }
            // Only an engine with faults injected may say so: `exact` checks that blind writes do not.
            Err(error) if matches!(error.code(), Code::Conflict | Code::TransactionTooOld) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(known)
}
