//! Files that are appended to, synced, and now and then begun anew.

use crate::block::{self, Found, Id};
use crate::board::{Board, Work};
use crate::seat::Seat;
use kiln_client::{File, OpenMode};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{InodeId, Result};
use parking_lot::Mutex;
use std::sync::Arc;

const RECORD: usize = 16 << 10;
/// A longer log begins anew.
const RECORDS_MAX: u64 = 500;
/// Records that are read in one go at most.
const RUN: u64 = 16;
/// Files' numbers begin here: the content of one is never another's.
const NUMBERS: u32 = 10_000;

/// One file.
pub(crate) struct Log {
    number: u32,
    inode: InodeId,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    generation: u32,
    /// It is being cut.
    cutting: bool,
    /// Records that a sync has acknowledged, or that were seen.
    synced: u64,
    /// Records of which each was written.
    written: u64,
    /// Records that may be there.
    attempted: u64,
}

impl Log {
    pub(crate) async fn make(seat: &Seat, parent: InodeId, number: usize) -> Result<Self> {
        let file = seat.create(parent, &format!("log-{number}")).await?;
        file.close().await?;
        let number = NUMBERS + number as u32;
        Ok(Self { number, inode: file.inode(), state: Mutex::default() })
    }

    fn id(&self, generation: u32, record: u64) -> Id {
        Id { file: self.number, generation, block: record }
    }

    /// Appends a record, which stays the same one until that has worked.
    async fn append(&self, board: &Board, file: &File) -> Result<()> {
        let State { generation, written, .. } = {
            let mut state = self.state.lock();
            state.attempted = state.written + 1;
            *state
        };
        let bytes = block::make(self.id(generation, written), 0, 1, RECORD);
        let what = || format!("append of record {written} to log {}", self.number);
        let appended = file.write_at(written * RECORD as u64, Bytes::copy_of(&bytes));
        board.time(Work::Write, what, appended).await?;
        self.state.lock().written = written + 1;
        Ok(())
    }

    async fn sync(&self, board: &Board, file: &File) -> Result<()> {
        let written = self.state.lock().written;
        let what = || format!("sync of log {}", self.number);
        board.time(Work::Names, what, file.sync()).await?;
        let mut state = self.state.lock();
        state.synced = state.synced.max(written);
        Ok(())
    }

    /// Begins it anew.
    async fn cut(&self, board: &Board, file: &File) -> Result<()> {
        self.state.lock().cutting = true;
        let what = || format!("truncation of log {}", self.number);
        board.time(Work::Names, what, file.set_length(0)).await?;
        let mut state = self.state.lock();
        *state = State { generation: state.generation + 1, ..State::default() };
        Ok(())
    }

    /// Reads records from `first` on, or where the synced ones end, and judges them.
    async fn read(&self, seat: &Seat, first: u64) -> Result<()> {
        let before = *self.state.lock();
        if before.cutting {
            return Ok(());
        }
        let file = seat.open(self.inode, OpenMode::READ).await?;
        let length = file.length();
        let first = first.min(before.synced);
        let buffer = Buffer::zeroed(RUN as usize * RECORD);
        let what = || format!("read of log {} from record {first} on", self.number);
        let read = file.read_at(first * RECORD as u64, buffer);
        let bytes = seat.board.time(Work::Read, what, read).await?;
        let after = *self.state.lock();
        if after.generation != before.generation || after.cutting {
            return Ok(());
        }
        let violate = |why: String| {
            seat.board.violate(format!("{}, inode {}: {why}", what(), self.inode));
        };
        let records = length / RECORD as u64;
        if records < before.synced || records > after.attempted {
            let State { synced, .. } = before;
            violate(format!(
                "it has {length} bytes; {synced} records were synced, {} begun",
                after.attempted
            ));
        }
        for (record, bytes) in (first..).zip(bytes.chunks_exact(RECORD)) {
            match block::look(self.id(before.generation, record), bytes) {
                Found::Whole { .. } => {}
                Found::Zeros if record >= before.synced => {}
                Found::Zeros => violate(format!("record {record} is zeros, and was synced")),
                Found::Wrong(why) => violate(format!("record {record}: {why}")),
            }
        }
        let mut state = self.state.lock();
        if state.generation == before.generation && !state.cutting {
            state.synced = state.synced.max(records.min(state.written));
        }
        Ok(())
    }

    /// Reads all of it.
    pub(crate) async fn verify(&self, seat: &Seat) -> Result<()> {
        let State { synced, .. } = *self.state.lock();
        for first in (0..=synced).step_by(RUN as usize) {
            self.read(seat, first).await?;
        }
        Ok(())
    }
}

/// Appends to a log until the end.
pub(crate) async fn write(seat: Arc<Seat>, log: Arc<Log>, mut random: fastrand::Rng) {
    let mut open: Option<File> = None;
    while !seat.board.is_ending() {
        let client = seat.client();
        let work = async {
            let file = match &open {
                Some(file) => file,
                None => open.insert(seat.open(log.inode, OpenMode::EDIT).await?),
            };
            let State { written, cutting, .. } = *log.state.lock();
            if written >= RECORDS_MAX || cutting {
                return log.cut(&seat.board, file).await;
            }
            log.append(&seat.board, file).await?;
            if random.u8(..4) == 0 { log.sync(&seat.board, file).await } else { Ok(()) }
        };
        if let Err(error) = work.await {
            seat.recover(&client, &error).await;
            open = None;
        }
        seat.breathe(&mut random).await;
    }
}

/// Reads logs until the end.
pub(crate) async fn read(seat: Arc<Seat>, logs: Vec<Arc<Log>>, mut random: fastrand::Rng) {
    while !seat.board.is_ending() {
        let client = seat.client();
        let log = &logs[random.usize(..logs.len())];
        let synced = log.state.lock().synced;
        if let Err(error) = log.read(&seat, random.u64(..=synced)).await {
            seat.recover(&client, &error).await;
        }
        seat.breathe(&mut random).await;
    }
}
