//! A disk in memory that loses power, tears writes, rots and fills up, as decided by its [`Env`].

mod media;

use crate::range::{check_range, check_transfer};
use crate::{Beneath, Disk};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{BLOCK_BYTES, Code, Error, Result};
use media::Media;
use parking_lot::{Mutex, MutexGuard};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long half an operation takes, in microseconds.
const READ_US: Range<u64> = 10..80;
const WRITE_US: Range<u64> = 5..100;
const SYNC_US: Range<u64> = 20..500;
/// How often an operation of a disk that hangs looks whether it still does.
const HANG_LOOK: Duration = Duration::from_millis(20);

/// A kind of operation, for [`SimulatedDisk::fail_next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read gives nothing.
    Read,
    /// A write fails; some of its sectors may be written.
    Write,
    /// A sync fails: what was unsynced is lost or kept at random, and the disk is poisoned.
    Sync,
}

/// A sparse disk in memory for tests and the simulator.
///
/// Its operations take a little random time, so that concurrent ones complete in any order. With an
/// [`Env`] of a seeded executor everything that happens is decided by the seed.
pub struct SimulatedDisk {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    media: Media,
    /// How many times longer than usual an operation takes, beyond once.
    slowness: u32,
    hangs: bool,
    /// Why this handle does not work any more.
    dead: Option<&'static str>,
    poisoned: bool,
    ignore_syncs: bool,
    /// Armed faults, each with the operations of its kind that come before it.
    faults: Vec<(Fault, u64)>,
    writes: u64,
    syncs: u64,
}

impl SimulatedDisk {
    /// An empty disk of `capacity` bytes.
    ///
    /// # Panics
    /// When `capacity` is not a multiple of 4 KiB.
    pub fn new(env: Env, capacity: u64) -> Arc<Self> {
        assert!(capacity.is_multiple_of(BLOCK_BYTES as u64), "whole blocks");
        Self::over(env, capacity, State::default())
    }

    fn over(env: Env, capacity: u64, state: State) -> Arc<Self> {
        Arc::new(Self { inner: Arc::new(Inner { env, capacity, state: Mutex::new(state) }) })
    }

    /// The disk as it is found after the power came back. Synced data is there; of everything
    /// written since, each 512-byte sector is independently old or new. This handle fails from now
    /// on.
    ///
    /// # Panics
    /// When this handle was ended before.
    pub fn power_loss(&self) -> Arc<Self> {
        let mut state = self.end("it lost its power");
        state.media.settle(&self.inner.env);
        Self::over(self.inner.env.clone(), self.inner.capacity, state)
    }

    /// The disk as the next process finds it after this one died: nothing written is lost,
    /// operations in flight are torn or absent. This handle fails from now on.
    ///
    /// # Panics
    /// When this handle was ended before.
    pub fn kill(&self) -> Arc<Self> {
        let state = self.end("its process was killed");
        Self::over(self.inner.env.clone(), self.inner.capacity, state)
    }

    fn end(&self, why: &'static str) -> State {
        let ended = State { dead: Some(why), ..State::default() };
        let state = std::mem::replace(&mut *self.inner.state.lock(), ended);
        assert!(state.dead.is_none(), "this handle was ended before: use the one it gave");
        State { poisoned: false, ..state }
    }

    /// Flips a bit of what is stored at byte `offset`, in silence.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.inner.state.lock().media.flip_bit(offset, bit);
    }

    /// Makes one operation of this kind fail, after `after` more of them that do not.
    pub fn fail_next(&self, what: Fault, after: u64) {
        self.inner.state.lock().faults.push((what, after));
    }

    /// Takes back what [`Self::fail_next`] armed and has not struck yet.
    pub fn fail_no_more(&self) {
        self.inner.state.lock().faults.clear();
    }

    /// Lets every operation take `times` as long as usual.
    pub fn set_slowness(&self, times: u32) {
        self.inner.state.lock().slowness = times.saturating_sub(1);
    }

    /// While set, no operation ends: those that are under way go on afterwards.
    pub fn hang(&self, yes: bool) {
        self.inner.state.lock().hangs = yes;
    }

    /// The blocks that hold something, by number.
    pub fn written_blocks(&self) -> Vec<u64> {
        self.inner.state.lock().media.blocks()
    }

    /// Makes it a sparse file on a file system with room for `bytes`: beyond that, writes to blocks
    /// that take no space yet give `NoSpace`. A discard gives space back.
    pub fn set_physical_capacity(&self, bytes: u64) {
        self.inner.state.lock().media.set_room(bytes);
    }

    /// A planted defect: while set, a sync returns without making anything durable.
    pub fn ignore_syncs(&self, yes: bool) {
        self.inner.state.lock().ignore_syncs = yes;
    }

    /// Writes that were begun, through all handles.
    pub fn writes(&self) -> u64 {
        self.inner.state.lock().writes
    }

    /// Syncs that were begun, through all handles.
    pub fn syncs(&self) -> u64 {
        self.inner.state.lock().syncs
    }
}

