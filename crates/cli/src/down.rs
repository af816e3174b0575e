//! `kiln down`.

use crate::failure::Outcome;
use crate::place::Place;
use crate::{output, runtime};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, clear_stale};
use kiln_types::{Code, Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::Duration;

/// Longer than the supervisor gives all servers together.
const STOP_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(place: &Place) -> Outcome {
    let path = place.local()?;
    let said = runtime::single()?.block_on(stop(&path, &Env::real()))?;
    output::print(&said)?;
    Ok(())
}

async fn stop(path: &Path, env: &Env) -> Result<String> {
    let dir = match ClusterDir::open(path) {
        Err(error) if error.code() == Code::NotFound => {
            return Ok(format!("nothing is running: no cluster in {}\n", path.display()));
        }
        dir => dir?,
    };
    let Some(pid) = Lock::holder(dir.path())? else {
        let events = clear_stale(&dir, env).await?;
        let swept: String = events.iter().map(|event| format!("{event}\n")).collect();
        return Ok(format!("{swept}nothing is running in {}\n", dir.path().display()));
    };
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile, which is what is wanted. A paused one must go on to stop.
        let _ = kill_process(pid, Signal::TERM);
        let _ = kill_process(pid, Signal::CONT);
    }
    let deadline = env.deadline_after(STOP_WITHIN);
    while Lock::holder(dir.path())? == Some(pid) {
        if deadline.passed(env.now()) {
            return Err(Error::new(
                Code::Local,
                format!("the supervisor (pid {pid}) has not stopped within {STOP_WITHIN:?}"),
            )
            .with_hint(format!("see {}; kill -9 {pid} ends it", dir.log("up").display())));
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    Ok(format!("stopped the cluster in {}; its data stays there\n", dir.path().display()))
}
