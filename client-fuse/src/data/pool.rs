//! What all files of a mount share: the environment, buffers, and the budgets.

use super::dirty::Usage;
use super::{Content, DataOptions};
use kiln_env::Env;
use kiln_memory::Pool;
use kiln_telemetry::metrics;
use kiln_types::Monotonic;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// How old a piece that was read ahead must be to make way for another one.
const IDLE: Duration = Duration::from_secs(1);

/// What the open files of one mount share.
pub(crate) struct DataPool {
    pub(super) env: Env,
    pub(super) options: DataOptions,
    pub(super) buffers: Pool,
    dirty: Mutex<DirtyFiles>,
    pressure: Notify,
    ahead: Mutex<AheadPieces>,
}

/// Where a file stands in the list of dirty files: since when, and a number that makes it unique.
pub(super) type Listed = (Monotonic, u64);

/// The files with dirty data that nobody has asked to send, oldest first.
#[derive(Default)]
struct DirtyFiles {
    usage: Usage,
    files: BTreeMap<Listed, Arc<Content>>,
    numbers: u64,
    /// Whether the task is there that sends what has become too old.
    watched: bool,
}

#[derive(Default)]
struct AheadPieces {
    bytes: u64,
    pieces: BTreeMap<u64, (Monotonic, Weak<Content>)>,
    numbers: u64,
}

/// A piece's part of the read-ahead budget; given back when dropped.
pub(super) struct Charge {
    pool: Arc<DataPool>,
    number: u64,
    bytes: u64,
}

impl DataPool {
    /// A pool without any file.
    pub(crate) fn new(env: Env, options: DataOptions) -> Arc<Self> {
        let idle = (options.dirty_bytes_max + options.read_ahead_bytes_max) / 4;
        Arc::new(Self {
            env,
            options,
            buffers: Pool::new(usize::try_from(idle).unwrap_or(usize::MAX)),
            dirty: Mutex::default(),
            pressure: Notify::new(),
            ahead: Mutex::default(),
        })
    }

    /// Takes room for `need` more bytes of a file that holds `held`, if there is.
    pub(super) fn reserve(&self, held: u64, need: u64) -> bool {
        let mut dirty = self.dirty.lock();
        let room = self.options.dirty_bytes_max.saturating_sub(dirty.usage.held);
        let fits = fair(held, need, room);
        if fits {
            dirty.usage.held += need;
        }
        fits
    }

    /// A file's usage has changed.
    pub(super) fn account(&self, before: Usage, after: Usage) {
        if before == after {
            return;
        }
        let mut dirty = self.dirty.lock();
        dirty.usage.held = dirty.usage.held + after.held - before.held;
        dirty.usage.waiting = dirty.usage.waiting + after.waiting - before.waiting;
        metrics::MOUNT_DIRTY.set_amount(dirty.usage.held);
        let pressed = dirty.usage.waiting > self.options.dirty_bytes_max / 4;
        drop(dirty);
        if pressed {
            self.pressure.notify_one();
        }
    }

    /// The file has become dirty: from now on the list keeps it.
    pub(super) fn list(self: &Arc<Self>, content: &Arc<Content>) -> Listed {
        let mut dirty = self.dirty.lock();
        dirty.numbers += 1;
        let listed = (self.env.now(), dirty.numbers);
        dirty.files.insert(listed, Arc::clone(content));
        if !std::mem::replace(&mut dirty.watched, true) {
            self.env.spawn("write-back watch", Arc::clone(self).watch()).detach();
        }
        listed
    }

    /// The file is clean, or all of it was asked for. Its owner calls, so that it never ends here.
    pub(super) fn unlist(&self, listed: Listed) {
        self.dirty.lock().files.remove(&listed);
    }

    /// Sends what has become too old, and the oldest when dirty memory gets short, as long as any file is
    /// dirty.
    async fn watch(self: Arc<Self>) {
        while let Some(due) = self.next_due() {
            let wait = due.since(self.env.now());
            if !wait.is_zero() {
                // Either there is pressure, or the time has come.
                let _ = self.env.timeout(wait, "pressure", self.pressure.notified()).await;
            }
            if let Some((listed, content)) = self.pop_due() {
                content.write_back(listed);
            }
        }
    }

    fn next_due(&self) -> Option<Monotonic> {
        let mut dirty = self.dirty.lock();
        let first = dirty.files.keys().next().map(|(since, _)| *since);
        dirty.watched = first.is_some();
        first.map(|since| since.plus(self.options.write_back_after))
    }

    fn pop_due(&self) -> Option<(Listed, Arc<Content>)> {
        let now = self.env.now();
        let mut dirty = self.dirty.lock();
        let pressed = dirty.usage.waiting > self.options.dirty_bytes_max / 4;
        let first = dirty.files.first_entry()?;
        let due = first.key().0.plus(self.options.write_back_after) <= now;
        (due || pressed).then(|| first.remove_entry())
    }

    /// Room for a piece of a file that has `held` bytes of them; older pieces that nobody reads make way.
    pub(super) fn charge(
        self: &Arc<Self>,
        content: &Arc<Content>,
        held: u64,
        bytes: u64,
    ) -> Option<Charge> {
        loop {
            let mut ahead = self.ahead.lock();
            let room = self.options.read_ahead_bytes_max.saturating_sub(ahead.bytes);
            if fair(held, bytes, room) {
                ahead.bytes += bytes;
                metrics::MOUNT_AHEAD.set_amount(ahead.bytes);
                ahead.numbers += 1;
                let number = ahead.numbers;
                ahead.pieces.insert(number, (self.env.now(), Arc::downgrade(content)));
                return Some(Charge { pool: Arc::clone(self), number, bytes });
            }
            let oldest = ahead.pieces.first_entry()?;
            if oldest.get().0.plus(IDLE) > self.env.now() {
                return None;
            }
            let (number, (_, content)) = oldest.remove_entry();
            drop(ahead);
            if let Some(content) = content.upgrade() {
                content.forget_piece(number);
            }
        }
    }

    /// Bytes of dirty data and of what was read ahead.
    #[cfg(test)]
    pub(super) fn used(&self) -> (u64, u64) {
        (self.dirty.lock().usage.held, self.ahead.lock().bytes)
    }
}

/// Whether a file that holds `held` bytes may take `need` more of `room` free ones: it must leave as much
/// as it has. So one file gets half of all, n files get a part of n + 1 each, and there is always room
/// left for one more file, however long others are stuck.
fn fair(held: u64, need: u64, room: u64) -> bool {
    held.saturating_add(need.saturating_mul(2)) <= room
}

impl Charge {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut ahead = self.pool.ahead.lock();
        ahead.bytes -= self.bytes;
        metrics::MOUNT_AHEAD.set_amount(ahead.bytes);
        ahead.pieces.remove(&self.number);
    }
}
