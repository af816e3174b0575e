//! A tree moves from one store to another, through a dump.
//!
//! Nobody may serve it meanwhile. A record in the store ([`Moving`]) keeps servers from opening it: from before the
//! first pair is read until somebody takes it back, and from before the first pair is written until all are there.
//! Whatever is interrupted goes on where it was when it is begun again, and each end compares the dump with its
//! store, pair by pair.

use crate::keys::{Keys, directory_of};
use crate::records::{LostIds, Moving, Record, number};
use kiln_env::Env;
use kiln_kv::dump::{Head, Pair, Reader, Writer, rest};
use kiln_kv::{KeyRange, Kv, RangeOptions, Transaction, transact};
use kiln_types::{Code, Context, Error, InodeId, Result, Timestamp, TreeId};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

/// Pairs that are read at once: with the largest values, below what a range read may return.
const PAGE: usize = 128;
const KEYS: Keys = Keys { tree: TreeId::MAIN };

/// More ids than a tree gives in the time between two backups.
const LOST_IDS: u64 = 1 << 40;

/// How often a server looks whether it may go on.
pub(crate) const LOOK: Duration = Duration::from_secs(5);
/// How long servers get to notice that they may not.
const NOTICED: Duration = Duration::from_secs(20);

/// How far a move is: what it does, and pairs so far.
pub type Progress<'a> = &'a mut (dyn FnMut(&str, u64) + Send + Sync);

/// The store at one end of a move.
pub struct Mover<'a> {
    kv: &'a dyn Kv,
    env: Env,
    progress: Progress<'a>,
}

/// What was here when an import began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The store has to be empty.
    Nothing,
    /// A tree that was exported from here.
    Left,
}

impl<'a> Mover<'a> {
    /// The tree in `kv`.
    pub fn new(kv: &'a dyn Kv, env: &Env, progress: Progress<'a>) -> Self {
        Self { kv, env: env.clone(), progress }
    }

    /// Writes the tree to a dump in `file`, or goes on with one that was interrupted. How many pairs it has.
    ///
    /// Servers that share the store stop by themselves, and are waited for.
    ///
    /// # Errors
    /// `NotFound` when there is no tree, `Busy` while one is arriving, `Exists` for a file with another dump,
    /// `Corrupt`, or what kv and the disk report.
    pub async fn export(mut self, file: &Path) -> Result<u64> {
        let (id, since) = self.leave().await?;
        (self.progress)("waiting for servers to stop", 0);
        await_noticed(self.kv, &self.env, since).await;
        self.write(id, file).await.context(file.display())?;
        self.compare(file).await.context(file.display())
    }

    /// Reads the tree of a dump into the store, or goes on with that. How many pairs it has; 0 when it has arrived before.
    ///
    /// # Errors
    /// `Exists` when there is a tree that may not be replaced, `Busy` while another one is arriving,
    /// `Corrupt` for a damaged dump, or what kv and the disk report.
    pub async fn import(mut self, file: &Path, replace: Replace) -> Result<u64> {
        let head = open(file)?.head().clone();
        if head.what != dump_head() {
            let text = format!("{}: a dump of '{}', not of a tree", file.display(), head.what);
            return Err(Error::invalid(text));
        }
        if !open(file)?.whole().context(file.display())?.is_ended {
            let error = Error::corrupt(format!("{}: the dump has no end", file.display()));
            return Err(error.with_hint("run 'kiln admin meta export' with it again: it goes on"));
        }
        let Some(last) = self.arrive(head.id, replace).await? else { return Ok(0) };
        self.read(head.id, last, file).await.context(file.display())?;
        let pairs = self.compare(file).await.context(file.display())?;
        self.arrived(head.id).await?;
        Ok(pairs)
    }

    /// Takes a tree that was exported as the one to go on with. Whether it had been.
    ///
    /// # Errors
    /// `Busy` while one is arriving, or what kv reports.
    pub async fn reopen(&mut self) -> Result<bool> {
        let now = self.env.wall();
        self.step("reopen", move |tx| {
            Box::pin(async move {
                match moving(tx).await? {
                    None => Ok(false),
                    Some(Moving::Left { .. }) => {
                        lose_ids(tx, now, 0).await?;
                        tx.clear(&KEYS.moving());
                        Ok(true)
                    }
                    Some(arriving) => Err(unfinished(&arriving)),
                }
            })
        })
        .await
    }

