//! A pool of buffers in size classes, with a bound on what it keeps.

use crate::block::{ALIGNMENT, Block, Memory};
use crate::buffer::Buffer;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size classes: 4 KiB, 8 KiB, .. 64 MiB.
const CLASSES: usize = 15;

/// Reuses memory of common sizes, because fresh pages cost more than the copy into them.
///
/// The pool bounds what it keeps idle, not what is in use: how much may be in use is bounded where
/// requests are admitted.
#[derive(Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
}

pub(crate) struct Shelf {
    classes: [Mutex<Vec<Memory>>; CLASSES],
    idle_bytes: AtomicUsize,
    idle_bytes_max: usize,
}

impl Pool {
    /// A pool that keeps at most `idle_bytes_max` bytes of unused memory.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self {
            shelf: Arc::new(Shelf {
                classes: std::array::from_fn(|_| Mutex::new(Vec::new())),
                idle_bytes: AtomicUsize::new(0),
                idle_bytes_max,
            }),
        }
    }

    /// A buffer of `length` bytes. Its content is arbitrary: zeros or what an earlier user left.
    pub fn take(&self, length: usize) -> Buffer {
        let memory = self.shelf.take(length);
        Buffer::over(Arc::new(Block::new(memory, Arc::downgrade(&self.shelf))), length)
    }
}

/// The class whose members hold at least `bytes`; `None` above the largest.
fn class_of(bytes: usize) -> Option<usize> {
    let pages = bytes.max(1).div_ceil(ALIGNMENT).next_power_of_two();
    let class = pages.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl Shelf {
    fn take(&self, length: usize) -> Memory {
        let Some(class) = class_of(length) else { return Memory::allocate(length) };
        match self.classes[class].lock().pop() {
            Some(memory) => {
                self.idle_bytes.fetch_sub(memory.bytes(), Ordering::Relaxed);
                memory
            }
            None => Memory::allocate(ALIGNMENT << class),
        }
    }

    pub(crate) fn put_back(&self, memory: Memory) {
        let bytes = memory.bytes();
        let Some(class) = class_of(bytes) else { return };
        if bytes != ALIGNMENT << class {
            return;
        }
        let idle = self.idle_bytes.fetch_add(bytes, Ordering::Relaxed);
        if idle + bytes > self.idle_bytes_max {
            self.idle_bytes.fetch_sub(bytes, Ordering::Relaxed);
        } else {
            self.classes[class].lock().push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_view_is_gone() {
        let pool = Pool::new(1 << 20);
        let mut buffer = pool.take(5000);
        buffer.fill(7);
        let at = buffer.as_ptr();
        let tail = buffer.split_off(4096);
        let bytes = buffer.freeze();
        let view = bytes.slice(10..20);
        drop(bytes);
        drop(tail);
        assert_eq!(&*view, &[7; 10]);
        assert_ne!(pool.take(5000).as_ptr(), at, "a view still reads it");
        drop(view);
        let again = [pool.take(8192), pool.take(8192)];
        assert!(again.iter().any(|buffer| buffer.as_ptr() == at && buffer.is_aligned()));
    }

    #[test]
    fn idle_memory_is_bounded() {
        let pool = Pool::new(ALIGNMENT * 4);
        let taken: Vec<_> = (0..16).map(|_| pool.take(ALIGNMENT)).collect();
        drop(taken);
        assert_eq!(pool.shelf.idle_bytes.load(Ordering::Relaxed), ALIGNMENT * 4);
    }

    #[test]
    fn parts_join_only_in_order_and_unique_bytes_thaw() {
        let mut first = Buffer::zeroed(100);
        let mut second = first.split_off(50);
        let third = second.split_off(20);
        let third = first.join(third).expect_err("not adjacent");
        assert!(second.join(third).is_ok() && first.join(second).is_ok());
        assert_eq!(first.len(), 100);
        let bytes = first.freeze();
        let copy = bytes.clone();
        let bytes = bytes.try_into_buffer().expect_err("two views");
        drop(copy);
        assert!(bytes.try_into_buffer().is_ok());
    }
}
