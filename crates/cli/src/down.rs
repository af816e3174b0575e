//! `kiln down`.

use crate::failure::Outcome;
use crate::place::Place;
use crate::{output, runtime, umount};
use kiln_client_fuse::mount::{Health, How, Record, health, records, table, unmount, users};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, State, clear_stale};
use kiln_types::{Code, Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::Duration;

/// Longer than the supervisor gives all servers together.
const STOP_WITHIN: Duration = Duration::from_secs(120);

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
        let mut swept: String = events.iter().map(|event| format!("{event}\n")).collect();
        swept += &take_away_dead(&dir, env).await?;
        let left = still_mounted(&dir)?;
        return Ok(format!("{swept}nothing is running in {}\n{left}", dir.path().display()));
    };
    tell_users(&dir, env).await?;
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
    let dead = take_away_dead(&dir, env).await?;
    let left = still_mounted(&dir)?;
    Ok(format!(
        "{dead}stopped the cluster in {}; its data stays there\n{left}",
        dir.path().display()
    ))
}

/// Says who is about to lose the mount that the cluster was started with.
async fn tell_users(dir: &ClusterDir, env: &Env) -> Result<()> {
    let mounts = table::read()?;
    let servers = State::read(dir.path()).unwrap_or_default().servers;
    let running = servers.into_iter().filter(|server| server.pid.is_some());
    for path in running.filter_map(|server| server.mount) {
        let users = users(&path, env).await;
        if table::at(&mounts, &path).is_some() && !users.is_empty() {
            let busy = umount::busy(&path, &users);
            eprintln!("{}\nit is detached: they get errors from it from now on", busy.message());
        }
    }
    Ok(())
}

/// Takes away mounts of the cluster whose daemon died: everything there fails.
async fn take_away_dead(dir: &ClusterDir, env: &Env) -> Result<String> {
    let mut said = String::new();
    let source = format!("{}:/", dir.path().display());
    for (mount, record) in records()? {
        let ours = record.is_none() && mount.source.starts_with(&source);
        if ours && health(&mount, env).await? == Health::Dead {
            unmount(&mount.path, How::Lazily)?;
            said += &format!("{} is unmounted; its daemon had died\n", mount.path.display());
        }
    }
    Ok(said)
}

/// The mounts of the cluster that 'kiln mount' made: whoever uses them waits.
fn still_mounted(dir: &ClusterDir) -> Result<String> {
    let of_dir = |record: &Record| record.cluster_dir.as_deref() == Some(dir.path());
    let left = records()?.into_iter().filter_map(|(_, record)| record).filter(of_dir);
    let line = |record: Record| {
        let path = record.path.display();
        format!(
            "it is still mounted on {path}: programs there wait for it, then get I/O errors; \
             kiln umount {path} ends that\n"
        )
    };
    Ok(left.map(line).collect())
}
