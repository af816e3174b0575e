//! Invariants that only serializable transactions keep.

use super::{Case, key, number};
use crate::{KeyRange, RangeOptions, transact};
use kiln_types::Result;

const ACCOUNTS: u8 = 8;
const START: i64 = 100;

/// Transfers between accounts, each applied once whatever is retried, and auditors that always see the
/// same sum and never an overdraft.
pub(super) async fn transfers(case: &Case) -> Result<()> {
    let prefix = &case.prefix(6);
    transact(&*case.kv, &case.env, "open accounts", |tx| {
        Box::pin(async move {
            for account in 0..ACCOUNTS {
                tx.set(&key(prefix, [account]), &START.to_le_bytes());
            }
            Ok(())
        })
    })
    .await?;
    let tasks = case.side_by_side(6, |task| {
        let (case, prefix) = (case.clone(), prefix.clone());
        async move {
            let mut random = case.random(600 + task as u64);
            for at in 0..20u8 {
                match task {
                    0 => audit(&case, &prefix).await?,
                    _ => transfer(&case, &prefix, [0xfe, task as u8, at], &mut random).await?,
                }
            }
            Ok(())
        }
    });
    tasks.await?;
    audit(case, prefix).await
}

async fn transfer(
    case: &Case,
    prefix: &[u8],
    id: [u8; 3],
    random: &mut fastrand::Rng,
) -> Result<()> {
    let (from, to) = (random.u8(..ACCOUNTS), random.u8(..ACCOUNTS));
    let amount = random.i64(1..40);
    transact(&*case.kv, &case.env, "transfer", |tx| {
        Box::pin(async move {
            let (done, from, to) = (key(prefix, id), key(prefix, [from]), key(prefix, [to]));
            let balance = number(tx.get(&from).await?)?;
            if tx.get(&done).await?.is_some() || balance < amount || from == to {
                return Ok(());
            }
            let other = number(tx.get(&to).await?)?;
            tx.set(&from, &(balance - amount).to_le_bytes());
            tx.set(&to, &(other + amount).to_le_bytes());
            tx.set(&done, b"");
            Ok(())
        })
    })
    .await
}

async fn audit(case: &Case, prefix: &[u8]) -> Result<()> {
    let range = &KeyRange::new(prefix, key(prefix, [ACCOUNTS]));
    let balances = transact(&*case.kv, &case.env, "audit", |tx| {
        Box::pin(async move { tx.range(range.clone(), RangeOptions::default()).await })
    });
    let mut sum = 0;
    for (_, value) in balances.await? {
        let balance = number(Some(value))?;
        assert!(balance >= 0, "seed {}: an overdraft of {balance}", case.seed);
        sum += balance;
    }
    assert_eq!(sum, START * i64::from(ACCOUNTS), "seed {}: the sum", case.seed);
    Ok(())
}

/// Of two on duty, each may leave while the other one stays: never both.
pub(super) async fn write_skew(case: &Case) -> Result<()> {
    for round in 0..10u8 {
        let prefix = &key(&case.prefix(7), [round]);
        transact(&*case.kv, &case.env, "begin duty", |tx| {
            Box::pin(async move {
                tx.set(&key(prefix, [0]), b"on duty");
                tx.set(&key(prefix, [1]), b"on duty");
                Ok(())
            })
        })
        .await?;
        let leavers = case.side_by_side(2, |me| {
            let (case, prefix) = (case.clone(), prefix.clone());
            async move {
                let (mine, other) = (&key(&prefix, [me as u8]), &key(&prefix, [1 - me as u8]));
                transact(&*case.kv, &case.env, "leave duty", |tx| {
                    Box::pin(async move {
                        if tx.get(other).await?.is_some() {
                            tx.clear(mine);
                        }
                        Ok(())
                    })
                })
                .await
            }
        });
        leavers.await?;
        let left = case.pairs(&KeyRange::prefix(prefix)).await?;
        assert_eq!(left.len(), 1, "seed {}: round {round}", case.seed);
    }
    Ok(())
}

/// Everyone counts a range and adds a key when it holds fewer than three: never more than three, while
/// someone else clears the range now and then.
pub(super) async fn phantoms(case: &Case) -> Result<()> {
    const MOST: usize = 3;
    let prefix = case.prefix(8);
    let tasks = case.side_by_side(6, |task| {
        let (case, prefix) = (case.clone(), prefix.clone());
        async move {
            let mut random = case.random(800 + task as u64);
            let (range, prefix) = (&KeyRange::prefix(&prefix), &prefix);
            for at in 0..15u8 {
                let clears = task == 0 && random.bool();
                let limit = if random.bool() { MOST } else { usize::MAX };
                let options = RangeOptions { limit, reverse: random.bool(), snapshot: false };
                transact(&*case.kv, &case.env, "add below a limit", |tx| {
                    Box::pin(async move {
                        if clears {
                            tx.clear_range(range.clone());
                        }
                        if tx.range(range.clone(), options).await?.len() < MOST {
                            tx.set(&key(prefix, [task as u8, at]), b"");
                        }
                        Ok(())
                    })
                })
                .await?;
                let count = case.pairs(range).await?.len();
                assert!(count <= MOST, "seed {}: {count} keys", case.seed);
            }
            Ok(())
        }
    });
    tasks.await.map(drop)
}