impl Inner {
    /// The state, unless the handle was ended.
    fn alive(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        match state.dead {
            None => Ok(state),
            Some(why) => Err(failed(format!("simulated disk: {why}"))),
        }
    }

    /// As [`Self::alive`], for what a failed sync forbids.
    fn writable(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.alive()?;
        if state.poisoned {
            return Err(failed("simulated disk: refused, because a sync failed before"));
        }
        Ok(state)
    }

    async fn pause(&self, micros: Range<u64>) {
        let span = micros.end - micros.start;
        let times = 1 + u64::from(self.state.lock().slowness);
        let micros = (micros.start + self.env.random_below(span)) * times;
        self.env.sleep(Duration::from_micros(micros)).await;
        while self.state.lock().hangs {
            self.env.sleep(HANG_LOOK).await;
        }
    }

    async fn read(&self, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        let fails = self.alive()?.strikes(Fault::Read);
        self.pause(READ_US).await;
        let state = self.alive()?;
        if fails {
            return Err(failed(format!("simulated disk: read at offset {offset} failed")));
        }
        state.media.read(offset, &mut buffer);
        Ok(buffer)
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let (fails, fits) = {
            let mut state = self.writable()?;
            state.writes += 1;
            (state.strikes(Fault::Write), state.media.allocate(offset, bytes.len()))
        };
        let fitting = bytes.slice(0..fits);
        self.pause(WRITE_US).await;
        if fails || self.env.random_below(2) == 0 {
            self.writable()?.media.write_some_sectors(&self.env, offset, &fitting);
        }
        self.pause(WRITE_US).await;
        let mut state = self.writable()?;
        if fails {
            return Err(failed(format!("simulated disk: write at offset {offset} failed")));
        }
        state.media.write(offset, &fitting);
        if fits < bytes.len() {
            return Err(no_space(offset + fits as u64));
        }
        Ok(())
    }

    async fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        self.pause(WRITE_US).await;
        let fits = self.writable()?.media.allocate(offset, length as usize) as u64;
        match fits < length {
            true => Err(no_space(offset + fits)),
            false => Ok(()),
        }
    }

    async fn sync(&self) -> Result<()> {
        let (fails, written) = {
            let mut state = self.writable()?;
            state.syncs += 1;
            (state.strikes(Fault::Sync), state.media.written())
        };
        self.pause(SYNC_US).await;
        let mut state = self.writable()?;
        if fails {
            state.poisoned = true;
            state.media.settle(&self.env);
            return Err(failed("simulated disk: sync failed"));
        }
        if !state.ignore_syncs {
            state.media.sync(written);
        }
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<()> {
        drop(self.writable()?);
        self.pause(WRITE_US).await;
        self.writable()?.media.discard(&self.env, offset, length);
        Ok(())
    }
}

impl State {
    /// Counts an operation of this kind; whether an armed fault strikes it.
    fn strikes(&mut self, kind: Fault) -> bool {
        let mut strikes = false;
        self.faults.retain_mut(|(fault, before)| {
            if *fault != kind {
                return true;
            }
            strikes |= *before == 0;
            before.checked_sub(1).map(|left| *before = left).is_some()
        });
        strikes
    }
}

fn no_space(offset: u64) -> Error {
    Error::new(Code::NoSpace, format!("simulated disk: no space for the block at {offset}"))
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Code::DiskFailed, message)
}

/// Runs an operation that goes on when its caller stops waiting.
async fn unstoppable<T: Send + 'static>(
    env: &Env,
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    env.spawn("simulated disk", async move {
        let _ = sender.send(operation.await);
    })
    .detach();
    receiver.await.unwrap_or_else(|_| Err(failed("simulated disk: the executor is gone")))
}

#[async_trait]
impl Disk for SimulatedDisk {
    fn capacity(&self) -> u64 {
        self.inner.capacity
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        check_transfer(self.inner.capacity, offset, &buffer)?;
        self.inner.read(offset, buffer).await
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        check_transfer(self.inner.capacity, offset, &bytes)?;
        let inner = Arc::clone(&self.inner);
        unstoppable(&self.inner.env, async move { inner.write(offset, bytes).await }).await
    }

    async fn sync(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        unstoppable(&self.inner.env, async move { inner.sync().await }).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.inner.capacity, offset, length)?;
        let inner = Arc::clone(&self.inner);
        unstoppable(&self.inner.env, async move { inner.discard(offset, length).await }).await
    }

    async fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.inner.capacity, offset, length)?;
        let inner = Arc::clone(&self.inner);
        unstoppable(&self.inner.env, async move { inner.reserve(offset, length).await }).await
    }

    async fn beneath(&self) -> Result<Option<Beneath>> {
        let left = self.inner.alive()?.media.room_left();
        Ok(left.map(|free_bytes| Beneath { id: 0, free_bytes }))
    }

    fn describe(&self) -> String {
        format!("simulated disk of {} bytes", self.inner.capacity)
    }
}
