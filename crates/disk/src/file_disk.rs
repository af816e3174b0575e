//! A disk over a real file or device: checks and queues requests, whichever engine moves the bytes.

use crate::file::DataFile;
use crate::operation::{Operation, Task};
use crate::range::{check_range, check_transfer};
use crate::sync_gate::SyncGate;
use crate::uring::Uring;
use crate::{Beneath, Disk};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_telemetry::metrics;
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What moves the bytes.
pub(crate) enum Driver {
    Uring(Uring),
    Plain,
}

pub(crate) struct FileDisk {
    driver: Driver,
    file: Arc<DataFile>,
    env: Env,
    /// One permit for each operation that may be in flight.
    slots: Arc<Semaphore>,
    gate: Arc<SyncGate>,
    depth: usize,
}

impl FileDisk {
    pub(crate) fn new(
        driver: Driver,
        file: Arc<DataFile>,
        env: &Env,
        slots: Arc<Semaphore>,
        gate: Arc<SyncGate>,
    ) -> Self {
        let depth = slots.available_permits();
        Self { driver, file, env: env.clone(), slots, gate, depth }
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).acquire_owned().await.map_err(|_| self.stopped())
    }

    /// Runs a call of the file on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&DataFile) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.slot().await?;
        let file = Arc::clone(&self.file);
        let work = move || {
            let _slot = slot;
            call(&file)
        };
        self.env.blocking(work).await?
    }

    fn stopped(&self) -> Error {
        let message = format!("{}: its engine has stopped", self.file.path().display());
        Error::new(Code::DiskFailed, message).with_hint("the log says why; restart the server")
    }

    /// Hands an operation over, and waits until it is over.
    async fn run<T>(
        &self,
        offset: u64,
        slot: OwnedSemaphorePermit,
        task: impl FnOnce(oneshot::Sender<Result<T>>) -> Task,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let operation = Operation::new(task(done), offset, slot);
        match &self.driver {
            Driver::Uring(uring) => uring.submit(operation),
            Driver::Plain => {
                let file = Arc::clone(&self.file);
                self.env.blocking(move || run_plain(operation, &file)).await?;
            }
        }
        result.await.unwrap_or_else(|_| Err(self.stopped()))
    }
}

/// Runs one operation on this thread.
fn run_plain(operation: Operation, file: &DataFile) {
    let mut left = Some(operation);
    while let Some(mut operation) = left {
        let (from, offset) = operation.rest();
        let outcome = match &mut operation.task {
            Task::Read { buffer, .. } => rustix::io::pread(file, &mut buffer[from..], offset),
            Task::Write { bytes, .. } => rustix::io::pwrite(file, &bytes[from..], offset),
            Task::Sync { .. } => rustix::fs::fdatasync(file).map(|()| 0),
        };
        left = operation.advance(outcome, file);
    }
}

#[async_trait]
impl Disk for FileDisk {
    fn capacity(&self) -> u64 {
        self.file.capacity()
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        check_transfer(self.capacity(), offset, &buffer)?;
        if buffer.is_empty() {
            return Ok(buffer);
        }
        let _under_way = metrics::DISK_UNDER_WAY.hold();
        let slot = self.slot().await?;
        let start = self.env.now();
        let buffer = self.run(offset, slot, |done| Task::Read { buffer, done }).await?;
        metrics::DISK_READ_DURATION.record_duration(self.env.now().since(start));
        metrics::DISK_READ.add(buffer.len() as u64);
        Ok(buffer)
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        check_transfer(self.capacity(), offset, &bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        let _under_way = metrics::DISK_UNDER_WAY.hold();
        let slot = self.slot().await?;
        self.gate.check()?;
        let start = self.env.now();
        self.run(offset, slot, |done| Task::Write { bytes, done }).await?;
        metrics::DISK_WRITE_DURATION.record_duration(self.env.now().since(start));
        // A sync may have failed meanwhile: then nobody would ever make this write durable.
        self.gate.check()?;
        metrics::DISK_WRITTEN.add(length);
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        self.gate.check()?;
        let _under_way = metrics::DISK_UNDER_WAY.hold();
        let Some(turn) = self.gate.turn().await? else { return Ok(()) };
        let slot = self.slot().await?;
        let start = self.env.now();
        self.run(0, slot, |done| Task::Sync { turn, done }).await?;
        metrics::DISK_SYNC_DURATION.record_duration(self.env.now().since(start));
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.capacity(), offset, length)?;
        match length {
            0 => Ok(()),
            _ => self.blocking(move |file| file.discard(offset, length)).await,
        }
    }

    async fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.capacity(), offset, length)?;
        if length == 0 || self.file.has_all_space() {
            return Ok(());
        }
        self.blocking(move |file| file.reserve(offset, length)).await
    }

    async fn beneath(&self) -> Result<Option<Beneath>> {
        self.blocking(DataFile::beneath).await
    }

    fn describe(&self) -> String {
        let engine = match &self.driver {
            Driver::Uring(uring) => uring.mode(),
            Driver::Plain => "plain",
        };
        format!("{}, {engine}, depth {}", self.file, self.depth)
    }
}
