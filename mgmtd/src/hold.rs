//! A manager's hold on a store that others can open too: while it has it, it may answer.
//!
//! # The argument
//! A hold lasts [`HOLD_TIME`] from when a look at the store began that found this manager's own record. A
//! successor writes its record at a moment T. A look that begins later finds that one, so the last hold of
//! the predecessor ends, by its own clock, at most [`HOLD_TIME`] after T. The successor waits
//! [`HANDOVER_TIME`] after T, a quarter more: as much as clocks may differ (see `kiln_chain::lease`). So
//! nothing was answered by a predecessor after its successor's start, as if it had been dead.

use kiln_env::{Env, Task};
use kiln_types::{Code, Error, Monotonic, Result};
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;

/// How long a manager answers after the store last said that it is the one.
const HOLD_TIME: Duration = Duration::from_secs(5);
/// How long a successor waits for the end of its predecessor's hold.
pub(crate) const HANDOVER_TIME: Duration = Duration::from_millis(6250);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// The end of the hold, or why there is none.
type State = Result<Monotonic>;

pub(crate) struct Hold {
    state: watch::Receiver<State>,
    _looking: Task<()>,
}

impl Hold {
    /// Begins without one; `look` says whether the store still has this manager's record.
    pub(crate) async fn take<F>(look: impl Fn() -> F + Send + 'static, env: &Env) -> Result<Self>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let until = env.now().plus(HOLD_TIME);
        look().await?;
        let (sender, state) = watch::channel(Ok(until));
        let _looking = env.spawn("hold on the store", keep(look, sender, env.clone()));
        Ok(Self { state, _looking })
    }

    /// Waits until the manager may answer: while the store does not, nobody is answered.
    ///
    /// # Errors
    /// `NotPrimary` when another manager has taken its place.
    pub(crate) async fn held(&self, env: &Env) -> Result<()> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                Ok(until) if env.now() < *until => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.clone()),
            }
            // Whoever asked has deadlines of their own; this one only tells what the manager waits for.
            let renewed = env.timeout(HOLD_TIME, "the manager's store", state.changed()).await;
            match renewed {
                Ok(changed) => changed.map_err(|_| Error::internal("nobody looks at the store"))?,
                Err(_) => tracing::warn!("nobody is answered: the store does not answer"),
            }
        }
    }
}

async fn keep<F>(look: impl Fn() -> F, state: watch::Sender<State>, env: Env)
where
    F: Future<Output = Result<()>>,
{
    loop {
        env.sleep(LOOK_EVERY).await;
        let until = env.now().plus(HOLD_TIME);
        match env.timeout(LOOK_TIME_MAX, "the manager's store", look()).await.flatten() {
            Ok(()) => state.send_modify(|held| *held = Ok(until)),
            Err(error) if error.code() == Code::NotPrimary => {
                state.send_modify(|held| *held = Err(error));
                return;
            }
            // The hold runs out unless a later look succeeds.
            Err(error) => tracing::warn!(%error, "a look at the manager's store failed"),
        }
    }
}
