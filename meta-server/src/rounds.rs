//! Background work in rounds, each of which does all that there is to do.

use kiln_env::Env;
use kiln_types::Result;
use std::time::Duration;
use tokio::sync::Notify;

/// How often work is looked for that servers which stopped have left.
pub(crate) const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Rests after a round, which says for how long at most, until `bell` rings or the next one is due. A failure is
/// logged, as `undone`.
pub(crate) async fn rest(env: &Env, bell: &Notify, undone: &str, round: Result<Duration>) {
    let pause = match round {
        Ok(pause) => pause.min(env.jittered(SCAN_INTERVAL)),
        Err(error) => {
            tracing::warn!(%error, "{undone}; trying again");
            PAUSE
        }
    };
    // Rung or not: it is looked again.
    let _ = env.timeout(pause, "background work", bell.notified()).await;
}
