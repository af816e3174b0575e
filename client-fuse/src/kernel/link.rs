//! Tells the kernel what other clients changed.
//!
//! Dropping pages or a name waits in the kernel for requests that hold the page or the directory, so it
//! never happens in a request's own task: what is to be dropped is queued, once, for a few threads.

use super::abi::{self, Notice};
use super::device::Device;
use super::given::{Given, Name};
use crate::filesystem::KernelCache;
use kiln_env::Env;
use kiln_types::{InodeId, Monotonic, Result};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
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

/// What is to be dropped, each once. Inodes are bounded by what the kernel holds; names by [`NAMES_MAX`].
#[derive(Default)]
struct Queue {
    order: VecDeque<Drop>,
    known: HashSet<Drop>,
    names: usize,
    /// Who is to be told when the pages of an inode are dropped.
    waiters: HashMap<InodeId, Vec<oneshot::Sender<()>>>,
    ended: bool,
}

impl Queue {
    fn push(&mut self, what: Drop) {
        let is_name = matches!(what, Drop::Name(..));
        if self.known.contains(&what) || (is_name && self.known.contains(&Drop::AllNames)) {
            return;
        }
        if is_name && self.names == NAMES_MAX {
            self.order.retain(|what| !matches!(what, Drop::Name(..)));
            self.known.retain(|what| !matches!(what, Drop::Name(..)));
            self.names = 0;
            return self.push(Drop::AllNames);
        }
        self.names += usize::from(is_name);
        self.known.insert(what.clone());
        self.order.push_back(what);
    }

    /// From here on the same may be queued again: it may have changed again.
    fn pop(&mut self) -> Option<(Drop, Vec<oneshot::Sender<()>>)> {
        let what = self.order.pop_front()?;
        self.known.remove(&what);
        self.names -= usize::from(matches!(what, Drop::Name(..)));
        let waiters = match &what {
            Drop::Content(inode) => self.waiters.remove(inode).unwrap_or_default(),
            _ => Vec::new(),
        };
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
        queue.waiters.clear();
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// The kernel gets a name that it may keep for so long.
    pub(super) fn give_name(&self, name: Name, keep_for: Duration, now: Monotonic) {
        self.shared.given.lock().note(name, keep_for, now);
    }

    fn queue(&self, what: Drop) {
        if self.shared.device.get().is_some() {
            self.shared.queue.lock().push(what);
            self.shared.changed.notify_one();
        }
    }
}

impl KernelCache for KernelLink {
    fn drop_attributes(&self, inode: InodeId) {
        if let Some(device) = self.shared.device.get() {
            tell(device, &abi::content(inode, false));
        }
    }

    fn drop_content(&self, inode: InodeId) {
        self.drop_attributes(inode);
        self.queue(Drop::Content(inode));
    }

    fn drop_content_now(&self, inode: InodeId) -> oneshot::Receiver<()> {
        self.drop_attributes(inode);
        let (waiter, dropped) = oneshot::channel();
        if self.shared.device.get().is_some() {
            let mut queue = self.shared.queue.lock();
            if !queue.ended {
                queue.push(Drop::Content(inode));
                queue.waiters.entry(inode).or_default().push(waiter);
            }
            drop(queue);
            self.shared.changed.notify_one();
        }
        dropped
    }

    fn drop_name(&self, parent: InodeId, name: &[u8]) {
        self.queue(Drop::Name(parent, name.to_vec()));
    }

    fn drop_all_names(&self) {
        let Some(names) = self.shared.given.lock().take() else {
            return self.queue(Drop::AllNames);
        };
        let mut queue = self.shared.queue.lock();
        names.for_each(|(parent, name)| queue.push(Drop::Name(parent, name)));
        drop(queue);
        self.shared.changed.notify_all();
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
            // An error: nobody waits any more.
            waiters.into_iter().for_each(|waiter| waiter.send(()).unwrap_or_default());
        }
    }

    /// Waits for something to drop; `None` when nothing is mounted any more.
    fn next(&self) -> Option<(Drop, Vec<oneshot::Sender<()>>)> {
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
        queue.push(Drop::Content(InodeId(7)));
        for _ in 0..2 {
            (0..NAMES_MAX).for_each(|number| queue.push(name(number)));
        }
        assert_eq!((queue.order.len(), queue.names), (NAMES_MAX + 1, NAMES_MAX));
        queue.push(name(NAMES_MAX));
        queue.push(name(3));
        let mut pop = || queue.pop().map(|(what, _)| what);
        assert_eq!(pop(), Some(Drop::Content(InodeId(7))));
        assert_eq!(pop(), Some(Drop::AllNames));
        assert_eq!(pop(), None);
        queue.push(name(3));
        assert_eq!(queue.pop().map(|(what, _)| what), Some(name(3)));
        assert_eq!((queue.known.len(), queue.names), (0, 0));
    }
}
