//! Databases and their transactions.

use crate::codes::{self, Code};
use crate::faults::{Fate, Faults};
use crate::future::{Answer, Future, Page};
use crate::log::Log;
use crate::network::NETWORK;
use crate::settings::Settings;
use crate::store::{Commit, Mutation, Store};
use kiln_kv::{KEY_END, KeyRange, successor};
use kiln_types::Monotonic;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

const KEY_BYTES_MAX: usize = 10_000;
const VALUE_BYTES_MAX: usize = 100_000;
const TRANSACTION_BYTES_MAX: usize = 10_000_000;

/// A store, and the errors that strike there.
pub(crate) struct Database {
    shared: Mutex<Shared>,
    at_once: bool,
}

struct Shared {
    store: Store,
    faults: Faults,
    log: Option<Log>,
}

/// The databases of this process, by cluster file.
static DATABASES: LazyLock<Mutex<BTreeMap<PathBuf, Weak<Database>>>> =
    LazyLock::new(Mutex::default);

impl Database {
    /// The database of a cluster file; the same one for as long as one is open.
    pub(crate) fn open(file: &Path) -> Result<Arc<Self>, Code> {
        let file = file.canonicalize().map_err(|_| codes::IO_ERROR)?;
        let mut databases = DATABASES.lock();
        if let Some(open) = databases.get(&file).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let text = std::fs::read_to_string(&file).map_err(|_| codes::IO_ERROR)?;
        let settings = Settings::parse(&text).map_err(|line| {
            eprintln!("the double of FoundationDB does not understand '{line}'");
            codes::CONNECTION_STRING_INVALID
        })?;
        let mut store = Store::new();
        let log = settings.directory.as_deref().map(|directory| {
            Log::open(directory, |changes| store.replay(changes)).map_err(|error| {
                eprintln!("the double of FoundationDB: {}: {error}", directory.display());
                codes::IO_ERROR
            })
        });
        let log = log.transpose()?;
        let at_once = settings.at_once;
        let shared = Mutex::new(Shared { store, faults: Faults::new(settings), log });
        let database = Arc::new(Self { shared, at_once });
        databases.insert(file, Arc::downgrade(&database));
        Ok(database)
    }
}

impl Database {
    /// Does `job` at that time, or now if everything is done when it is asked.
    fn at(&self, due: Monotonic, job: impl FnOnce() + Send + 'static) {
        match self.at_once {
            true => job(),
            false => NETWORK.at(due, job),
        }
    }

    fn future(&self) -> Arc<Future> {
        if self.at_once { Future::shy() } else { Arc::default() }
    }
}

impl Shared {
    fn commit(&mut self, commit: &Commit) -> Result<u64, Code> {
        let (version, changes) = self.store.commit(commit, NETWORK.now())?;
        if let Some(log) = &mut self.log {
            log.append(&changes).map_err(|_| codes::COMMIT_UNKNOWN_RESULT)?;
        }
        Ok(version)
    }
}

/// A transaction; clones are the same one.
#[derive(Clone)]
pub(crate) struct Transaction {
    database: Arc<Database>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    read_version: Option<u64>,
    reads: Vec<KeyRange>,
    writes: Vec<KeyRange>,
    mutations: Vec<Mutation>,
    bytes: usize,
    /// What was wrong first.
    refused: Option<Code>,
    /// Reads do not see what it writes.
    is_blind: bool,
    is_committing: bool,
    committed: Option<u64>,
}

/// What `get_range` asks for.
pub(crate) struct RangeRead {
    pub(crate) range: KeyRange,
    /// 0: no limit.
    pub(crate) limit: usize,
    /// 0: no limit.
    pub(crate) bytes: usize,
    pub(crate) snapshot: bool,
    pub(crate) reverse: bool,
}

impl Transaction {
    pub(crate) fn new(database: &Arc<Database>) -> Self {
        Self { database: Arc::clone(database), state: Arc::default() }
    }

    pub(crate) fn reset(&self) {
        *self.state.lock() = State::default();
    }

    pub(crate) fn blind(&self) {
        self.state.lock().is_blind = true;
    }

    pub(crate) fn set_read_version(&self, version: u64) {
        self.state.lock().read_version = Some(version);
    }

    /// The version that the last commit got; -1: it had nothing to commit.
    pub(crate) fn committed(&self) -> i64 {
        self.state.lock().committed.map_or(-1, |version| version as i64)
    }

