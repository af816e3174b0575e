//! The side of a supervised server: it does not outlive its supervisor, it says when it is ready, and a
//! Ctrl-C on the terminal reaches it only through the supervisor.

use crate::Stop;
use kiln_types::{Code, Context, Error, Result};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::fmt::Display;
use std::io::Write;

/// What stands before the place on the line by which a server says that it is ready.
pub const READY: &str = "ready ";

/// Names the supervisor's process id in a server's environment.
pub const SUPERVISOR: &str = "KILN_SUPERVISOR";

/// Whether this process was started by a supervisor, and its ties to it.
#[derive(Clone, Copy, Debug)]
pub struct Supervised {
    by: Option<u32>,
}

impl Supervised {
    /// To be called first in a server's process: from here on the kernel ends it when its supervisor
    /// ends, however that happens.
    ///
    /// # Errors
    /// `Cancelled` when the supervisor is gone already.
    pub fn follow() -> Result<Self> {
        let Some(by) = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse::<u32>().ok())
        else {
            return Ok(Self { by: None });
        };
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(std::io::Error::from)
            .context("prctl(PR_SET_PDEATHSIG)")?;
        // It may have ended before the kernel was told.
        let parent = getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        if parent != Some(by) {
            return Err(Error::new(Code::Cancelled, format!("the supervisor (pid {by}) is gone")));
        }
        Ok(Self { by: Some(by) })
    }

    /// What asks this server to stop: SIGTERM, and without a supervisor SIGINT and SIGHUP too.
    ///
    /// # Errors
    /// `Local` when signals cannot be received.
    pub fn stop(&self) -> Result<Stop> {
        if self.by.is_some() { Stop::on_terminate() } else { Stop::on_any() }
    }

    /// Whether a supervisor started it.
    pub fn is_supervised(&self) -> bool {
        self.by.is_some()
    }

    /// Says on standard output that the server is ready, and where it is found.
    pub fn announce(place: impl Display) {
        let mut out = std::io::stdout().lock();
        // A reader that went away does not matter to the server.
        let _ = writeln!(out, "{READY}{place}").and_then(|()| out.flush());
    }
}
