//! Whether what a target waits for still moves: its disk, and the target behind it.

use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic, Result, TargetId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

/// After so long without an answer the manager is told of it: the neighbour is taken out before a
/// server's lease would end, and not for a quick restart.
const SILENCE: Duration = Duration::from_millis(3500);
/// A complaint that was not renewed for so long is moot.
const COMPLAINT_TIME: Duration = Duration::from_secs(6);

/// The requests to a target's disk that are not answered.
#[derive(Default)]
pub(crate) struct Pulse {
    state: Mutex<(u64, BTreeMap<u64, Monotonic>)>,
}

impl Pulse {
    /// Waits for `work` of the disk.
    pub(crate) async fn of<T>(&self, env: &Env, work: impl Future<Output = T>) -> T {
        let number = {
            let mut state = self.state.lock();
            state.0 += 1;
            let number = state.0;
            state.1.insert(number, env.now());
            number
        };
        // Also when the caller gives up.
        let _end = End { pulse: self, number };
        work.await
    }

    /// The age of the oldest request.
    pub(crate) fn oldest(&self, env: &Env) -> Duration {
        let oldest = self.state.lock().1.values().next().copied();
        oldest.map_or(Duration::ZERO, |since| env.now().since(since))
    }
}

struct End<'a> {
    pulse: &'a Pulse,
    number: u64,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.pulse.state.lock().1.remove(&self.number);
    }
}

/// Since when the target behind does not answer.
#[derive(Default)]
pub(crate) struct Silence {
    state: Mutex<Hearing>,
}

#[derive(Clone, Copy, Default)]
struct Hearing {
    /// Since when this target is behind: what was called before says nothing of it, since it may have
    /// been dead then.
    behind_since: Monotonic,
    silent: Option<Silent>,
}

#[derive(Clone, Copy)]
struct Silent {
    target: TargetId,
    since: Monotonic,
    last: Monotonic,
}

impl Silence {
    /// From now on another target is behind, or one that was away.
    pub(crate) fn begin(&self, env: &Env) {
        *self.state.lock() = Hearing { behind_since: env.now(), silent: None };
    }

    /// Takes note of how a call to `target` ended that began at `begun`.
    pub(crate) fn note<T>(
        &self,
        env: &Env,
        target: TargetId,
        begun: Monotonic,
        result: &Result<T>,
    ) {
        let mut state = self.state.lock();
        if begun < state.behind_since {
            return;
        }
        state.silent = match result {
            Err(error) if is_silence(error) => {
                let before = state.silent.filter(|silent| silent.target == target);
                let since = before.map_or(begun, |silent| silent.since);
                Some(Silent { target, since, last: env.now() })
            }
            _ => None,
        };
    }

    /// The target, when it has been silent for long.
    pub(crate) fn target(&self, env: &Env) -> Option<TargetId> {
        let now = env.now();
        let long = |silent: &Silent| {
            now.since(silent.since) >= SILENCE && now.since(silent.last) < COMPLAINT_TIME
        };
        self.state.lock().silent.filter(long).map(|silent| silent.target)
    }
}

/// Whether a call failed without an answer.
pub(crate) fn is_silence(error: &Error) -> bool {
    matches!(error.code(), Code::Unreachable | Code::ConnectionLost | Code::DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_env::Executor;

    #[test]
    fn what_was_called_before_a_target_came_back_is_no_complaint_about_it() {
        let executor = Executor::new(1);
        let env = executor.env();
        executor.run(async move {
            let (silence, target) = (Silence::default(), TargetId(7));
            let lost: Result<()> = Err(Error::new(Code::Unreachable, "lost"));
            let seconds = Duration::from_secs;
            let begun = env.now();
            env.sleep(seconds(4)).await;
            silence.note(&env, target, begun, &lost);
            assert_eq!(silence.target(&env), Some(target));
            // It is dead and leaves, is back at once, and a call of before ends only now.
            silence.begin(&env);
            assert_eq!(silence.target(&env), None);
            env.sleep(seconds(1)).await;
            silence.note(&env, target, begun, &lost);
            assert_eq!(silence.target(&env), None);
            // Calls of now count.
            let begun = env.now();
            env.sleep(seconds(4)).await;
            silence.note(&env, target, begun, &lost);
            assert_eq!(silence.target(&env), Some(target));
            silence.note(&env, target, env.now(), &Ok(()));
            assert_eq!(silence.target(&env), None);
        });
    }
}
