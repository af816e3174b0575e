//! Watches what runs of a cluster until it is asked to stop, and starts again what dies.

use crate::{Cluster, Event};
use kiln_types::{Context, Result};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The first pause before a restart; it doubles with each death.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// A server that ran this long is well: its next pause is the first one.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How long to sleep when no restart is due.
const IDLE: Duration = Duration::from_secs(3600);

/// The signals that ask a process to stop.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    only_terminate: bool,
}

impl Stop {
    /// SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// `Local` when signals cannot be received.
    pub fn on_any() -> Result<Self> {
        let listen = |kind| signal(kind).context("signal handler");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            only_terminate: false,
        })
    }

    /// SIGTERM; the others are swallowed.
    ///
    /// # Errors
    /// `Local` when signals cannot be received.
    pub fn on_terminate() -> Result<Self> {
        Ok(Self { only_terminate: true, ..Self::on_any()? })
    }

    /// Waits for the next request.
    pub async fn requested(&mut self) {
        loop {
            let counts = tokio::select! {
                _ = self.terminate.recv() => true,
                _ = self.interrupt.recv() => !self.only_terminate,
                _ = self.hang_up.recv() => !self.only_terminate,
            };
            if counts {
                return;
            }
        }
    }
}

impl Cluster {
    /// Starts again whatever dies, until `stop` is requested; then stops everything. A second request
    /// kills what has not stopped yet.
    ///
    /// # Errors
    /// `Local` when the end of children cannot be watched.
    pub async fn supervise(&mut self, stop: &mut Stop) -> Result<()> {
        let mut child_ended = signal(SignalKind::child()).context("signal handler")?;
        loop {
            self.note_deaths();
            let pause = self.next_restart();
            let env = self.env.clone();
            tokio::select! {
                () = stop.requested() => break,
                _ = child_ended.recv() => {}
                () = env.sleep(pause) => {
                    tokio::select! {
                        () = stop.requested() => break,
                        () = self.restart_due() => {}
                    }
                }
            }
        }
        let killed = tokio::select! {
            () = self.stop() => false,
            () = stop.requested() => true,
        };
        if killed {
            self.kill_all().await;
        }
        Ok(())
    }

    fn note_deaths(&mut self) {
        let mut deaths = Vec::new();
        for member in &mut self.members {
            let Some(process) = &mut member.process else { continue };
            let Some(exit) = process.exited() else { continue };
            if process.age(&self.env) >= WELL_AFTER {
                member.pause = Duration::ZERO;
            }
            member.process = None;
            if let (true, Some(path)) = (exit.fine, member.role.mount()) {
                deaths.push(Event::Unmounted { path: path.into() });
                continue;
            }
            member.restarts += 1;
            member.pause = longer(member.pause);
            member.again = Some(self.env.now().plus(member.pause));
            let (name, pause) = (member.name().into(), member.pause);
            deaths.push(Event::Died { name, how: exit.to_string(), pause });
        }
        if !deaths.is_empty() {
            deaths.into_iter().for_each(|death| self.tell(death));
            self.write_state();
        }
    }

    fn next_restart(&self) -> Duration {
        let due = self.members.iter().filter_map(|member| member.again).min();
        due.map_or(IDLE, |due| due.since(self.env.now()))
    }

    async fn restart_due(&mut self) {
        let now = self.env.now();
        let is_due = |again: Option<_>| again.is_some_and(|again| again <= now);
        let due: Vec<_> =
            (0..self.members.len()).filter(|at| is_due(self.members[*at].again)).collect();
        for at in &due {
            self.members[*at].again = None;
        }
        for (at, result) in self.start_group(&due).await {
            if let Err(error) = result {
                let member = &mut self.members[at];
                member.pause = longer(member.pause);
                member.again = Some(self.env.now().plus(member.pause));
                let (name, pause) = (member.name().into(), member.pause);
                self.tell(Event::NotStarted { name, why: error.message().into(), pause });
            }
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST)
}
