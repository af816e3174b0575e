//! What the children write, and what has to be true of it whenever they end.

use kiln_env::Env;
use kiln_kv::{KeyRange, KeyWriter, Kv, RangeOptions, Transaction};
use kiln_kv_embedded::{EmbeddedKv, Options};
use kiln_types::{Code, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const WRITERS: u32 = 6;
/// How many values of each writer stay.
const KEPT: u64 = 40;
/// Small enough that tables are written and merged all the time.
const SMALL: Options =
    Options { cache_bytes: 4 << 20, memtable_bytes: 128 << 10, journal_bytes: 64 << 20 };

/// The highest commit that each writer was told of.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    highest: Vec<u64>,
    count: usize,
}

impl Acknowledged {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut highest = vec![0; WRITERS as usize];
        let mut count = 0;
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (writer, at) = line.split_once(' ').unwrap();
            let highest: &mut u64 = &mut highest[writer.parse::<usize>().unwrap()];
            *highest = (*highest).max(at.parse().unwrap());
            count += 1;
        }
        Self { highest, count }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

fn value_key(writer: u32, at: u64) -> Vec<u8> {
    KeyWriter::new().u8(b'v').u32(writer).u64(at).finish()
}

fn last_key(writer: u32) -> Vec<u8> {
    KeyWriter::new().u8(b'l').u32(writer).finish()
}

/// What commit `at` of a writer writes: mostly small, sometimes large.
fn value(writer: u32, at: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(writer) << 48 | at);
    let size = if random.u8(..16) == 0 { random.usize(..80_000) } else { random.usize(..2_000) };
    let mut value = vec![0; size];
    random.fill(&mut value);
    value
}

async fn last(tx: &mut dyn Transaction, writer: u32) -> Result<u64> {
    let stored = tx.get(&last_key(writer)).await?;
    Ok(stored.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap())))
}

/// One commit: a new value, the writer's last number, the common sum; old values go away. `bulk` more
/// values of 80 KB make journals rotate.
async fn step(kv: &dyn Kv, writer: u32, bulk: u8) -> Result<u64> {
    let mut tx = kv.begin().await?;
    let at = last(tx.as_mut(), writer).await? + 1;
    tx.set(&value_key(writer, at), &value(writer, at));
    tx.max(&last_key(writer), at);
    tx.add(b"sum", 1);
    let oldest = value_key(writer, at.saturating_sub(KEPT - 1));
    tx.clear_range(KeyRange::new(value_key(writer, 0), oldest));
    for number in 0..bulk {
        tx.set(&[b'b', writer as u8, number], &[at as u8; 80_000]);
    }
    tx.commit().await?;
    Ok(at)
}

async fn write_loop(kv: Arc<dyn Kv>, writer: u32, bulk: u8, acknowledged: Arc<File>) -> Code {
    loop {
        match step(kv.as_ref(), writer, bulk).await {
            Ok(at) => {
                (&*acknowledged).write_all(format!("{writer} {at}\n").as_bytes()).unwrap();
            }
            Err(error) if error.code() == Code::TransactionTooOld => {}
            Err(error) => return error.code(),
        }
    }
}

/// Opens the store and writes with all writers until they fail; the code of each.
async fn write_all(path: &Path, bulk: u8, acknowledged: &Path) -> (Arc<EmbeddedKv>, Vec<Code>) {
    let env = Env::real();
    let kv = Arc::new(EmbeddedKv::open(path, &env, SMALL).await.unwrap());
    let file = File::options().create(true).append(true).open(acknowledged).unwrap();
    let file = Arc::new(file);
    let start =
        |writer| env.spawn("writer", write_loop(kv.clone(), writer, bulk, Arc::clone(&file)));
    let writers: Vec<_> = (0..WRITERS).map(start).collect();
    let mut codes = Vec::new();
    for writer in writers {
        codes.push(writer.join().await.unwrap());
    }
    (kv, codes)
}

pub(crate) async fn write(path: &Path, bulk: u8, acknowledged: &Path) {
    let (_, codes) = write_all(path, bulk, acknowledged).await;
    panic!("the writers ended: {codes:?}");
}

pub(crate) async fn write_until_failure(path: &Path, acknowledged: &Path) {
    let (kv, codes) = write_all(path, 0, acknowledged).await;
    assert!(codes.iter().all(|code| *code == Code::DiskFailed), "{codes:?}");
    assert_eq!(kv.begin().await.err().unwrap().code(), Code::DiskFailed);
    assert_eq!(kv.close().await.unwrap_err().code(), Code::DiskFailed);
}

/// Opens what is left and compares it with what was acknowledged; says what is wrong.
pub(crate) async fn verify(path: &Path, acknowledged: &Acknowledged) -> Result<(), String> {
    let kv = EmbeddedKv::open(path, &Env::real(), SMALL).await.map_err(|e| format!("{e:?}"))?;
    let outcome = verify_open(&kv, acknowledged).await;
    kv.close().await.map_err(|e| format!("{e:?}"))?;
    outcome
}

async fn verify_open(kv: &EmbeddedKv, acknowledged: &Acknowledged) -> Result<(), String> {
    let mut tx = kv.begin().await.map_err(|e| format!("{e:?}"))?;
    let mut sum = 0;
    for writer in 0..WRITERS {
        let last = last(tx.as_mut(), writer).await.map_err(|e| format!("{e:?}"))?;
        let known = acknowledged.highest[writer as usize];
        if last < known {
            return Err(format!("writer {writer}: {known} was acknowledged, {last} is there"));
        }
        let range = KeyRange::prefix(&KeyWriter::new().u8(b'v').u32(writer).finish());
        let pairs = tx.range(range, RangeOptions::default()).await.map_err(|e| format!("{e:?}"))?;
        let first = last.saturating_sub(KEPT - 1).max(1);
        let expected = (first..=last).map(|at| (value_key(writer, at), value(writer, at)));
        if !pairs.into_iter().eq(expected) {
            return Err(format!("writer {writer}: the values do not belong to commit {last}"));
        }
        sum += last;
    }
    let stored = tx.get(b"sum").await.map_err(|e| format!("{e:?}"))?;
    let stored = stored.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
    match stored == sum {
        true => Ok(()),
        false => Err(format!("the sum is {stored}, the writers' commits are {sum}")),
    }
}