    /// Marks the tree as one that has left; the name of the dump, and since when.
    async fn leave(&mut self) -> Result<(u128, Timestamp)> {
        let drawn = (self.env.random_u128(), self.env.wall());
        self.step("export", move |tx| {
            Box::pin(async move {
                if tx.get(&KEYS.format()).await?.is_none() {
                    return Err(Error::new(Code::NotFound, "there is no metadata in this store"));
                }
                match moving(tx).await? {
                    Some(Moving::Left { id, at }) => Ok((id, at)),
                    Some(arriving) => Err(unfinished(&arriving)),
                    None => {
                        let (id, at) = drawn;
                        tx.set(&KEYS.moving(), &Moving::Left { id, at }.encode());
                        Ok(drawn)
                    }
                }
            })
        })
        .await
    }

    async fn write(&mut self, id: u128, file: &Path) -> Result<()> {
        let head = Head { id, begun: self.env.wall(), what: dump_head() };
        let Some((mut writer, mut last)) = begin(&head, file)? else { return Ok(()) };
        let mut pairs = 0;
        loop {
            let page = page(self.kv, &self.env, last.as_deref()).await?;
            let Some((end, _)) = page.last() else { break };
            last = Some(end.clone());
            for (key, value) in page.iter().filter(|(key, _)| *key != KEYS.moving()) {
                writer.push(key, value).map_err(|error| Error::local("a dump", &error))?;
            }
            pairs += page.len() as u64;
            (self.progress)("written", pairs);
        }
        let ended = writer.end().and_then(|(_, to)| to.into_inner().map_err(|e| e.into_error()));
        let synced = ended.and_then(|file| file.sync_all());
        synced.context("end of the dump")?;
        sync_directory(file)
    }

    /// Marks the store as one where the dump `id` arrives; up to which key it has. `None`: all of it, since before.
    async fn arrive(&mut self, id: u128, replace: Replace) -> Result<Option<Vec<u8>>> {
        self.step("import", move |tx| {
            Box::pin(async move {
                match moving(tx).await? {
                    Some(Moving::Arriving { id: other, last }) if other == id => {
                        return Ok(Some(last));
                    }
                    Some(other @ (Moving::Arriving { .. } | Moving::Repairing { .. })) => {
                        return Err(unfinished(&other));
                    }
                    Some(Moving::Left { .. }) if replace == Replace::Left => {}
                    Some(Moving::Left { .. }) => return Err(there("metadata that was exported")),
                    None if tx.range(all(), RangeOptions::limit(1)).await?.is_empty() => {}
                    // Whoever was interrupted at the very end asks again.
                    None if last_dump(tx).await? == Some(id) => return Ok(None),
                    None => return Err(there("metadata that is in use")),
                }
                let arriving = Moving::Arriving { id, last: Vec::new() };
                tx.set(&KEYS.moving(), &arriving.encode());
                Ok(Some(Vec::new()))
            })
        })
        .await
    }

    /// Removes what was here before, and writes what is in the dump behind `last`.
    async fn read(&mut self, id: u128, last: Vec<u8>, file: &Path) -> Result<()> {
        if last.is_empty() {
            self.clear(id).await?;
        }
        let (mut reader, mut pairs) = (open(file)?, 0);
        loop {
            let page = reader.page()?;
            let Some((end, _)) = page.last() else { return Ok(()) };
            pairs += page.len() as u64;
            if *end > last {
                self.put(id, &page).await?;
            }
            (self.progress)("read", pairs);
        }
    }

    async fn clear(&mut self, id: u128) -> Result<()> {
        loop {
            let left = self
                .step("removal of what was there", move |tx| {
                    Box::pin(async move {
                        check_arriving(tx, id).await?;
                        let page = tx.range(all(), RangeOptions::limit(PAGE)).await?;
                        let others = page.iter().filter(|(key, _)| *key != KEYS.moving());
                        others.for_each(|(key, _)| tx.clear(key));
                        Ok(page.len())
                    })
                })
                .await?;
            if left <= 1 {
                return Ok(());
            }
        }
    }

    async fn put(&mut self, id: u128, page: &[Pair]) -> Result<()> {
        self.step("import", |tx| {
            Box::pin(async move {
                check_arriving(tx, id).await?;
                page.iter().for_each(|(key, value)| tx.set(key, value));
                let last = page.last().map(|(key, _)| key.clone()).unwrap_or_default();
                tx.set(&KEYS.moving(), &Moving::Arriving { id, last }.encode());
                Ok(())
            })
        })
        .await
    }

