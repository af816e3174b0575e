//! How a command ends: done, failed, or used wrongly.

use kiln_types::Error;
use std::process::ExitCode;

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    code: u8,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, code: 1 }
    }
}

impl Failure {
    /// The command line itself is wrong.
    pub(crate) fn usage(error: Error) -> Self {
        Self { error, code: 2 }
    }

    /// A check that found out nothing.
    pub(crate) fn unfinished(self) -> Self {
        Self { code: 2, ..self }
    }

    /// Says it on standard error: what went wrong, then what to do.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("kiln: {}", self.error.message());
        if let Some(hint) = self.error.hint() {
            eprintln!("  {hint}");
        }
        ExitCode::from(self.code)
    }

    /// Whether the command line itself is wrong.
    pub(crate) fn is_usage(&self) -> bool {
        self.code == 2
    }

    /// The error itself.
    pub(crate) fn error(&self) -> &Error {
        &self.error
    }
}
