//! Tells the kernel what other clients changed.
//!
//! Dropping pages or a name waits in the kernel for requests that hold the page or the directory, so it
//! never happens in a request's own task: what is to be dropped is queued, once, for a few threads.

use super::abi::{self, Notice};
use super::device::Device;
use super::given::{Given, Name};
use crate::filesystem::{Dropped, KernelCache};
use kiln_env::Env;
use kiln_types::{InodeId, Monotonic, Result};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// One thread may wait behind a request that a lost server holds up; the others go on.
const THREADS: usize = 16;
/// With more names than these to be dropped, all are.
const NAMES_MAX: usize = 1 << 18;

/// The way to the kernel. The file system has it before it is mounted; until then the kernel has nothing
/// to drop.
#[derive(Default)]
pub struct KernelLink {
    shared: Arc<Shared>,
}

struct Shared {
    device: OnceLock<Arc<Device>>,
    given: Mutex<Given>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Default for Shared {
    fn default() -> Self {
        let (device, queue, changed) = Default::default();
        Self { device, given: Mutex::new(Given::new(NAMES_MAX / 2)), queue, changed }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Drop {
    Content(InodeId),
    Name(InodeId, Vec<u8>),
    AllNames,
}

/// Who waits hears when the last of these is gone.
type Waiter = Arc<oneshot::Sender<()>>;

/// What is to be dropped, each once. Inodes are bounded by what the kernel holds; names by [`NAMES_MAX`].
#[derive(Default)]
struct Queue {
    order: VecDeque<Drop>,
    /// With who waits until it is dropped.
    known: HashMap<Drop, Vec<Waiter>>,
    names: usize,
    ended: bool,
}

impl Queue {
    fn push(&mut self, what: Drop, waiter: &Waiter) {
        let is_name = matches!(what, Drop::Name(..));
        if is_name && let Some(waiters) = self.known.get_mut(&Drop::AllNames) {
            return waiters.push(Arc::clone(waiter));
        }
        if let Some(waiters) = self.known.get_mut(&what) {
            return waiters.push(Arc::clone(waiter));
        }
        if is_name && self.names == NAMES_MAX {
            self.order.retain(|what| !matches!(what, Drop::Name(..)));
            let names = self.known.extract_if(|what, _| matches!(what, Drop::Name(..)));
            let waiters = names.flat_map(|(_, waiters)| waiters);
            let waiters = waiters.chain([Arc::clone(waiter)]).collect();
            self.names = 0;
            return self.add(Drop::AllNames, waiters);
        }
        self.names += usize::from(is_name);
        self.add(what, vec![Arc::clone(waiter)]);
    }

    fn add(&mut self, what: Drop, waiters: Vec<Waiter>) {
        self.known.insert(what.clone(), waiters);
        self.order.push_back(what);
    }

    /// From here on the same may be queued again: it may have changed again.
    fn pop(&mut self) -> Option<(Drop, Vec<Waiter>)> {
        let what = self.order.pop_front()?;
        let waiters = self.known.remove(&what).unwrap_or_default();
        self.names -= usize::from(matches!(what, Drop::Name(..)));
        Some((what, waiters))
    }
}

impl KernelLink {
    /// A link that leads nowhere yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Connects it to the kernel's device of a mount; once.
    pub(super) fn connect(&self, device: Arc<Device>, env: &Env) -> Result<()> {
        if self.shared.device.set(device).is_err() {
            return Err(kiln_types::Error::internal("a kernel link is connected twice"));
        }
        for _ in 0..THREADS {
            let shared = Arc::clone(&self.shared);
            env.spawn_thread("kernel-cache", move || shared.work())?;
        }
        Ok(())
    }

    /// Nothing is mounted any more.
    pub(super) fn end(&self) {
        let mut queue = self.shared.queue.lock();
        queue.ended = true;
        queue.known.clear();
        queue.order.clear();
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// The kernel gets a name that it may keep for so long.
    pub(super) fn give_name(&self, name: Name, keep_for: Duration, now: Monotonic) {
        self.shared.given.lock().note(name, keep_for, now);
    }

    fn queue(&self, all: impl Iterator<Item = Drop>) -> Dropped {
        let (waiter, dropped) = oneshot::channel();
        if self.shared.device.get().is_some() {
            let waiter = Arc::new(waiter);
            let mut queue = self.shared.queue.lock();
            if !queue.ended {
                all.for_each(|what| queue.push(what, &waiter));
            }
            drop(queue);
            self.shared.changed.notify_all();
        }
        dropped
    }
}

impl KernelCache for KernelLink {
    fn drop_attributes(&self, inode: InodeId) {
        if let Some(device) = self.shared.device.get() {
            tell(device, &abi::content(inode, false));
        }
    }

    fn drop_content(&self, inode: InodeId) -> Dropped {
        self.drop_attributes(inode);
        self.queue([Drop::Content(inode)].into_iter())
    }

    fn drop_name(&self, parent: InodeId, name: &[u8]) -> Dropped {
        self.queue([Drop::Name(parent, name.to_vec())].into_iter())
    }

    fn drop_all_names(&self) -> Dropped {
        match self.shared.given.lock().take() {
            Some(names) => self.queue(names.map(|(parent, name)| Drop::Name(parent, name))),
            None => self.queue([Drop::AllNames].into_iter()),
        }
    }
}

impl Shared {
    fn work(&self) {
        let Some(device) = self.device.get() else { return };
        while let Some((what, waiters)) = self.next() {
            let notice = match &what {
                Drop::Content(inode) => abi::content(*inode, true),
                Drop::Name(parent, name) => abi::name(*parent, name),
                Drop::AllNames => abi::every_name(),
            };
            tell(device, &notice);
            drop(waiters);
        }
    }

    /// Waits for something to drop; `None` when nothing is mounted any more.
    fn next(&self) -> Option<(Drop, Vec<Waiter>)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.ended {
                return None;
            }
            if let Some(next) = queue.pop() {
                return Some(next);
            }
            self.changed.wait(&mut queue);
        }
    }
}

fn tell(device: &Device, (what, body): &Notice) {
    match device.notify(*what, body) {
        // It does not know it (any more), or the mount is gone, and with it all that the kernel had.
        Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN) => {}
        Err(error) => tracing::warn!(%error, "the kernel may show what it knew for a while"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_queued_once_and_too_many_names_become_all() {
        let mut queue = Queue::default();
        let name = |number: usize| Drop::Name(InodeId(1), number.to_string().into_bytes());
        let other = Arc::new(oneshot::channel().0);
        queue.push(Drop::Content(InodeId(7)), &other);
        let (waiter, mut dropped) = oneshot::channel();
        queue.push(name(0), &Arc::new(waiter));
        for _ in 0..2 {
            (0..NAMES_MAX).for_each(|number| queue.push(name(number), &other));
        }
        assert_eq!((queue.order.len(), queue.names), (NAMES_MAX + 1, NAMES_MAX));
        queue.push(name(NAMES_MAX), &other);
        queue.push(name(3), &other);
        assert_eq!(queue.pop().map(|(what, _)| what), Some(Drop::Content(InodeId(7))));
        let (all, waiters) = queue.pop().unwrap();
        assert_eq!(all, Drop::AllNames);
        assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(waiters);
        assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(queue.pop().is_none());
        queue.push(name(3), &other);
        assert_eq!(queue.pop().map(|(what, _)| what), Some(name(3)));
        assert_eq!((queue.known.len(), queue.names), (0, 0));
    }
}
