//! Random operations of one client, against an ordered map.

use super::{Case, key};
use crate::{KeyRange, RangeOptions, Transaction};
use kiln_types::Result;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const TRANSACTIONS: usize = 60;

pub(super) async fn run(case: &Case) -> Result<()> {
    let prefix = case.prefix(4);
    let mut random = case.random(4);
    let mut model = Model::new();
    for _ in 0..TRANSACTIONS {
        let mut tx = case.begin().await?;
        let mut own = model.clone();
        for _ in 0..random.usize(..12) {
            step(tx.as_mut(), &mut own, &prefix, &mut random, case.seed).await?;
        }
        if random.u8(..4) > 0 {
            tx.commit().await?;
            model = own;
        }
    }
    let mut tx = case.begin().await?;
    let stored = tx.range(KeyRange::prefix(&prefix), RangeOptions::default()).await?;
    assert_eq!(stored, model.into_iter().collect::<Vec<_>>(), "seed {}", case.seed);
    Ok(())
}

async fn step(
    tx: &mut dyn Transaction,
    model: &mut Model,
    prefix: &[u8],
    random: &mut fastrand::Rng,
    seed: u64,
) -> Result<()> {
    // Few keys, some of them prefixes of others.
    let any_key = |random: &mut fastrand::Rng| {
        let letters = [b'a' + random.u8(..4), b'a' + random.u8(..3)];
        key(prefix, &letters[..random.usize(1..=2)])
    };
    let (one, two) = (any_key(random), any_key(random));
    let range = KeyRange::new(one.clone().min(two.clone()), two.max(one.clone()));
    match random.u8(..10) {
        0 => assert_eq!(tx.get(&one).await?.as_ref(), model.get(&one), "seed {seed}"),
        1 => assert_eq!(tx.snapshot_get(&one).await?.as_ref(), model.get(&one), "seed {seed}"),
        2 | 3 => {
            let limit = if random.bool() { random.usize(..5) } else { usize::MAX };
            let options = RangeOptions { limit, reverse: random.bool(), snapshot: random.bool() };
            let pairs = model.range(range.start.clone()..range.end.clone());
            let mut pairs: Vec<_> = pairs.map(|(k, v)| (k.clone(), v.clone())).collect();
            if options.reverse {
                pairs.reverse();
            }
            pairs.truncate(limit);
            assert_eq!(tx.range(range, options).await?, pairs, "seed {seed}: {options:?}");
        }
        4 | 5 => {
            let value = random.u64(..).to_le_bytes();
            tx.set(&one, &value);
            model.insert(one, value.to_vec());
        }
        6 => {
            tx.clear(&one);
            model.remove(&one);
        }
        7 => {
            tx.clear_range(range.clone());
            model.retain(|key, _| !range.contains(key));
        }
        8 => {
            let delta = random.i64(..);
            tx.add(&one, delta);
            change(model, one, |old| i64::from_le_bytes(old).wrapping_add(delta).to_le_bytes());
        }
        _ => {
            let value = random.u64(..);
            tx.max(&one, value);
            change(model, one, |old| u64::from_le_bytes(old).max(value).to_le_bytes());
        }
    }
    Ok(())
}

fn change(model: &mut Model, key: Vec<u8>, new: impl FnOnce([u8; 8]) -> [u8; 8]) {
    let old = model.get(&key).and_then(|value| value.as_slice().try_into().ok());
    model.insert(key, new(old.unwrap_or_default()).to_vec());
}
