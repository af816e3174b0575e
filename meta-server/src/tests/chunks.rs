//! Storage in memory: chunks with their epochs, byte by byte, and lost or refused requests.

use crate::chunks::{ChunkFile, ChunkService, ChunkSpace, Removal};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_types::{Attr, ChainId, Code, Error, InodeId, Layout, Result, TruncateEpoch};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
struct Chunk {
    epoch: TruncateEpoch,
    length: u32,
    /// Bytes that are not zero.
    bytes: BTreeMap<u32, u8>,
}

pub(crate) struct FakeChunks {
    env: Env,
    /// While set, nobody answers.
    pub(crate) down: AtomicBool,
    /// These do not answer.
    pub(crate) away: Mutex<BTreeSet<ChainId>>,
    /// Sweeps of chains that were begun.
    pub(crate) sweeps: AtomicUsize,
    chunks: Mutex<BTreeMap<(InodeId, u64), Chunk>>,
    /// Every cut that was ever asked for.
    cuts: Mutex<Vec<CutRequest>>,
}

#[derive(Clone, Copy)]
struct CutRequest {
    inode: InodeId,
    index: u64,
    length: u32,
    epoch: TruncateEpoch,
    floor: TruncateEpoch,
}

impl FakeChunks {
    pub(crate) fn new(env: &Env) -> Self {
        Self {
            env: env.clone(),
            down: AtomicBool::new(false),
            away: Mutex::default(),
            sweeps: AtomicUsize::new(0),
            chunks: Mutex::default(),
            cuts: Mutex::default(),
        }
    }

    /// A client's write of one byte under the epoch of its capability.
    pub(crate) fn write(
        &self,
        attr: &Attr,
        epoch: TruncateEpoch,
        offset: u64,
        byte: u8,
    ) -> Result<()> {
        let layout = attr.layout.expect("a file");
        let (index, at) = place(&layout, offset);
        let mut chunks = self.chunks.lock();
        let chunk = chunks.entry((attr.inode, index)).or_default();
        if chunk.epoch > epoch {
            return Err(Error::new(Code::StaleEpoch, "the file was truncated"));
        }
        if chunk.epoch < attr.epoch_floor(index) {
            *chunk = Chunk::default();
        }
        chunk.epoch = epoch;
        chunk.length = chunk.length.max(at + 1);
        chunk.bytes.insert(at, byte);
        Ok(())
    }

    /// A client's read of one byte.
    pub(crate) fn read(&self, attr: &Attr, offset: u64) -> u8 {
        if offset >= attr.length {
            return 0;
        }
        let (index, at) = place(&attr.layout.expect("a file"), offset);
        match self.chunks.lock().get(&(attr.inode, index)) {
            Some(chunk) if chunk.epoch >= attr.epoch_floor(index) && at < chunk.length => {
                chunk.bytes.get(&at).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Every stored chunk.
    pub(crate) fn stored(&self) -> Vec<(InodeId, u64)> {
        self.chunks.lock().keys().copied().collect()
    }

    /// Cuts of servers that stopped, and which storage gets so late.
    pub(crate) fn repeat_cuts(&self, is_live: impl Fn(InodeId) -> bool) {
        let cuts = self.cuts.lock().clone();
        cuts.into_iter().filter(|cut| is_live(cut.inode)).for_each(|cut| self.cut(cut));
    }

    fn cut(&self, cut: CutRequest) {
        let mut chunks = self.chunks.lock();
        let chunk = chunks.entry((cut.inode, cut.index)).or_default();
        if chunk.epoch > cut.epoch {
            return;
        }
        if chunk.epoch < cut.floor {
            *chunk = Chunk::default();
        }
        chunk.epoch = cut.epoch;
        chunk.length = chunk.length.min(cut.length);
        chunk.bytes.retain(|at, _| *at < cut.length);
    }

    fn remove(&self, chain: ChainId, removal: &Removal) -> Result<()> {
        let Removal { file, range, below } = removal;
        if self.away.lock().contains(&chain) {
            return Err(Error::new(Code::DeadlineExceeded, "the chain is away"));
        }
        self.strike("chunks.refuse_removal")?;
        self.chunks.lock().retain(|(inode, index), chunk| {
            let is_here = index % u64::from(file.layout.stripe) == chain.0;
            let is_it = *inode == file.inode && range.contains(index) && is_here;
            !is_it || chunk.epoch >= *below
        });
        self.strike("chunks.lose_removal")
    }

    fn strike(&self, name: &'static str) -> Result<()> {
        match self.down.load(Ordering::Relaxed) || self.env.fault(name) {
            true => Err(Error::new(Code::Unreachable, "an injected failure of storage")),
            false => Ok(()),
        }
    }
}

fn place(layout: &Layout, offset: u64) -> (u64, u32) {
    let chunk_bytes = u64::from(layout.chunk_bytes);
    (offset / chunk_bytes, (offset % chunk_bytes) as u32)
}

#[async_trait]
impl ChunkService for FakeChunks {
    async fn truncate_chunk(
        &self,
        file: &ChunkFile,
        index: u64,
        length: u32,
        epoch: TruncateEpoch,
        floor: TruncateEpoch,
    ) -> Result<()> {
        let cut = CutRequest { inode: file.inode, index, length, epoch, floor };
        self.cuts.lock().push(cut);
        self.strike("chunks.refuse_cut")?;
        self.cut(cut);
        self.strike("chunks.lose_cut")
    }

    fn chains(&self, layout: &Layout) -> Result<BTreeSet<ChainId>> {
        Ok((0..u64::from(layout.stripe)).map(ChainId).collect())
    }

    async fn remove_chunks(&self, chain: ChainId, removals: &[Removal]) -> Vec<Result<()>> {
        self.sweeps.fetch_add(1, Ordering::Relaxed);
        self.env.sleep(Duration::from_millis(5)).await;
        removals.iter().map(|removal| self.remove(chain, removal)).collect()
    }

    async fn stored_end(&self, file: &ChunkFile, floors: &[(u64, TruncateEpoch)]) -> Result<u64> {
        self.strike("chunks.refuse_end")?;
        let chunks = self.chunks.lock();
        let of_file = (file.inode, 0)..=(file.inode, u64::MAX);
        let counts = |index: u64, chunk: &Chunk| {
            let floor = floors.iter().rev().find(|(first, _)| *first <= index);
            floor.is_none_or(|(_, epoch)| chunk.epoch >= *epoch)
        };
        let chunk_bytes = u64::from(file.layout.chunk_bytes);
        let end = |((_, index), chunk): (&(InodeId, u64), &Chunk)| {
            counts(*index, chunk).then(|| index * chunk_bytes + u64::from(chunk.length))
        };
        Ok(chunks.range(of_file).filter_map(end).max().unwrap_or(0))
    }

    async fn space(&self) -> Result<ChunkSpace> {
        Ok(ChunkSpace { total_bytes: 1 << 40, free_bytes: 1 << 39 })
    }
}
