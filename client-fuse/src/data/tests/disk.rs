//! A backing in memory: slow, out of order, and failing when told to. It panics when it is used in a
//! way that a cluster would not bear.

use crate::data::Backing;
use async_trait::async_trait;
use kiln_client::SeekTo;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What the disk stores or does not.
const BLOCK: u64 = 4096;

pub(super) struct Disk {
    env: Env,
    pub(super) options: DiskOptions,
    pub(super) state: Mutex<DiskState>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DiskOptions {
    pub(super) chunk_bytes: u64,
    /// The longest time that a request takes, half before and half after it takes effect.
    pub(super) delay: Duration,
    /// Whether all take that long.
    pub(super) steady: bool,
}

#[derive(Default)]
pub(super) struct DiskState {
    pub(super) bytes: Vec<u8>,
    writing: Vec<Range<u64>>,
    /// Of 100 writes, how many fail.
    pub(super) failing: u64,
    /// No write returns while this is set.
    pub(super) stuck: bool,
    /// How long it may become.
    pub(super) quota: Option<u64>,
    pub(super) reads: Vec<Range<u64>>,
    pub(super) writes: Vec<Range<u64>>,
}

impl Disk {
    pub(super) fn new(env: Env, options: DiskOptions) -> Arc<Self> {
        Arc::new(Self { env, options, state: Mutex::default() })
    }

    async fn pause(&self) {
        let half = self.options.delay / 2;
        let pause = match self.options.steady {
            true => half,
            false => Duration::from_nanos(self.env.random_below(half.as_nanos() as u64 + 1)),
        };
        self.env.sleep(pause).await;
    }

    /// What the metadata service does when it sets the length.
    pub(super) async fn cut(&self, length: u64) -> Result<()> {
        self.pause().await;
        {
            let mut state = self.state.lock();
            assert!(state.writing.is_empty(), "written while cut: {:?}", state.writing);
            state.bytes.truncate(length as usize);
        }
        self.pause().await;
        assert!(self.state.lock().writing.is_empty(), "written while cut");
        Ok(())
    }

    /// `length` bytes from `start` on.
    pub(super) fn content(&self, start: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.state.lock().copy_to(start, &mut bytes);
        bytes
    }

    pub(super) fn put(&self, start: u64, bytes: &[u8]) {
        self.state.lock().put(start, bytes);
    }
}

impl DiskState {
    fn copy_to(&self, start: u64, to: &mut [u8]) {
        let from = self.bytes.get(start as usize..).unwrap_or_default();
        let there = from.len().min(to.len());
        to[..there].copy_from_slice(&from[..there]);
        to[there..].fill(0);
    }

    fn put(&mut self, start: u64, bytes: &[u8]) {
        let end = start as usize + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[start as usize..end].copy_from_slice(bytes);
    }

    fn begin(&mut self, range: &Range<u64>, chunk_bytes: u64) {
        assert!(!range.is_empty(), "an empty write");
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        assert!(!self.writing.iter().any(overlaps), "{range:?} beside {:?}", self.writing);
        assert_eq!(range.start / chunk_bytes, (range.end - 1) / chunk_bytes, "across a border");
        self.writing.push(range.clone());
        self.writes.push(range.clone());
    }
}

#[async_trait]
impl Backing for Disk {
    async fn read(&self, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        self.pause().await;
        {
            let mut state = self.state.lock();
            state.reads.push(offset..offset + buffer.len() as u64);
            state.copy_to(offset, &mut buffer);
        }
        self.pause().await;
        Ok(buffer)
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let range = offset..offset + bytes.len() as u64;
        self.state.lock().begin(&range, self.options.chunk_bytes);
        self.pause().await;
        while self.state.lock().stuck {
            self.env.sleep(Duration::from_millis(10)).await;
        }
        let fails = self.env.random_below(100) < self.state.lock().failing;
        // A write that fails may have written a part.
        let done = if fails {
            self.env.random_below(bytes.len() as u64 + 1) as usize
        } else {
            bytes.len()
        };
        self.put(offset, &bytes[..done]);
        self.pause().await;
        self.state.lock().writing.retain(|other| *other != range);
        if fails { Err(Error::new(Code::NoSpace, "the disk is full")) } else { Ok(()) }
    }

    async fn reserve(&self, end: u64) -> Result<()> {
        match self.state.lock().quota {
            Some(quota) if end > quota => Err(Error::new(Code::QuotaExceeded, "the quota is used")),
            _ => Ok(()),
        }
    }

    async fn zero(&self, range: Range<u64>) -> Result<()> {
        let alone = |state: &DiskState| assert!(state.writing.is_empty(), "{:?}", state.writing);
        alone(&self.state.lock());
        self.pause().await;
        let fails = self.env.random_below(100) < self.state.lock().failing;
        let length = (range.end - range.start) as usize;
        let done = if fails { self.env.random_below(length as u64) as usize } else { length };
        alone(&self.state.lock());
        self.put(range.start, &vec![0; done]);
        self.pause().await;
        alone(&self.state.lock());
        if fails { Err(Error::new(Code::NoSpace, "the disk is full")) } else { Ok(()) }
    }

    /// Blocks of zeros are not stored.
    async fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        self.pause().await;
        let found = {
            let bytes = &self.state.lock().bytes;
            let first = offset / BLOCK;
            let blocks = bytes.chunks(BLOCK as usize).enumerate().skip(first as usize);
            let fits = |block: &[u8]| block.iter().any(|byte| *byte != 0) == (to == SeekTo::Data);
            let found = blocks.into_iter().find(|(_, block)| fits(block));
            let end = Some(bytes.len() as u64).filter(|_| to == SeekTo::Hole);
            let inside = offset < bytes.len() as u64;
            found.map(|(at, _)| at as u64 * BLOCK).or(end).filter(|_| inside)
        };
        self.pause().await;
        let found = found.map(|at| at.max(offset));
        found.ok_or_else(|| Error::new(Code::BeyondEnd, "nothing is there"))
    }
}