    pub(crate) fn read_version(&self) -> Arc<Future> {
        let fate = self.database.shared.lock().faults.of_read_version(NETWORK.now());
        self.ask(fate, |_, version, _| Ok(Answer::Number(version as i64)))
    }

    pub(crate) fn get(&self, key: Vec<u8>, snapshot: bool) -> Arc<Future> {
        self.ask(self.fate_of_read(), move |store, version, state| {
            check_key(&key)?;
            let mut value = store.get(&key, version)?;
            if !state.is_blind {
                let own = state.mutations.iter();
                value = own.fold(value, |value, mutation| mutation.apply(&key, value));
            }
            if !snapshot {
                state.reads.push(KeyRange::key(&key));
            }
            Ok(Answer::Value(value))
        })
    }

    pub(crate) fn get_range(&self, read: RangeRead) -> Arc<Future> {
        self.ask(self.fate_of_read(), move |store, version, state| {
            if read.range.start > read.range.end {
                return Err(codes::INVERTED_RANGE);
            }
            let (pairs, more) = page(store, version, state, &read)?;
            if !read.snapshot {
                state.reads.push(scanned(&read, &pairs, more));
            }
            Ok(Answer::Page(Page::new(pairs, more)))
        })
    }

    fn fate_of_read(&self) -> Fate {
        self.database.shared.lock().faults.of_read(NETWORK.now())
    }

    /// Answers, when it is due, what `answer` says of the store at the transaction's read version.
    fn ask(
        &self,
        fate: Fate,
        answer: impl FnOnce(&Store, u64, &mut State) -> Result<Answer, Code> + Send + 'static,
    ) -> Arc<Future> {
        if self.state.lock().is_committing {
            return Future::ready(Err(codes::USED_DURING_COMMIT));
        }
        let (future, transaction) = (self.database.future(), self.clone());
        let asked = Arc::clone(&future);
        match fate {
            Fate::Done(due) => self.database.at(due, move || {
                let shared = transaction.database.shared.lock();
                let mut state = transaction.state.lock();
                let newest = shared.store.version();
                let version = *state.read_version.get_or_insert(newest);
                let outcome = answer(&shared.store, version, &mut state);
                drop((shared, state));
                asked.complete(outcome);
            }),
            Fate::Fails(due, code) => self.database.at(due, move || asked.complete(Err(code))),
            Fate::Unknown(..) | Fate::Lost => {}
        }
        future
    }

    pub(crate) fn write(&self, mutation: Mutation) {
        let mut state = self.state.lock();
        let range = mutation.range();
        let outcome = match &mutation {
            Mutation::Clear(range) => check_range(range),
            Mutation::Set(key, value) | Mutation::Add(key, value) | Mutation::Max(key, value) => {
                state.bytes += value.len();
                check_key(key).and(match value.len() > VALUE_BYTES_MAX {
                    true => Err(codes::VALUE_TOO_LARGE),
                    false => Ok(()),
                })
            }
        };
        state.bytes += range.start.len() + range.end.len();
        if let Err(code) = outcome {
            state.refused.get_or_insert(code);
            return;
        }
        state.mutations.push(mutation);
        state.writes.push(range);
    }

    /// What was called makes no sense: the commit will say so.
    pub(crate) fn refuse(&self, code: Code) {
        self.state.lock().refused.get_or_insert(code);
    }

    pub(crate) fn add_conflict(&self, range: KeyRange, is_write: bool) -> Result<(), Code> {
        check_range(&range)?;
        let mut state = self.state.lock();
        state.bytes += range.start.len() + range.end.len();
        match is_write {
            true => state.writes.push(range),
            false => state.reads.push(range),
        }
        Ok(())
    }

