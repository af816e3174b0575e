//! The limits, and the codes that tell of them.

use super::{Case, key};
use crate::{
    CLEARED_KEYS_MAX, KEY_BYTES_MAX, KeyRange, RangeOptions, TRANSACTION_BYTES_MAX,
    TRANSACTION_TIME_MAX, Transaction, VALUE_BYTES_MAX,
};
use kiln_types::{Code, Result};
use std::time::Duration;

pub(super) async fn run(case: &Case) -> Result<()> {
    let prefix = case.prefix(2);
    let longest = key(&prefix, vec![b'k'; KEY_BYTES_MAX - prefix.len()]);
    let too_long = key(&longest, "k");
    let largest = vec![7; VALUE_BYTES_MAX];
    expect(case, None, |tx| tx.set(&longest, &largest)).await?;
    let mut tx = case.begin().await?;
    assert_eq!(tx.get(&longest).await?.as_deref(), Some(&largest[..]));
    let pairs = tx.range(KeyRange::key(&longest), RangeOptions::default()).await?;
    assert_eq!(pairs.len(), 1);
    let code = tx.get(&too_long).await.map_err(|error| error.code());
    assert_eq!(code, Err(Code::TransactionTooLarge));
    assert_eq!(tx.get(b"").await.map_err(|error| error.code()), Err(Code::Invalid));

    let large = Some(Code::TransactionTooLarge);
    expect(case, large, |tx| tx.set(&too_long, b"")).await?;
    expect(case, large, |tx| tx.clear(&too_long)).await?;
    expect(case, large, |tx| tx.set(&longest, &vec![7; VALUE_BYTES_MAX + 1])).await?;
    expect(case, Some(Code::Invalid), |tx| tx.set(b"", b"")).await?;
    expect(case, Some(Code::Invalid), |tx| tx.add(b"\xffkey", 1)).await?;
    expect(case, Some(Code::Invalid), |tx| tx.clear_range(KeyRange::new(b"a", b"\xff\0"))).await?;
    expect(case, Some(Code::Corrupt), |tx| tx.add(&longest, 1)).await?;

    let write_many = |tx: &mut dyn Transaction, count: usize| {
        for at in 0..count {
            tx.set(&key(&prefix, at.to_string()), &largest);
        }
    };
    let most = TRANSACTION_BYTES_MAX / (VALUE_BYTES_MAX + prefix.len() + 4);
    expect(case, None, |tx| write_many(tx, most)).await?;
    expect(case, large, |tx| write_many(tx, most + 1)).await?;
    let mut tx = case.begin().await?;
    assert_eq!(tx.get(&key(&prefix, most.to_string())).await?, None, "all or nothing");
    expect(case, None, |tx| tx.clear_range(KeyRange::prefix(&prefix))).await?;
    age(case, &prefix).await
}

/// Commits what `body` writes and expects a code, or success.
async fn expect(
    case: &Case,
    code: Option<Code>,
    body: impl FnOnce(&mut dyn Transaction),
) -> Result<()> {
    let mut tx = case.begin().await?;
    body(tx.as_mut());
    let outcome = tx.commit().await;
    let context = format!("seed {}: {outcome:?}", case.seed);
    assert_eq!(outcome.err().map(|error| error.code()), code, "{context}");
    Ok(())
}

async fn age(case: &Case, prefix: &[u8]) -> Result<()> {
    let mut tx = case.begin().await?;
    tx.set(&key(prefix, "old"), b"");
    case.env.sleep(TRANSACTION_TIME_MAX + Duration::from_millis(20)).await;
    let old = Some(Code::TransactionTooOld);
    assert_eq!(tx.get(prefix).await.err().map(|error| error.code()), old);
    assert_eq!(tx.commit().await.err().map(|error| error.code()), old);
    let mut tx = case.begin().await?;
    assert_eq!(tx.get(&key(prefix, "old")).await?, None);
    Ok(())
}

/// `clear_range` removes up to [`CLEARED_KEYS_MAX`] keys and refuses more; a check of its own, since it
/// writes as many.
///
/// # Errors
/// What the engine reports where it should not.
///
/// # Panics
/// When the engine does not behave.
pub async fn cleared_keys(case: &Case) -> Result<()> {
    let prefix = case.prefix(3);
    let all = KeyRange::prefix(&prefix);
    let name = |at: usize| key(&prefix, u32::try_from(at).unwrap_or(0).to_be_bytes());
    for page in (0..=CLEARED_KEYS_MAX).collect::<Vec<_>>().chunks(20_000) {
        let mut tx = case.begin().await?;
        page.iter().for_each(|at| tx.set(&name(*at), b""));
        tx.commit().await?;
    }
    expect(case, Some(Code::TransactionTooLarge), |tx| tx.clear_range(all.clone())).await?;
    expect(case, None, |tx| tx.clear_range(KeyRange::new(name(1), all.end.clone()))).await?;
    let mut tx = case.begin().await?;
    let left = tx.range(all, RangeOptions::limit(2)).await?;
    assert_eq!(left, vec![(name(0), Vec::new())]);
    Ok(())
}
