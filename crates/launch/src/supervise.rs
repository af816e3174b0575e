//! Watches what runs of a cluster until it is asked to stop, and starts again what dies.

use crate::process::FirstLine;
use crate::{Cluster, Event};
use kiln_types::{Context, Result};
use std::future::poll_fn;
use std::task::Poll;
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
                (at, line) = self.first_line() => {
                    let started = self.settle(at, line).await;
                    self.note_start(at, started);
                }
                () = env.sleep(pause) => self.restart_due(),
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
            // One that is starting tells by its output.
            let running = member.process.as_mut().filter(|process| !process.is_starting());
            let Some(process) = running else { continue };
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

    fn restart_due(&mut self) {
        let now = self.env.now();
        for at in 0..self.members.len() {
            if self.members[at].again.is_some_and(|again| again <= now) {
                self.members[at].again = None;
                if let Err(error) = self.spawn(at) {
                    self.note_start(at, Err(error));
                }
            }
        }
        self.write_state();
    }

    /// Waits for what one of the members that are starting says first.
    async fn first_line(&mut self) -> (usize, FirstLine) {
        poll_fn(|context| {
            for (at, member) in self.members.iter_mut().enumerate() {
                let process = member.process.as_mut();
                let line = process.map(|process| process.poll_first_line(context));
                if let Some(Poll::Ready(line)) = line {
                    return Poll::Ready((at, line));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn note_start(&mut self, at: usize, started: Result<()>) {
        if let Err(error) = started {
            let member = &mut self.members[at];
            member.pause = longer(member.pause);
            member.again = Some(self.env.now().plus(member.pause));
            let (name, pause) = (member.name().into(), member.pause);
            self.tell(Event::NotStarted { name, why: error.message().into(), pause });
        }
        self.write_state();
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST)
}
