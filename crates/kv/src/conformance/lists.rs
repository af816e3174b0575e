//! Random transactions that read lists and append to them, checked for strict serializability.
//!
//! Every appended element is unique, so that the final lists tell the order of the writers of each key,
//! and what a transaction read tells after which writer it came. The transactions are strictly
//! serializable when these dependencies, together with "ended before the other began", have no cycle.

use super::{Case, key};
use crate::{KeyRange, RangeOptions, Transaction};
use kiln_types::{Code, Monotonic, Result};
use std::collections::BTreeMap;

const KEYS: u8 = 6;
const CLIENTS: usize = 6;
const EACH: u32 = 25;

/// A list of the elements appended, in order; element = id of the transaction.
type List = Vec<u32>;

/// What one transaction did, as its client saw it.
#[derive(Clone, Debug)]
struct Record {
    id: u32,
    reads: BTreeMap<u8, List>,
    appends: Vec<u8>,
    began: Monotonic,
    ended: Monotonic,
    /// `None` when the answer was `MaybeCommitted`.
    committed: Option<bool>,
}

pub(super) async fn run(case: &Case) -> Result<()> {
    let prefix = case.prefix(5);
    let clients = case.side_by_side(CLIENTS, |client| {
        let (case, prefix) = (case.clone(), prefix.clone());
        async move { client_run(&case, &prefix, u32::try_from(client).unwrap_or(0)).await }
    });
    let records: Vec<Record> = clients.await?.into_iter().flatten().collect();
    let finals = lists(&prefix, case.pairs(&KeyRange::prefix(&prefix)).await?);
    if let Err(fault) = check(&records, &finals) {
        let lines: Vec<_> = records.iter().map(|record| format!("{record:?}")).collect();
        panic!("seed {}: {fault}\n{}\n{finals:?}", case.seed, lines.join("\n"));
    }
    Ok(())
}

async fn client_run(case: &Case, prefix: &[u8], client: u32) -> Result<Vec<Record>> {
    let mut random = case.random(500 + u64::from(client));
    let mut records = Vec::new();
    for at in 0..EACH {
        let began = case.env.now();
        let mut record = Record {
            id: 1 + client * EACH + at,
            reads: BTreeMap::new(),
            appends: Vec::new(),
            began,
            ended: began,
            committed: Some(false),
        };
        let mut tx = case.begin().await?;
        match transaction(tx.as_mut(), prefix, &mut record, &mut random).await {
            Ok(()) => {
                record.committed = match tx.commit().await.map_err(|error| error.code()) {
                    Ok(()) => Some(true),
                    Err(Code::Conflict | Code::TransactionTooOld) => Some(false),
                    Err(Code::MaybeCommitted) => None,
                    Err(code) => return Err(code.into()),
                }
            }
            Err(error) if error.code() == Code::TransactionTooOld => {}
            Err(error) => return Err(error),
        }
        record.ended = case.env.now();
        records.push(record);
    }
    Ok(records)
}

/// Reads one to three times, by key or by range, and appends to some of what it read.
async fn transaction(
    tx: &mut dyn Transaction,
    prefix: &[u8],
    record: &mut Record,
    random: &mut fastrand::Rng,
) -> Result<()> {
    for _ in 0..random.usize(1..=3) {
        let at = random.u8(..KEYS);
        let mut value = None;
        if random.u8(..4) == 0 {
            let pairs = tx.range(KeyRange::prefix(prefix), RangeOptions::default()).await?;
            let all = lists(prefix, pairs);
            value = all.get(&at).cloned();
            for (name, list) in all {
                record.see(name, list);
            }
        } else if let Some(bytes) = tx.get(&key(prefix, [at])).await? {
            value = Some(decode(&bytes));
        }
        let mut list = value.unwrap_or_default();
        record.see(at, list.clone());
        if random.bool() && !record.appends.contains(&at) {
            list.push(record.id);
            let bytes: Vec<u8> = list.iter().flat_map(|id| id.to_be_bytes()).collect();
            tx.set(&key(prefix, [at]), &bytes);
            record.appends.push(at);
        }
    }
    Ok(())
}

impl Record {
    /// Notes what was read, less the transaction's own append.
    fn see(&mut self, name: u8, mut list: List) {
        if self.appends.contains(&name) {
            assert_eq!(list.pop(), Some(self.id), "a transaction does not read its own write");
        }
        let first = self.reads.entry(name).or_insert_with(|| list.clone());
        assert_eq!(*first, list, "a transaction reads two states of one key");
    }
}

/// All lists; the absent ones are empty.
fn lists(prefix: &[u8], pairs: Vec<(Vec<u8>, Vec<u8>)>) -> BTreeMap<u8, List> {
    let mut all: BTreeMap<u8, List> = (0..KEYS).map(|name| (name, List::new())).collect();
    all.extend(pairs.iter().map(|(key, value)| (key[prefix.len()], decode(value))));
    all
}

