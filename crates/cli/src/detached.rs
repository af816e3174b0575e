//! A process of this program that goes on in a session of its own, and the one line by which it tells
//! whoever started it how that went.

use crate::failure::{Failure, Outcome};
use crate::output;
use kiln_env::Env;
use kiln_telemetry::LogOptions;
use kiln_types::{Code, Context, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[derive(Serialize, Deserialize)]
enum Answer<T> {
    Ready(T),
    Failed { message: String, hint: Option<String>, usage: bool },
}

/// Starts `command` and waits until it says that it is ready. `what` names it, `log` is where it logs.
pub(crate) async fn start<T: DeserializeOwned>(
    mut command: Command,
    what: &str,
    within: Duration,
    log: &Path,
) -> Outcome<T> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context(format_args!("start of {what}"))?;
    let output = child.stdout.take().map(BufReader::new);
    let mut output = output.ok_or_else(|| Error::internal(format!("{what} has no output")))?;
    let mut line = String::new();
    let read = output.read_line(&mut line);
    Env::real().timeout(within, what, read).await?.context(what)?;
    match serde_json::from_str(&line) {
        Ok(Answer::Ready(ready)) => Ok(ready),
        Ok(Answer::Failed { message, hint, usage }) => {
            let error = Error::new(Code::Local, message);
            let error = hint.into_iter().fold(error, Error::with_hint);
            Err(if usage { Failure::usage(error) } else { error.into() })
        }
        Err(_) => Err(Error::new(Code::Local, format!("{what} ended before it was ready"))
            .with_hint(format!("see {}", log.display()))
            .into()),
    }
}

/// To be called first in the process that was started: leaves the session that it was started from.
pub(crate) fn leave() {
    // Fails only for the leader of a process group, which then needs no session of its own.
    let _ = rustix::process::setsid();
}

/// Says how the start went. Whoever started this process tells a failure: here it only ends then.
pub(crate) fn answer<S, T: Serialize>(
    started: Outcome<S>,
    ready: impl FnOnce(&S) -> T,
) -> Result<S> {
    let answer = match &started {
        Ok(started) => Answer::Ready(ready(started)),
        Err(failure) => Answer::Failed {
            message: failure.error().message().into(),
            hint: failure.error().hint().map(Into::into),
            usage: failure.is_usage(),
        },
    };
    let line = serde_json::to_string(&answer)
        .map_err(|error| Error::internal(format!("answer: {error}")))?;
    output::tell(&line);
    started.map_err(|failure| {
        tracing::error!("{}", failure.error());
        std::process::exit(1)
    })
}

/// Sends this process's log and standard error to `path`; what takes as long as `slow` is logged, unless
/// that is zero.
pub(crate) fn log_to(path: &Path, slow: Duration) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path).context(path.display())?;
    rustix::stdio::dup2_stderr(&file).map_err(std::io::Error::from).context(path.display())?;
    kiln_telemetry::init(&LogOptions { slow, ..LogOptions::default() })
}
