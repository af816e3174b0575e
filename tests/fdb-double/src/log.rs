//! The log of commits in a directory: whole records, each after the one before. What a process wrote stays when it
//! is killed; nothing is synced, since no power is cut here.

use kiln_types::{Decoder, Encoder, Result};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// How often the lock is tried, in steps of 50 ms.
const LOCK_TRIES: u32 = 100;

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(crate) struct Log(File);

impl Log {
    /// Opens the log, and shows what is in it in order. One process has it at a time.
    pub(crate) fn open(directory: &Path, mut show: impl FnMut(&Changes)) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).append(true).create(true).open(directory.join("commits"))?;
        lock(&file)?;
        let (mut whole, mut head) = (0, [0; 4]);
        let mut reader = io::BufReader::new(&file);
        while reader.read_exact(&mut head).is_ok() {
            let mut record = vec![0; u32::from_le_bytes(head) as usize];
            if reader.read_exact(&mut record).is_err() {
                break;
            }
            show(&decode(&record).map_err(io::Error::other)?);
            whole += (head.len() + record.len()) as u64;
        }
        drop(reader);
        // A kill may have cut the last one off.
        file.set_len(whole)?;
        file.flush()?;
        Ok(Self(file))
    }

    pub(crate) fn append(&mut self, changes: &Changes) -> io::Result<()> {
        let record = encode(changes);
        let head = (record.len() as u32).to_le_bytes();
        self.0.write_all(&[&head, record.as_slice()].concat())
    }
}

/// A process that was killed may take a while to end.
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(Duration::from_millis(50)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("another process has the double's store"))
}

fn encode(changes: &Changes) -> Vec<u8> {
    let mut to = Encoder::new();
    for (key, value) in changes {
        to.bytes(key).u8(u8::from(value.is_some()));
        to.bytes(value.as_deref().unwrap_or_default());
    }
    to.finish()
}

fn decode(record: &[u8]) -> Result<Changes> {
    let (mut from, mut changes) = (Decoder::new("a commit", record), Changes::new());
    while from.left() > 0 {
        let key = from.bytes(record.len())?.to_vec();
        let is_set = from.u8()? == 1;
        let value = from.bytes(record.len())?.to_vec();
        changes.insert(key, is_set.then_some(value));
    }
    Ok(changes)
}
