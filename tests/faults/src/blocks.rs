//! Files of blocks that are overwritten and read: each block is a register with one writer.

use crate::block::{self, Found, Id};
use crate::board::{Board, Work};
use crate::seat::Seat;
use kiln_client::{Client, File, OpenMode};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{InodeId, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A chunk and a half, and a chunk more.
const FILE_BYTES: usize = 5 << 19;
const SIZES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 256 << 10];
/// Half of all requests go to the first files, which have so few blocks.
const HOT_FILES: usize = 12;
const HOT_BLOCKS: usize = 8;
/// Blocks in one request at most.
const RUN: usize = 4;

/// What is known of a block: a read finds a sequence number of `max(acknowledged, seen)` when it begins,
/// to `attempted` when it ends.
#[derive(Clone, Copy, Default)]
struct Register {
    acknowledged: u64,
    seen: u64,
    attempted: u64,
}

impl Register {
    /// Whether `found` may be what a read returned that began at `before` and has ended now.
    fn judge(&mut self, before: Self, found: &Found) -> Result<(), String> {
        let (least, most) = (before.acknowledged.max(before.seen), self.attempted);
        match found {
            Found::Whole { sequence, .. } if (least..=most).contains(sequence) => {
                self.seen = self.seen.max(*sequence);
                Ok(())
            }
            Found::Whole { sequence, .. } => Err(format!(
                "holds write {sequence}; when the read began {} was acknowledged and {} seen, {most} \
                 begun when it ended",
                before.acknowledged, before.seen
            )),
            Found::Zeros => Err(format!("zeros, after write {least}")),
            Found::Wrong(why) => Err(format!("{why}, after write {least}")),
        }
    }
}

/// One file.
pub(crate) struct BlockFile {
    number: u32,
    inode: InodeId,
    block_bytes: usize,
    registers: Mutex<Vec<Register>>,
}

impl BlockFile {
    /// Makes file `number` with every block written once.
    pub(crate) async fn make(seat: &Seat, parent: InodeId, number: u32) -> Result<Self> {
        let file = seat.create(parent, &format!("blocks-{number}")).await?;
        let block_bytes = SIZES[number as usize % SIZES.len()];
        let first = Register { acknowledged: 1, seen: 1, attempted: 1 };
        let blocks = match number as usize {
            ..HOT_FILES => HOT_BLOCKS,
            _ => FILE_BYTES / block_bytes,
        };
        let registers = Mutex::new(vec![first; blocks]);
        let made = Self { number, inode: file.inode(), block_bytes, registers };
        let all: Vec<_> = (0..made.blocks()).flat_map(|block| made.bytes(block, 0, 1)).collect();
        file.write_at(0, Bytes::copy_of(&all)).await?;
        file.close().await?;
        Ok(made)
    }

    fn blocks(&self) -> usize {
        self.registers.lock().len()
    }

    fn id(&self, block: usize) -> Id {
        Id { file: self.number, generation: 0, block: block as u64 }
    }

    fn bytes(&self, block: usize, writer: usize, sequence: u64) -> Vec<u8> {
        block::make(self.id(block), writer as u64, sequence, self.block_bytes)
    }

    /// Some of the blocks of one of `writers`.
    fn choose(&self, writer: usize, writers: usize, random: &mut fastrand::Rng) -> (usize, usize) {
        let (from, to) = (self.blocks() * writer / writers, self.blocks() * (writer + 1) / writers);
        let first = random.usize(from..to);
        (first, (first + random.usize(1..=RUN)).min(to))
    }

    /// Writes blocks `first..end` anew.
    async fn write(
        &self,
        board: &Board,
        file: &File,
        writer: usize,
        run: (usize, usize),
    ) -> Result<()> {
        let (first, end) = run;
        let sequences: Vec<_> = {
            let mut registers = self.registers.lock();
            registers[first..end]
                .iter_mut()
                .map(|register| {
                    register.attempted += 1;
                    register.attempted
                })
                .collect()
        };
        let bytes: Vec<_> = (first..end)
            .zip(&sequences)
            .flat_map(|(block, sequence)| self.bytes(block, writer, *sequence))
            .collect();
        let what = || format!("write of file {} blocks {first}..{end}", self.number);
        let written = file.write_at((first * self.block_bytes) as u64, Bytes::copy_of(&bytes));
        board.time(Work::Write, what, written).await?;
        let mut registers = self.registers.lock();
        for (register, sequence) in registers[first..end].iter_mut().zip(sequences) {
            register.acknowledged = sequence;
        }
        Ok(())
    }