    pub(crate) fn commit(&self) -> Arc<Future> {
        // In this order, as when something is answered.
        let mut shared = self.database.shared.lock();
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.is_committing, true) {
            return Future::ready(Err(codes::USED_DURING_COMMIT));
        }
        if let Some(code) = state.refused {
            return Future::ready(Err(code));
        }
        if state.mutations.is_empty() && state.writes.is_empty() {
            return Future::ready(Ok(Answer::Nothing));
        }
        if state.bytes > TRANSACTION_BYTES_MAX {
            return Future::ready(Err(codes::TRANSACTION_TOO_LARGE));
        }
        let newest = shared.store.version();
        let commit = Commit {
            read_version: state.read_version.unwrap_or(newest),
            reads: std::mem::take(&mut state.reads),
            writes: std::mem::take(&mut state.writes),
            mutations: std::mem::take(&mut state.mutations),
        };
        let fate = shared.faults.of_commit(NETWORK.now());
        drop((shared, state));
        self.meet(commit, fate)
    }

    fn meet(&self, commit: Commit, fate: Fate) -> Arc<Future> {
        let future = self.database.future();
        let (asked, transaction) = (Arc::clone(&future), self.clone());
        match fate {
            Fate::Done(due) => self.database.at(due, move || {
                let outcome = transaction.database.shared.lock().commit(&commit);
                transaction.state.lock().committed = outcome.ok();
                asked.complete(outcome.map(|_| Answer::Nothing));
            }),
            Fate::Fails(due, code) => self.database.at(due, move || asked.complete(Err(code))),
            Fate::Unknown(answered, happens) => {
                if let Some(happens) = happens {
                    self.database.at(happens, move || {
                        let _ = transaction.database.shared.lock().commit(&commit);
                    });
                }
                let unknown = Err(codes::COMMIT_UNKNOWN_RESULT);
                self.database.at(answered, move || asked.complete(unknown));
            }
            Fate::Lost => {}
        }
        future
    }

    /// Lets it begin anew after what may be tried again.
    pub(crate) fn on_error(&self, code: Code) -> Arc<Future> {
        if !codes::is_retryable(code) {
            return Future::ready(Err(code));
        }
        self.reset();
        Future::ready(Ok(Answer::Nothing))
    }
}

fn check_key(key: &[u8]) -> Result<(), Code> {
    match key.first() {
        Some(&KEY_END) => Err(codes::KEY_OUTSIDE_LEGAL_RANGE),
        _ if key.len() > KEY_BYTES_MAX => Err(codes::KEY_TOO_LARGE),
        _ => Ok(()),
    }
}

fn check_range(range: &KeyRange) -> Result<(), Code> {
    if range.start > range.end {
        return Err(codes::INVERTED_RANGE);
    }
    if range.end.as_slice() > [KEY_END].as_slice() {
        return Err(codes::KEY_OUTSIDE_LEGAL_RANGE);
    }
    Ok(())
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A page of a range read, with what the transaction itself writes; and whether there is more.
fn page(
    store: &Store,
    version: u64,
    state: &State,
    read: &RangeRead,
) -> Result<(Pairs, bool), Code> {
    let (mut pairs, mut bytes, mut more) = (Pairs::new(), 0, false);
    let mut take = |key: &[u8], value: &[u8]| {
        let is_full = |limit: usize, has: usize| limit > 0 && has >= limit;
        if is_full(read.limit, pairs.len()) || is_full(read.bytes, bytes) {
            more = true;
            return true;
        }
        bytes += key.len() + value.len();
        pairs.push((key.to_vec(), value.to_vec()));
        false
    };
    if state.is_blind || state.mutations.is_empty() {
        store.range(&read.range, version, read.reverse, take)?;
        return Ok((pairs, more));
    }
    let mut keys = BTreeSet::new();
    store.range(&read.range, version, false, |key, _| {
        keys.insert(key.to_vec());
        false
    })?;
    keys.extend(state.mutations.iter().map(|mutation| mutation.range().start));
    let keys: Vec<_> = keys.into_iter().filter(|key| read.range.contains(key)).collect();
    let mut overlaid = Vec::new();
    for key in keys {
        let stored = store.get(&key, version)?;
        let value = state.mutations.iter().fold(stored, |value, one| one.apply(&key, value));
        overlaid.extend(value.map(|value| (key, value)));
    }
    if read.reverse {
        overlaid.reverse();
    }
    let _ = overlaid.iter().any(|(key, value)| take(key, value));
    Ok((pairs, more))
}

/// What a range read depends on.
fn scanned(read: &RangeRead, pairs: &Pairs, more: bool) -> KeyRange {
    let range = read.range.clone();
    match pairs.last() {
        Some((last, _)) if more && !read.reverse => KeyRange::new(range.start, successor(last)),
        Some((last, _)) if more => KeyRange::new(last.clone(), range.end),
        _ => range,
    }
}
