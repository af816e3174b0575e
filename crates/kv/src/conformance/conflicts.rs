//! Which transactions conflict: one reads or writes, another one commits in between.

use super::{Case, key};
use crate::{KeyRange, RangeOptions, Transaction};
use kiln_types::{Code, Result};

/// What a transaction does to the keys `a` to `e` below a prefix; `b` and `d` exist.
#[derive(Clone, Copy, Debug)]
enum Act {
    Get(char),
    SnapshotGet(char),
    GetOwn(char),
    Range(char, char, RangeOptions),
    Conflict(char),
    Set(char),
    Clear(char),
    ClearRange(char, char),
    Add(char),
    Max(char),
    WriteConflict(char),
}

use Act::{
    Add, Clear, ClearRange, Conflict, Get, GetOwn, Max, Range, Set, SnapshotGet, WriteConflict,
};

const PAGE: RangeOptions = RangeOptions { limit: 1, reverse: false, snapshot: false };
const LAST: RangeOptions = RangeOptions { limit: 1, reverse: true, snapshot: false };
const ALL: RangeOptions = RangeOptions { limit: usize::MAX, reverse: false, snapshot: false };
const UNSEEN: RangeOptions = RangeOptions { limit: usize::MAX, reverse: false, snapshot: true };

/// (what the first does, what the second commits in between, whether the first then conflicts).
/// The first always writes `z` too; the second never touches it.
const CASES: &[(Act, Act, bool)] = &[
    (Get('b'), Set('b'), true),
    (Get('b'), Clear('b'), true),
    (Get('b'), ClearRange('a', 'c'), true),
    (Get('b'), Add('b'), true),
    (Get('b'), Max('b'), true),
    (Get('b'), WriteConflict('b'), true),
    (Get('b'), Set('c'), false),
    (Get('b'), Get('b'), false),
    (Get('c'), Set('c'), true),
    (SnapshotGet('b'), Set('b'), false),
    (GetOwn('b'), Set('b'), false),
    (Conflict('c'), Set('c'), true),
    (Conflict('c'), Set('b'), false),
    (Range('a', 'e', ALL), Set('c'), true),
    (Range('a', 'e', ALL), Set('b'), true),
    (Range('a', 'e', ALL), Clear('d'), true),
    (Range('a', 'e', ALL), Set('e'), false),
    (Range('a', 'e', UNSEEN), Set('c'), false),
    (Range('a', 'e', PAGE), Set('a'), true),
    (Range('a', 'e', PAGE), Set('b'), true),
    (Range('a', 'e', PAGE), Set('c'), false),
    (Range('a', 'e', LAST), Set('d'), true),
    (Range('a', 'f', LAST), Set('e'), true),
    (Range('a', 'e', LAST), Set('c'), false),
    (Range('c', 'd', PAGE), Set('c'), true),
    (Add('b'), Add('b'), false),
    (Max('b'), Max('b'), false),
    (Add('b'), Set('b'), false),
    (Set('b'), Set('b'), false),
    (ClearRange('a', 'e'), Set('c'), false),
];

pub(super) async fn run(case: &Case) -> Result<()> {
    for (at, (first, second, conflicts)) in CASES.iter().enumerate() {
        let prefix = key(&case.prefix(1), [u8::try_from(at).unwrap_or(u8::MAX)]);
        prepare(case, &prefix).await?;
        let mut one = case.begin().await?;
        let mut other = case.begin().await?;
        act(one.as_mut(), &prefix, *first).await?;
        act(other.as_mut(), &prefix, *second).await?;
        other.commit().await?;
        one.set(&key(&prefix, "z"), b"1");
        let outcome = one.commit().await;
        let name = format!("seed {}: {first:?}, in between {second:?}", case.seed);
        match conflicts {
            true => assert_eq!(outcome.map_err(|e| e.code()), Err(Code::Conflict), "{name}"),
            false => assert_eq!(outcome, Ok(()), "{name}"),
        }
        let mut after = case.begin().await?;
        let is_there = after.get(&key(&prefix, "z")).await?.is_some();
        assert_eq!(is_there, !conflicts, "{name}: the first's write");
    }
    read_only(case).await?;
    snapshots(case).await
}

async fn prepare(case: &Case, prefix: &[u8]) -> Result<()> {
    let mut tx = case.begin().await?;
    for name in ["b", "d"] {
        tx.set(&key(prefix, name), &1u64.to_le_bytes());
    }
    tx.commit().await
}

async fn act(tx: &mut dyn Transaction, prefix: &[u8], act: Act) -> Result<()> {
    let at = |name: char| key(prefix, name.to_string());
    match act {
        Get(name) => drop(tx.get(&at(name)).await?),
        SnapshotGet(name) => drop(tx.snapshot_get(&at(name)).await?),
        GetOwn(name) => {
            tx.set(&at(name), b"own");
            assert_eq!(tx.get(&at(name)).await?.as_deref(), Some(&b"own"[..]));
        }
        Range(start, end, options) => {
            drop(tx.range(KeyRange::new(at(start), at(end)), options).await?);
        }
        Conflict(name) => tx.add_read_conflict(KeyRange::key(&at(name))),
        Set(name) => tx.set(&at(name), b"8 bytes."),
        Clear(name) => tx.clear(&at(name)),
        ClearRange(start, end) => tx.clear_range(KeyRange::new(at(start), at(end))),
        Add(name) => tx.add(&at(name), 1),
        Max(name) => tx.max(&at(name), 7),
        WriteConflict(name) => tx.add_write_conflict(KeyRange::key(&at(name))),
    }
    Ok(())
}

/// A transaction that only reads commits, whatever others did meanwhile.
async fn read_only(case: &Case) -> Result<()> {
    let prefix = key(&case.prefix(1), "read only");
    prepare(case, &prefix).await?;
    let mut reader = case.begin().await?;
    reader.get(&key(&prefix, "b")).await?;
    let mut writer = case.begin().await?;
    writer.clear_range(KeyRange::prefix(&prefix));
    writer.commit().await?;
    reader.commit().await
}

/// A transaction sees one moment, its own writes on top, and nothing of a transaction that was dropped.
async fn snapshots(case: &Case) -> Result<()> {
    let prefix = key(&case.prefix(1), "snapshot");
    let all = KeyRange::prefix(&prefix);
    prepare(case, &prefix).await?;
    let mut before = case.begin().await?;
    let mut writer = case.begin().await?;
    writer.clear(&key(&prefix, "b"));
    writer.set(&key(&prefix, "c"), b"new");
    let mut dropped = case.begin().await?;
    dropped.clear_range(all.clone());
    drop(dropped);
    writer.commit().await?;
    before.set(&key(&prefix, "a"), b"own");
    before.clear(&key(&prefix, "d"));
    let names = |pairs: Vec<(Vec<u8>, Vec<u8>)>| -> String {
        pairs.iter().filter_map(|(key, _)| key.last()).map(|byte| char::from(*byte)).collect()
    };
    let seen = before.range(all.clone(), RangeOptions::default().snapshot()).await?;
    assert_eq!(names(seen), "ab", "seed {}", case.seed);
    let mut after = case.begin().await?;
    let seen = after.range(all, RangeOptions::default()).await?;
    assert_eq!(names(seen), "cd", "seed {}", case.seed);
    Ok(())
}