    /// Reads blocks `first..end` and judges what is there.
    async fn read(&self, board: &Board, file: &File, (first, end): (usize, usize)) -> Result<()> {
        let before: Vec<_> = self.registers.lock()[first..end].to_vec();
        let buffer = Buffer::zeroed((end - first) * self.block_bytes);
        let what = || format!("read of file {} blocks {first}..{end}", self.number);
        let read = file.read_at((first * self.block_bytes) as u64, buffer);
        let bytes = board.time(Work::Read, what, read).await?;
        if bytes.len() != (end - first) * self.block_bytes {
            board.violate(format!("{}: only {} bytes of it", what(), bytes.len()));
        }
        let blocks = bytes.chunks_exact(self.block_bytes).map(<[u8]>::to_vec);
        let mut registers = self.registers.lock();
        for ((block, bytes), before) in (first..end).zip(blocks).zip(before) {
            let found = block::look(self.id(block), &bytes);
            if let Err(wrong) = registers[block].judge(before, &found) {
                let Self { number, inode, .. } = self;
                board.violate(format!("file {number} block {block}, inode {inode}: {wrong}"));
            }
        }
        Ok(())
    }

    /// Reads all of it.
    pub(crate) async fn verify(&self, seat: &Seat) -> Result<()> {
        let file = seat.open(self.inode, OpenMode::READ).await?;
        let blocks = self.blocks();
        for first in (0..blocks).step_by(RUN) {
            self.read(&seat.board, &file, (first, (first + RUN).min(blocks))).await?;
        }
        file.close().await.map(drop)
    }
}

fn choose<'a>(files: &'a [BlockFile], random: &mut fastrand::Rng) -> &'a BlockFile {
    let hot = HOT_FILES.min(files.len());
    &files[if random.bool() { random.usize(..hot) } else { random.usize(..files.len()) }]
}

/// The open files of one worker, for as long as its client is the same.
#[derive(Default)]
struct Handles {
    client: Option<Arc<Client>>,
    files: BTreeMap<u32, Arc<File>>,
}

impl Handles {
    async fn get(&mut self, seat: &Seat, file: &BlockFile, mode: OpenMode) -> Result<Arc<File>> {
        let client = seat.client();
        if !self.client.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, &client)) {
            *self = Self { client: Some(client), files: BTreeMap::new() };
        }
        if let Some(open) = self.files.get(&file.number) {
            return Ok(Arc::clone(open));
        }
        let open = Arc::new(seat.open(file.inode, mode).await?);
        self.files.insert(file.number, Arc::clone(&open));
        Ok(open)
    }
}

/// Overwrites its own blocks until the end.
pub(crate) async fn write(
    seat: Arc<Seat>,
    files: Arc<Vec<BlockFile>>,
    (writer, writers): (usize, usize),
    mut random: fastrand::Rng,
) {
    let mut handles = Handles::default();
    while !seat.board.is_ending() {
        let file = choose(&files, &mut random);
        let run = file.choose(writer, writers, &mut random);
        let client = seat.client();
        let work = async {
            let open = handles.get(&seat, file, OpenMode::EDIT).await?;
            file.write(&seat.board, &open, writer, run).await?;
            if random.u8(..10) == 0 {
                let what = || format!("sync of file {}", file.number);
                seat.board.time(Work::Names, what, open.sync()).await?;
            }
            Ok(())
        };
        if let Err(error) = work.await {
            seat.recover(&client, &error).await;
        }
        seat.breathe(&mut random).await;
    }
}

/// Reads any blocks until the end.
pub(crate) async fn read(seat: Arc<Seat>, files: Arc<Vec<BlockFile>>, mut random: fastrand::Rng) {
    let mut handles = Handles::default();
    while !seat.board.is_ending() {
        let file = choose(&files, &mut random);
        let run = file.choose(0, 1, &mut random);
        if random.u8(..20) == 0 {
            handles.files.remove(&file.number);
        }
        let client = seat.client();
        let work = async {
            let open = handles.get(&seat, file, OpenMode::READ).await?;
            file.read(&seat.board, &open, run).await
        };
        if let Err(error) = work.await {
            seat.recover(&client, &error).await;
        }
        seat.breathe(&mut random).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_neither_older_than_what_was_known_nor_newer_than_what_was_begun() {
        let whole = |sequence| Found::Whole { writer: 1, sequence };
        let before = Register { acknowledged: 3, seen: 4, attempted: 5 };
        let mut after = Register { acknowledged: 5, seen: 4, attempted: 6 };
        for (sequence, fine) in
            [(2, false), (3, false), (4, true), (5, true), (6, true), (7, false)]
        {
            assert_eq!(after.judge(before, &whole(sequence)).is_ok(), fine, "{sequence}");
        }
        // What was seen once is seen by all from then on.
        assert_eq!(after.seen, 6);
        assert!(after.judge(after, &whole(5)).is_err());
        assert!(after.judge(before, &Found::Zeros).is_err());
    }
}
