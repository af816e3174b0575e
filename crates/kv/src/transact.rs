//! The retry loop around a transaction.

use crate::{Kv, Transaction};
use kiln_env::Env;
use kiln_telemetry::{Phase, phase};
use kiln_types::{Code, Context, Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How often [`transact`] runs a body at most.
pub const ATTEMPTS_MAX: u32 = 100;
/// How long [`transact`] goes on starting attempts.
pub const RETRY_TIME_MAX: Duration = Duration::from_secs(10);

const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What the body of [`transact`] returns: a boxed future, so that a server may await it in a task.
pub type Body<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Runs `body` in a transaction and commits it; runs it again on `Conflict`, `MaybeCommitted` and
/// `TransactionTooOld`, after a pause with jitter, at most [`ATTEMPTS_MAX`] times and for
/// [`RETRY_TIME_MAX`]. An error of the body discards the transaction. `what` names it in errors.
///
/// The body must be idempotent: after `MaybeCommitted` it may see its own effects. It borrows what it
/// captures; what it owns is borrowed first (`let name = &name`), since it may run again.
///
/// ```
/// # use kiln_env::{Env, Executor};
/// use kiln_kv::{Kv, MemoryKv, transact};
/// # use kiln_types::Result;
///
/// async fn rename(kv: &dyn Kv, env: &Env, from: &[u8], to: &[u8]) -> Result<bool> {
///     transact(kv, env, "rename", |tx| {
///         Box::pin(async move {
///             let Some(value) = tx.get(from).await? else { return Ok(false) };
///             tx.clear(from);
///             tx.set(to, &value);
///             Ok(true)
///         })
///     })
///     .await
/// }
/// # let executor = Executor::new(1);
/// # let env = executor.env();
/// # executor.run(async move {
/// #     let kv = MemoryKv::new(&env);
/// #     assert_eq!(rename(&kv, &env, b"a", b"b").await, Ok(false));
/// # });
/// ```
///
/// # Errors
/// The body's own, `TransactionTooLarge`, what the engine reports of its disk or network, or, when the
/// attempts or the time are used up, the last error.
pub async fn transact<'s, T, F>(kv: &dyn Kv, env: &Env, what: &str, mut body: F) -> Result<T>
where
    T: Send,
    F: for<'a> FnMut(&'a mut (dyn Transaction + 's)) -> Body<'a, T> + Send,
{
    let start = env.now();
    let mut pause = PAUSE_FIRST;
    for attempt in 1.. {
        let error = match once(kv, env, &mut body).await {
            Ok(output) => return Ok(output),
            Err(error) if !is_retried(&error) => return Err(error).context(what),
            Err(error) => error,
        };
        if attempt == ATTEMPTS_MAX || env.now().since(start) >= RETRY_TIME_MAX {
            let spent = env.now().since(start);
            return Err(error)
                .context(format_args!("{what}: gave up after {attempt} attempts in {spent:.1?}"));
        }
        phase(env, Phase::Conflict, env.sleep(env.jittered(pause))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Err(Error::internal("the attempts of a transaction ended without a result"))
}

async fn once<'s, T, F>(kv: &dyn Kv, env: &Env, body: &mut F) -> Result<T>
where
    T: Send,
    F: for<'a> FnMut(&'a mut (dyn Transaction + 's)) -> Body<'a, T> + Send,
{
    let mut transaction = kv.begin().await?;
    let output = phase(env, Phase::KvRead, body(transaction.as_mut())).await?;
    phase(env, Phase::KvCommit, transaction.commit()).await?;
    Ok(output)
}

fn is_retried(error: &Error) -> bool {
    matches!(error.code(), Code::Conflict | Code::MaybeCommitted | Code::TransactionTooOld)
}
