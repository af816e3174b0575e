//! `kiln umount`.

use crate::failure::Outcome;
use crate::{output, runtime};
use kiln_client_fuse::mount::{
    Health, How, ProcessId, User, health, record_of, resolve, table, unmount, users,
};
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Unmount a cluster
///
/// Returns when everything that was written is in the cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it is mounted
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Detach it at once, also while it is in use; it goes when its last user does
    #[arg(long)]
    lazy: bool,
}

/// What a daemon may take to bring everything to the cluster.
const FLUSH_WITHIN: Duration = Duration::from_secs(600);
/// After this its user is told what is waited for.
const QUIET_FOR: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);
/// So many users of a busy mount are shown.
const USERS_SHOWN: usize = 10;

pub(crate) fn run(args: &Args) -> Outcome {
    let how = if args.lazy { How::Lazily } else { How::UnlessBusy };
    let said = runtime::single()?.block_on(take_away(&args.path, how, &Env::real()))?;
    output::print(&said)?;
    Ok(())
}

async fn take_away(path: &Path, how: How, env: &Env) -> Result<String> {
    let path = resolve(path, env).await?;
    let mounts = table::read()?;
    let shown = path.display().to_string();
    let Some(mount) = table::at(&mounts, &path) else {
        return Err(Error::new(Code::NotFound, format!("nothing is mounted on {shown}")));
    };
    if !mount.is_kiln() {
        let what = format!("what is mounted on {shown} is no cluster: {}", mount.kind);
        return Err(Error::invalid(what).with_hint("umount(8) unmounts it"));
    }
    let daemon = record_of(mount).map(|record| record.daemon);
    resume(daemon);
    if health(mount, env).await? == Health::Dead {
        unmount(&path, How::Lazily)?;
        return Ok(format!("{shown} is unmounted; its daemon had died\n"));
    }
    match unmount(&path, how) {
        Err(error) if error.code() == Code::Busy => {
            return Err(busy(&path, &users(&path, env).await));
        }
        unmounted => unmounted?,
    }
    match daemon {
        Some(daemon) if how == How::UnlessBusy => {
            ended(daemon, env).await?;
            Ok(format!("{shown} is unmounted\n"))
        }
        Some(daemon) if daemon.runs() => Ok(format!(
            "{shown} is detached; its daemon (pid {}) ends after its last user\n",
            daemon.pid
        )),
        _ => Ok(format!("{shown} is unmounted\n")),
    }
}

/// Says who uses a mount.
pub(crate) fn busy(path: &Path, users: &[User]) -> Error {
    let shown = path.display();
    let line = |user: &User| format!("{} (pid {}): {}", user.name, user.pid, user.how);
    let mut lines: Vec<_> = users.iter().take(USERS_SHOWN).map(line).collect();
    if users.len() > USERS_SHOWN {
        lines.push(format!("and {} more", users.len() - USERS_SHOWN));
    }
    let who = match lines.is_empty() {
        true => "by processes that are about to end, or that this user may not see".into(),
        false => format!("by\n  {}", lines.join("\n  ")),
    };
    Error::new(Code::Busy, format!("{shown} is in use {who}"))
        .with_hint(format!("end them, or detach it: kiln umount --lazy {shown}"))
}

/// A paused daemon must go on to end.
fn resume(daemon: Option<ProcessId>) {
    if let Some(daemon) = daemon.filter(|daemon| daemon.is_paused()) {
        let pid = i32::try_from(daemon.pid).ok().and_then(Pid::from_raw);
        // One that has ended meanwhile needs no signal.
        let _ = pid.map(|pid| kill_process(pid, Signal::CONT));
    }
}

/// Waits until a daemon has brought everything to the cluster and ended.
async fn ended(daemon: ProcessId, env: &Env) -> Result<()> {
    let (deadline, quiet) = (env.deadline_after(FLUSH_WITHIN), env.deadline_after(QUIET_FOR));
    let mut told = false;
    while daemon.runs() {
        resume(Some(daemon));
        let now = env.now();
        if !told && quiet.passed(now) {
            told = true;
            eprintln!("waiting for pid {} to bring what was written to the cluster", daemon.pid);
        }
        if deadline.passed(now) {
            let what = format!("the mount's daemon (pid {}) has not ended", daemon.pid);
            return Err(Error::new(Code::DeadlineExceeded, what)
                .with_hint("it goes on; its log says what it waits for"));
        }
        env.sleep(PAUSE).await;
    }
    Ok(())
}