    /// Compares the store with the dump; how many pairs there are.
    async fn compare(&mut self, file: &Path) -> Result<u64> {
        let (mut reader, mut pairs) = (open(file)?, 0);
        let (mut last, mut stored): (Option<Vec<u8>>, Vec<Pair>) = (None, Vec::new());
        let mut dumped: Vec<Pair> = Vec::new();
        loop {
            while stored.is_empty() {
                stored = page(self.kv, &self.env, last.as_deref()).await?;
                let Some((end, _)) = stored.last() else { break };
                last = Some(end.clone());
                stored.retain(|(key, _)| *key != KEYS.moving());
            }
            if dumped.is_empty() {
                dumped = reader.page()?;
            }
            let same = stored.iter().zip(&dumped).take_while(|(one, other)| one == other).count();
            if same == 0 && (!stored.is_empty() || !dumped.is_empty()) {
                return Err(differs(stored.first(), dumped.first()));
            }
            if same == 0 {
                return Ok(pairs);
            }
            stored.drain(..same);
            dumped.drain(..same);
            pairs += same as u64;
            (self.progress)("compared", pairs);
        }
    }

    /// Lets servers open it.
    async fn arrived(&mut self, id: u128) -> Result<()> {
        let at = self.env.wall();
        self.step("end of the import", move |tx| {
            Box::pin(async move {
                lose_ids(tx, at, id).await?;
                tx.clear(&KEYS.moving());
                Ok(())
            })
        })
        .await
    }

    async fn step<'s, T, F>(&self, what: &str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'b> FnMut(&'b mut (dyn Transaction + 's)) -> kiln_kv::Body<'b, T> + Send,
    {
        transact(self.kv, &self.env, what, body).await
    }
}

/// The next pairs of the tree behind a key, without a conflict.
pub(crate) async fn page(kv: &dyn Kv, env: &Env, last: Option<&[u8]>) -> Result<Vec<Pair>> {
    let range = &rest(&all(), last);
    transact(kv, env, "read of the store", |tx| {
        Box::pin(tx.range(range.clone(), RangeOptions::limit(PAGE).snapshot()))
    })
    .await
}

/// Refuses a tree that is on its way.
///
/// # Errors
/// `Busy`, and what to do.
pub(crate) async fn check(tx: &mut dyn Transaction) -> Result<()> {
    match moving(tx).await? {
        None => Ok(()),
        Some(Moving::Left { .. }) => {
            let text = "the metadata was exported from this store, and may have changed elsewhere";
            let hint = "start the server with the store that it was imported into; 'kiln admin meta reopen' \
                        goes on with this one instead";
            Err(Error::new(Code::Busy, text).with_hint(hint))
        }
        Some(arriving) => Err(unfinished(&arriving)),
    }
}

/// Refuses a tree of which not everything is there.
///
/// # Errors
/// `Busy`, and what to do.
pub(crate) async fn check_whole(tx: &mut dyn Transaction) -> Result<()> {
    match moving(tx).await? {
        Some(arriving @ Moving::Arriving { .. }) => Err(unfinished(&arriving)),
        _ => Ok(()),
    }
}

/// Keeps servers away from a tree while it is repaired.
pub(crate) async fn begin_repair(kv: &dyn Kv, env: &Env) -> Result<()> {
    let now = env.wall();
    let since = transact(kv, env, "repair", |tx| {
        Box::pin(async move {
            match moving(tx).await? {
                None => tx.set(&KEYS.moving(), &Moving::Repairing { at: now }.encode()),
                Some(Moving::Repairing { at }) => return Ok(at),
                Some(_) => check(tx).await?,
            }
            Ok(now)
        })
    });
    let since = since.await?;
    await_noticed(kv, env, since).await;
    Ok(())
}

/// Lets servers open it again.
pub(crate) async fn end_repair(kv: &dyn Kv, env: &Env) -> Result<()> {
    transact(kv, env, "repair", |tx| {
        Box::pin(async move {
            tx.clear(&KEYS.moving());
            Ok(())
        })
    })
    .await
}

/// Waits until servers over a shared store have noticed what was said there at `since`.
async fn await_noticed(kv: &dyn Kv, env: &Env, since: Timestamp) {
    if !kv.is_exclusive() {
        let waited = env.wall().0.saturating_sub(since.0);
        let waited = Duration::from_nanos(u64::try_from(waited).unwrap_or(0));
        env.sleep(NOTICED.saturating_sub(waited)).await;
    }
}

/// Elsewhere, or behind a backup, more may have been made than this tree knows of: what was given there is not given
/// again, and not taken for what was removed.
async fn lose_ids(tx: &mut dyn Transaction, at: Timestamp, dump: u128) -> Result<()> {
    let next = number(tx.get(&KEYS.next_inode()).await?.as_deref())?;
    let first = highest(tx).await?.saturating_add(1);
    let end = next.max(first).saturating_add(LOST_IDS);
    tx.set(&KEYS.next_inode(), &end.to_le_bytes());
    tx.set(&KEYS.lost_ids(InodeId(first)), &LostIds { end: InodeId(end), at, dump }.encode());
    Ok(())
}

