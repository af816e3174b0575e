//! One sync at a time, shared by everyone whose writes it covers; the first that fails is the last.

use kiln_types::{Code, Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// Orders the syncs of one disk.
///
/// The system reports a lost write to one sync only. Were two of them in flight, the other one
/// would report success for the same loss: so the next begins when the last is known to have
/// succeeded.
pub(crate) struct SyncGate {
    running: AtomicBool,
    begun: AtomicU64,
    /// The newest sync that succeeded.
    done: AtomicU64,
    failed: OnceLock<Error>,
    /// Wakes all who wait, whenever a turn ends.
    ended: Notify,
}

/// The right to run one sync; it goes with the operation, not with the caller that may stop
/// waiting.
pub(crate) struct Turn {
    gate: Arc<SyncGate>,
    number: u64,
}

impl SyncGate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            running: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: OnceLock::new(),
            ended: Notify::new(),
        })
    }

    /// Refuses writes and syncs once a sync has failed.
    pub(crate) fn check(&self) -> Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// From now on [`Self::check`] fails, with the first reason that is given.
    pub(crate) fn fail(&self, reason: &Error) {
        let refused = Error::new(
            Code::DiskFailed,
            format!("refused, because this disk failed before: {}", reason.message()),
        );
        let refused = refused.with_hint("what was not synced may be lost: take the disk out");
        let _ = self.failed.set(refused);
    }

    /// Waits for the turn to sync; `None` when a sync that began after this call succeeded
    /// meanwhile.
    pub(crate) async fn turn(self: &Arc<Self>) -> Result<Option<Turn>> {
        let needed = self.begun.load(Ordering::SeqCst) + 1;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // From here on no end is missed, also before the await.
            ended.as_mut().enable();
            self.check()?;
            if self.done.load(Ordering::SeqCst) >= needed {
                return Ok(None);
            }
            if !self.running.swap(true, Ordering::SeqCst) {
                // Only now is the last one known to have ended: it may have ended badly.
                let turn = Turn::begin(self);
                return self.check().map(|()| Some(turn));
            }
            ended.await;
        }
    }
}

impl Turn {
    fn begin(gate: &Arc<SyncGate>) -> Self {
        let number = gate.begun.fetch_add(1, Ordering::SeqCst) + 1;
        Self { gate: Arc::clone(gate), number }
    }

    /// Remembers how this sync ended, and lets the next one in.
    pub(crate) fn finish(self, result: &Result<()>) {
        match result {
            Ok(()) => self.gate.done.store(self.number, Ordering::SeqCst),
            Err(error) => self.gate.fail(error),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.gate.running.store(false, Ordering::SeqCst);
        self.gate.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_env::Executor;
    use std::time::Duration;

    #[test]
    fn waiting_syncs_share_one_and_none_runs_beside_another_or_after_a_failure() {
        for seed in 0..50 {
            let executor = Executor::new(seed);
            let env = executor.env();
            executor.run(async move {
                let gate = SyncGate::new();
                let running = Arc::new(AtomicU64::new(0));
                let fails_at = env.random_below(6) + 1;
                let callers: Vec<_> = (0..20)
                    .map(|_| {
                        let (env2, gate) = (env.clone(), Arc::clone(&gate));
                        let running = Arc::clone(&running);
                        env.spawn("syncer", async move {
                            env2.sleep(Duration::from_micros(env2.random_below(50))).await;
                            let begun = gate.begun.load(Ordering::SeqCst);
                            let Some(turn) = gate.turn().await? else {
                                assert!(gate.done.load(Ordering::SeqCst) > begun);
                                return Ok(());
                            };
                            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                            env2.sleep(Duration::from_micros(20)).await;
                            running.fetch_sub(1, Ordering::SeqCst);
                            let failed = Error::new(Code::DiskFailed, "lost");
                            let result = if turn.number < fails_at { Ok(()) } else { Err(failed) };
                            turn.finish(&result);
                            result
                        })
                    })
                    .collect();
                for caller in callers {
                    let result: Result<()> = caller.join().await.expect("no panic");
                    assert!(result.is_ok() || gate.check().is_err());
                }
                assert!(gate.begun.load(Ordering::SeqCst) <= fails_at, "none after a failure");
            });
        }
    }
}