fn decode(bytes: &[u8]) -> List {
    let (ids, _) = bytes.as_chunks::<4>();
    ids.iter().map(|id| u32::from_be_bytes(*id)).collect()
}

/// Finds a cycle or another anomaly, if there is one.
fn check(records: &[Record], finals: &BTreeMap<u8, List>) -> Result<(), String> {
    let happened: BTreeMap<u32, &Record> = records
        .iter()
        .filter(|record| {
            let is_seen = || finals.values().any(|list| list.contains(&record.id));
            record.committed.unwrap_or_else(is_seen)
        })
        .map(|record| (record.id, record))
        .collect();
    check_lists(&happened, finals)?;
    let mut after: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut edge = |from: u32, to: u32| after.entry(from).or_default().push(to);
    for record in happened.values() {
        for (name, read) in &record.reads {
            let list = &finals[name];
            if !list.starts_with(read) {
                return Err(format!("{} read {read:?} of key {name}", record.id));
            }
            if let Some(writer) = read.last() {
                edge(*writer, record.id);
            }
            if let Some(next) = list.get(read.len()).filter(|next| **next != record.id) {
                edge(record.id, *next);
            }
        }
        // One whose outcome its client was not told may have happened later than that.
        let ended = record.committed.map(|_| record.ended);
        let is_later = |other: &&&Record| ended.is_some_and(|ended| ended < other.began);
        for other in happened.values().filter(is_later) {
            edge(record.id, other.id);
        }
    }
    match has_order(happened.keys().copied().collect(), &after) {
        true => Ok(()),
        false => Err("no serial order explains what was read".into()),
    }
}

/// Exactly the appends of the transactions that happened are there, once.
fn check_lists(
    happened: &BTreeMap<u32, &Record>,
    finals: &BTreeMap<u8, List>,
) -> Result<(), String> {
    for (name, list) in finals {
        let mut sorted = list.clone();
        sorted.sort_unstable();
        let appended = happened.values().filter(|record| record.appends.contains(name));
        if sorted != appended.map(|record| record.id).collect::<Vec<_>>() {
            return Err(format!("key {name} has lost an append or kept a failed one"));
        }
    }
    Ok(())
}

/// Whether the transactions can be put in an order that keeps every edge.
fn has_order(mut left: Vec<u32>, after: &BTreeMap<u32, Vec<u32>>) -> bool {
    let mut before: BTreeMap<u32, usize> = BTreeMap::new();
    for to in after.values().flatten() {
        *before.entry(*to).or_default() += 1;
    }
    while !left.is_empty() {
        let count = left.len();
        let free: Vec<u32> =
            left.extract_if(.., |id| before.get(id).copied().unwrap_or(0) == 0).collect();
        for to in free.iter().filter_map(|id| after.get(id)).flatten() {
            if let Some(count) = before.get_mut(to) {
                *count -= 1;
            }
        }
        if left.len() == count {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32, reads: &[(u8, &[u32])], appends: &[u8], span: (u64, u64)) -> Record {
        let reads = reads.iter().map(|(name, list)| (*name, list.to_vec())).collect();
        let (began, ended) = (Monotonic(span.0), Monotonic(span.1));
        Record { id, reads, appends: appends.to_vec(), began, ended, committed: Some(true) }
    }

    #[test]
    fn the_checker_finds_planted_anomalies() {
        let finals = BTreeMap::from([(0, vec![1]), (1, vec![2])]);
        // Write skew: each read both keys before the other wrote.
        let skew = [
            record(1, &[(0, &[]), (1, &[])], &[0], (0, 9)),
            record(2, &[(0, &[]), (1, &[])], &[1], (0, 9)),
        ];
        assert!(check(&skew, &finals).is_err());
        let fine = [skew[0].clone(), record(2, &[(0, &[1]), (1, &[])], &[1], (0, 9))];
        assert_eq!(check(&fine, &finals), Ok(()));
        // The second began after the first ended, but did not see it.
        let stale = [record(1, &[(0, &[])], &[0], (0, 3)), record(3, &[(0, &[])], &[], (4, 5))];
        let finals = BTreeMap::from([(0, vec![1])]);
        assert!(check(&stale, &finals).is_err());
        let overlapping = [stale[0].clone(), record(3, &[(0, &[])], &[], (2, 5))];
        assert_eq!(check(&overlapping, &finals), Ok(()));
        // A lost update, a fractured read.
        let lost = [record(1, &[], &[0], (0, 9)), record(2, &[], &[0], (0, 9))];
        assert!(check(&lost, &finals).is_err());
        let two = BTreeMap::from([(0, vec![1]), (1, vec![1])]);
        let fractured = [
            record(1, &[(0, &[]), (1, &[])], &[0, 1], (0, 9)),
            record(2, &[(0, &[1]), (1, &[])], &[], (0, 9)),
        ];
        assert!(check(&fractured, &two).is_err());
    }
}
