//! One lock a key, for as long as someone wants it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// Asynchronous locks by key; fair for each key.
pub(crate) struct KeyedLocks<K: Copy + Eq + Hash> {
    locks: Mutex<HashMap<K, Lock>>,
}

/// Holds the lock of a key.
pub(crate) struct KeyGuard<'a, K: Copy + Eq + Hash> {
    owner: &'a KeyedLocks<K>,
    key: K,
    /// `None` only while the guard is being dropped or before the lock is held.
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Copy + Eq + Hash> KeyedLocks<K> {
    pub(crate) fn new() -> Self {
        Self { locks: Mutex::new(HashMap::new()) }
    }

    pub(crate) async fn lock(&self, key: K) -> KeyGuard<'_, K> {
        let lock = Arc::clone(self.locks.lock().entry(key).or_default());
        // Made before the wait, so that giving up the wait cleans up as well.
        let mut guard = KeyGuard { owner: self, key, guard: None };
        guard.guard = Some(lock.lock_owned().await);
        guard
    }
}

impl<K: Copy + Eq + Hash> Drop for KeyGuard<'_, K> {
    fn drop(&mut self) {
        let mut locks = self.owner.locks.lock();
        self.guard = None;
        // Clones are made only under the lock of the map: a count of one is the map's own.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_env::Executor;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn one_at_a_time_and_nothing_stays() {
        let executor = Executor::new(5);
        let env = executor.env();
        executor.run(async move {
            let locks = Arc::new(KeyedLocks::new());
            let inside = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
            let mut tasks = Vec::new();
            for number in 0..40_usize {
                let (env2, locks, inside) = (env.clone(), Arc::clone(&locks), Arc::clone(&inside));
                tasks.push(env.spawn("locker", async move {
                    let _guard = locks.lock(number % 2).await;
                    assert_eq!(inside[number % 2].fetch_add(1, Ordering::SeqCst), 0);
                    env2.sleep(Duration::from_micros(env2.random_below(50))).await;
                    inside[number % 2].fetch_sub(1, Ordering::SeqCst);
                }));
            }
            drop(tasks.split_off(30));
            for task in tasks {
                task.join().await.expect("no overlap");
            }
            assert_eq!(locks.locks.lock().len(), 0);
        });
    }
}
