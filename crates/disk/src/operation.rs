//! One read, write or sync on its way: it owns its memory and its place in the queue until it is
//! over.

use crate::file::DataFile;
use crate::range::BLOCK;
use crate::sync_gate::Turn;
use kiln_memory::{Buffer, Bytes};
use kiln_types::Result;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How often the system may ask for another try of the same operation.
const RETRIES_MAX: u32 = 1000;

/// What is to be done, and who hears of it.
pub(crate) enum Task {
    Read { buffer: Buffer, done: oneshot::Sender<Result<Buffer>> },
    Write { bytes: Bytes, done: oneshot::Sender<Result<()>> },
    Sync { turn: Turn, done: oneshot::Sender<Result<()>> },
}

pub(crate) struct Operation {
    pub(crate) task: Task,
    offset: u64,
    /// Bytes that are read or written already: whole blocks.
    moved: usize,
    retries: u32,
    _slot: OwnedSemaphorePermit,
}

impl Operation {
    pub(crate) fn new(task: Task, offset: u64, slot: OwnedSemaphorePermit) -> Self {
        Self { task, offset, moved: 0, retries: 0, _slot: slot }
    }

    fn name(&self) -> &'static str {
        match self.task {
            Task::Read { .. } => "read",
            Task::Write { .. } => "write",
            Task::Sync { .. } => "sync",
        }
    }

    fn length(&self) -> usize {
        match &self.task {
            Task::Read { buffer, .. } => buffer.len(),
            Task::Write { bytes, .. } => bytes.len(),
            Task::Sync { .. } => 0,
        }
    }

    /// Where the rest begins: in the memory, and on the disk.
    pub(crate) fn rest(&self) -> (usize, u64) {
        (self.moved, self.offset + self.moved as u64)
    }

    /// Takes in what the system said to the rest. Gives the operation back while there is more to
    /// do; otherwise its caller has been answered.
    pub(crate) fn advance(
        mut self,
        outcome: rustix::io::Result<usize>,
        file: &DataFile,
    ) -> Option<Self> {
        let again = match outcome {
            Err(Errno::INTR | Errno::AGAIN) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                true
            }
            Err(_) => false,
            Ok(count) => {
                // Direct I/O goes on at a whole block only.
                let whole = count - count % BLOCK as usize;
                self.moved += whole;
                whole > 0 && self.moved < self.length()
            }
        };
        if again {
            return Some(self);
        }
        let result = self.verdict(outcome, file);
        self.answer(result);
        None
    }

    fn verdict(&self, outcome: rustix::io::Result<usize>, file: &DataFile) -> Result<()> {
        match outcome {
            Ok(_) if self.moved == self.length() => Ok(()),
            Ok(count) => {
                let (_, at) = self.rest();
                Err(file.failed(format_args!(
                    "{} stopped after {count} bytes at offset {at}, as if the file were shorter",
                    self.name()
                )))
            }
            // Whatever the reason, also a full file system: data is lost.
            Err(errno) if matches!(self.task, Task::Sync { .. }) => {
                Err(file.failed(format_args!("sync: {}", std::io::Error::from(errno))))
            }
            Err(errno) => Err(file.error(self.name(), self.offset, self.length(), errno)),
        }
    }

    fn answer(self, result: Result<()>) {
        // Whoever stopped waiting does not hear it: sending fails then.
        match self.task {
            Task::Read { buffer, done } => drop(done.send(result.map(|()| buffer))),
            Task::Write { done, .. } => drop(done.send(result)),
            Task::Sync { turn, done } => {
                turn.finish(&result);
                drop(done.send(result));
            }
        }
    }
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
