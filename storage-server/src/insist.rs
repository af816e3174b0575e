//! Work on a target's own store that has to be done in the end.

use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use std::future::Future;
use std::time::Duration;

/// How long one attempt is waited for. The store goes on with it; the next one finds it done or
/// waits behind it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed attempt; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Makes attempts until one is successful: a disk that is full has room again some day.
///
/// # Errors
/// What makes the work moot: the disk failed, the store or the target is closed, or what the work is
/// about has moved on.
pub(crate) async fn insist<F>(env: &Env, what: &str, mut attempt: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut pause = PAUSE_MIN;
    loop {
        let outcome = env.timeout(ATTEMPT_TIMEOUT, what, attempt()).await.flatten();
        match outcome {
            Err(error) if !is_moot(&error) => {
                tracing::warn!(%error, ?pause, "{what}: trying again");
                env.sleep(env.jittered(pause)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            outcome => return outcome,
        }
    }
}

fn is_moot(error: &Error) -> bool {
    let codes = [Code::DiskFailed, Code::Cancelled, Code::WrongTarget, Code::VersionMismatch];
    codes.contains(&error.code())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use kiln_env::Executor;

    /// Attempts that end with what `outcomes` say, one after the other; `None` hangs.
    fn attempts(outcomes: Vec<Option<Result<()>>>) -> (Result<()>, usize) {
        let executor = Executor::new(1);
        let env = executor.env();
        executor.run(async move {
            let (mut left, mut made) = (outcomes.into_iter(), 0);
            let result = insist(&env, "a test", || {
                made += 1;
                let outcome = left.next().unwrap();
                async move {
                    match outcome {
                        Some(outcome) => outcome,
                        None => std::future::pending().await,
                    }
                }
            });
            (result.await, made)
        })
    }

    #[test]
    fn a_full_or_hanging_disk_is_asked_until_it_does_it() {
        let full = || Some(Err(Error::from(Code::NoSpace)));
        let outcomes = vec![full(), full(), None, full(), None, full(), Some(Ok(()))];
        assert_eq!(attempts(outcomes), (Ok(()), 7));
    }

    #[test]
    fn a_disk_that_is_gone_is_not() {
        for code in [Code::DiskFailed, Code::Cancelled, Code::VersionMismatch] {
            let outcomes = vec![Some(Err(Error::from(Code::NoSpace))), Some(Err(code.into()))];
            assert_eq!(attempts(outcomes), (Err(code.into()), 2));
        }
    }
}
