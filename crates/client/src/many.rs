//! Many files in one call.

use crate::attributes::{SetAttr, SetTime};
use crate::client::Client;
use crate::file::File;
use crate::open::OpenMode;
use kiln_rpc::{check_count, v1};
use kiln_types::{Attr, Caller, Code, Error, InodeId, Result, Timestamp};
use std::sync::Arc;

/// New files in one call.
const CREATES: usize = 256;
/// Files that are closed in one call.
const CLOSES: usize = 128;
/// Attributes in one answer; a request for as many of the longest names fits into a frame.
const STATS: usize = 512;

/// One of many files to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewOne<'a> {
    /// The directory.
    pub parent: InodeId,
    /// The name in it.
    pub name: &'a [u8],
    /// Permission bits, after the umask.
    pub mode: u32,
}

/// One of many files to close.
#[derive(Clone, Copy)]
pub struct CloseOne<'a> {
    /// The file. Nothing of it is under way any more.
    pub file: &'a File,
    /// What is set before; neither a length nor a layout.
    pub set: SetAttr,
    /// The directory and the name that it then gets.
    pub name: Option<(InodeId, &'a [u8])>,
}

impl Client {
    /// Makes files and opens them, hundreds in one call: what [`Self::create`] with `exclusive`, or with `nameless`
    /// [`Self::create_nameless`], would answer one after the other.
    pub async fn create_many(
        &self,
        caller: &Caller,
        files: &[NewOne<'_>],
        open: OpenMode,
        nameless: bool,
    ) -> Vec<Result<File>> {
        let mut batches = Batches::new(files, CREATES);
        while let Some(batch) = batches.next() {
            let made = self.create_batch(caller, batch, open, nameless).await;
            batches.answered(batch, made);
        }
        batches.results
    }

    async fn create_batch(
        &self,
        caller: &Caller,
        files: &[NewOne<'_>],
        open: OpenMode,
        nameless: bool,
    ) -> Result<Vec<Result<File>>> {
        let sent = self.env.now();
        let turn = self.meta.turn(caller);
        let new = |file: &NewOne<'_>| v1::NewFile {
            parent: file.parent.0,
            name: file.name.to_vec().into(),
            mode: file.mode,
            layout: None,
        };
        let request = v1::CreateManyRequest {
            origin: turn.origin(),
            read: open.read,
            write: open.write,
            nameless,
            files: files.iter().map(new).collect(),
        };
        let results = self.meta.create_many(request).await?.results;
        check_count(results.len(), files.len())?;
        let file = |result: v1::OpenResult| match (result.opened, result.failure) {
            (Some(opened), None) => self.file(caller, open, opened, sent),
            (_, Some(failure)) => Err(failure.into()),
            (None, None) => Err(Error::invalid("a reply with neither a file nor a failure")),
        };
        Ok(results.into_iter().map(file).collect())
    }

    /// Sets attributes of open files, gives them names and closes them, a hundred in one call: what [`File::set_attr`],
    /// [`Self::link`] and [`File::close`] would answer. A file that is refused something stays open; `Busy`: as long
    /// as a truncation is not finished, which any of the single calls does.
    pub async fn close_many(&self, caller: &Caller, files: &[CloseOne<'_>]) -> Vec<Result<Attr>> {
        let mut batches = Batches::new(files, CLOSES);
        while let Some(batch) = batches.next() {
            let closed = self.close_batch(caller, batch).await;
            batches.answered(batch, closed);
        }
        batches.results
    }

    async fn close_batch(
        &self,
        caller: &Caller,
        files: &[CloseOne<'_>],
    ) -> Result<Vec<Result<Attr>>> {
        let mut shared: Vec<_> = files.iter().map(|one| one.file.shared()).collect();
        // Always in the same order, so that nobody waits in a circle.
        shared.sort_by_key(|file| file.session.id());
        if shared.windows(2).any(|two| Arc::ptr_eq(two[0], two[1])) {
            return Err(Error::invalid("one file is to be closed twice at once"));
        }
        let mut held = Vec::with_capacity(files.len());
        for file in shared {
            held.push(file.reporting.lock().await);
        }
        let turn = self.meta.turn(caller);
        let (mut noted, mut messages) = (Vec::new(), Vec::new());
        for one in files {
            let (written, so_far) = one.file.shared().report();
            noted.push(so_far);
            messages.push(message(one, written)?);
        }
        let request = v1::CloseManyRequest { origin: turn.origin(), files: messages };
        let results = self.meta.close_many(request).await?.of(files.len())?;
        for ((one, noted), result) in files.iter().zip(noted).zip(&results) {
            if let Ok(attr) = result {
                one.file.shared().note_closed(noted, attr.clone());
            }
        }
        Ok(results)
    }

    /// The attributes of many inodes: what [`Self::get_attr`] would answer for each, hundreds in one call.
    pub async fn get_attrs(&self, caller: &Caller, inodes: &[InodeId]) -> Vec<Result<Attr>> {
        let mut batches = Batches::new(inodes, STATS);
        while let Some(batch) = batches.next() {
            let inodes = batch.iter().map(|inode| inode.0).collect();
            let request = v1::StatManyRequest { inodes, ..Default::default() };
            batches.answered(batch, self.stat_batch(caller, request).await);
        }
        batches.results
    }

    /// The entries of many names in a directory: what [`Self::lookup`] would answer for each, hundreds in one
    /// call.
    pub async fn lookup_many(
        &self,
        caller: &Caller,
        parent: InodeId,
        names: &[&[u8]],
    ) -> Vec<Result<Attr>> {
        let mut batches = Batches::new(names, STATS);
        while let Some(batch) = batches.next() {
            let names = batch.iter().map(|name| name.to_vec().into()).collect();
            let request = v1::StatManyRequest { parent: parent.0, names, ..Default::default() };
            batches.answered(batch, self.stat_batch(caller, request).await);
        }
        batches.results
    }

    async fn stat_batch(
        &self,
        caller: &Caller,
        mut request: v1::StatManyRequest,
    ) -> Result<Vec<Result<Attr>>> {
        request.caller = Some(caller.into());
        let count = request.inodes.len() + request.names.len();
        self.meta.stat_many(request).await?.of(count)
    }
}

fn message(one: &CloseOne<'_>, written: Option<v1::Written>) -> Result<v1::FileClose> {
    let SetAttr { mode, uid, gid, length, atime, mtime, layout } = one.set;
    if length.is_some() || layout.is_some() {
        return Err(Error::invalid(
            "files are not cut, and have no layout to set, as they are closed",
        ));
    }
    let time = |time: Option<SetTime>| match time {
        None => None,
        Some(SetTime::At(time)) => Some(time),
        Some(SetTime::Now) => Some(one.file.shared().env.wall()),
    };
    let nanos = |time: Timestamp| time.0;
    let (parent, name) = one.name.unwrap_or((InodeId(0), b""));
    Ok(v1::FileClose {
        inode: one.file.inode().0,
        session: one.file.shared().session.id().to_vec().into(),
        written,
        mode,
        uid,
        gid,
        atime_ns: time(atime).map(nanos),
        mtime_ns: time(mtime).map(nanos),
        parent: parent.0,
        name: name.to_vec().into(),
    })
}

/// Things of which some are asked for at a time, and what was answered up to now.
pub(crate) struct Batches<'a, T, R> {
    left: Vec<&'a [T]>,
    pub(crate) results: Vec<Result<R>>,
}

impl<'a, T, R> Batches<'a, T, R> {
    pub(crate) fn new(all: &'a [T], most: usize) -> Self {
        let left = all.chunks(most).rev().collect();
        Self { left, results: Vec::with_capacity(all.len()) }
    }

    /// The next ones to ask for.
    pub(crate) fn next(&mut self) -> Option<&'a [T]> {
        self.left.pop()
    }

    /// What was answered. Of what is too much at once, less is asked for.
    pub(crate) fn answered(&mut self, batch: &'a [T], results: Result<Vec<Result<R>>>) {
        let too_much = [Code::QuotaExceeded, Code::NoSpace, Code::TransactionTooLarge];
        match results {
            Ok(results) => self.results.extend(results),
            Err(error) if batch.len() > 1 && too_much.contains(&error.code()) => {
                let (first, rest) = batch.split_at(batch.len() / 2);
                self.left.extend([rest, first]);
            }
            Err(error) => self.results.extend(batch.iter().map(|_| Err(error.clone()))),
        }
    }
}