/// The dump that was put back last.
async fn last_dump(tx: &mut dyn Transaction) -> Result<Option<u128>> {
    let last = RangeOptions::limit(1).reverse();
    let lost = tx.range(KEYS.all_lost_ids(), last).await?;
    let lost = lost.first().map(|(_, value)| LostIds::decode(value)).transpose()?;
    Ok(lost.map(|lost| lost.dump).filter(|dump| *dump != 0))
}

/// The highest id of an inode that is there, or was removed and is not collected. Servers take ids in blocks, so that
/// the next block is no measure of what was given.
async fn highest(tx: &mut dyn Transaction) -> Result<u64> {
    let last = RangeOptions::limit(1).reverse().snapshot();
    let mut highest = 0;
    for range in [KEYS.inodes(), KEYS.garbage_all()] {
        for (key, _) in tx.range(range, last).await? {
            highest = highest.max(directory_of(&key)?.0);
        }
    }
    Ok(highest)
}

async fn moving(tx: &mut dyn Transaction) -> Result<Option<Moving>> {
    tx.get(&KEYS.moving()).await?.map(|value| Moving::decode(&value)).transpose()
}

/// Whoever began another import meanwhile goes on alone.
async fn check_arriving(tx: &mut dyn Transaction, id: u128) -> Result<()> {
    match moving(tx).await? {
        Some(Moving::Arriving { id: now, .. }) if now == id => Ok(()),
        _ => Err(Error::new(Code::Busy, "somebody else has begun or ended an import meanwhile")),
    }
}

fn unfinished(moving: &Moving) -> Error {
    let id = match moving {
        Moving::Left { id, .. } | Moving::Arriving { id, .. } => id,
        Moving::Repairing { .. } => {
            let error = Error::new(Code::Busy, "a repair of this store is not finished");
            return error.with_hint("run 'kiln admin meta check --repair' to its end");
        }
    };
    let text = format!("an import into this store is not finished (dump {id:032x})");
    Error::new(Code::Busy, text)
        .with_hint("run 'kiln admin meta import' with that dump again: it goes on")
}

fn there(what: &str) -> Error {
    let error = Error::new(Code::Exists, format!("the store holds {what}"));
    error.with_hint("name another store; one that was exported is replaced with --replace")
}

fn differs(stored: Option<&Pair>, dumped: Option<&Pair>) -> Error {
    let key = stored.map(|pair| &pair.0).into_iter().chain(dumped.map(|pair| &pair.0)).min();
    let key = key.map(|key| key.escape_ascii().to_string()).unwrap_or_default();
    let text = format!("the store and the dump differ at the key {key}");
    Error::corrupt(text).with_hint(
        "does a metadata server still use the store? Stop all of them, remove the dump, and begin anew",
    )
}

/// All keys of the tree.
fn all() -> KeyRange {
    KEYS.all()
}

/// What the dump of a tree says that it is.
pub fn dump_head() -> String {
    format!("kiln metadata, tree {}", TreeId::MAIN.0)
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>> {
    let opened = File::open(file).context(file.display())?;
    Reader::begin(BufReader::with_capacity(1 << 20, opened))
}

type Begun = (Writer<BufWriter<File>>, Option<Vec<u8>>);

/// Begins a dump in a new file, or goes on with the one that is there: behind which key. `None`: it is whole.
fn begin(head: &Head, file: &Path) -> Result<Option<Begun>> {
    let failed = |error| Error::local("a dump", &error);
    let mut options = OpenOptions::new();
    let options = options.write(true).read(true);
    let created = options.clone().create_new(true).open(file);
    match created {
        Ok(created) => {
            let writer = Writer::begin(BufWriter::new(created), head).map_err(failed)?;
            return Ok(Some((writer, None)));
        }
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        Err(_) => {}
    }
    let reader = open(file)?;
    if reader.head().id != head.id {
        let text = "the file holds a dump that was not begun by this export";
        return Err(Error::new(Code::Exists, text).with_hint("name a new file"));
    }
    let whole = reader.whole()?;
    if whole.is_ended {
        return Ok(None);
    }
    let mut kept = options.open(file).map_err(failed)?;
    kept.set_len(whole.bytes).map_err(failed)?;
    kept.seek(SeekFrom::End(0)).map_err(failed)?;
    let writer = Writer::go_on(BufWriter::new(kept), whole.last.clone(), whole.pairs);
    Ok(Some((writer, whole.last)))
}

fn sync_directory(file: &Path) -> Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.context(directory.display())
}
