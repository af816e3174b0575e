//! What PostgreSQL's errors mean here.

use kiln_types::{Code, Error};
use tokio_postgres::error::{DbError, Severity, SqlState};

/// An error with what caused it, in one line.
pub(crate) fn text(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether the connection is of no more use.
pub(crate) fn ends_connection(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        // A server that became a standby still answers, but never writes again.
        Some(error) if *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION => true,
        Some(error) => {
            matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic) | None)
        }
        None => true,
    }
}

/// The error of a statement that the server refused and that took no effect.
pub(crate) fn refused(what: &str, error: &tokio_postgres::Error) -> Error {
    let code = match error.as_db_error() {
        Some(error) => code_of(error),
        // The client's own complaint, without a kind of its own.
        None if text(error).ends_with("password missing") => Code::NotAuthenticated,
        None => Code::Unreachable,
    };
    let error = Error::new(code, format!("PostgreSQL, {what}: {}", text(error)));
    match code {
        Code::DiskFailed | Code::Corrupt => error.with_hint("look into PostgreSQL's log"),
        Code::Unreachable => error.with_hint("is it running and reachable?"),
        Code::NotAuthenticated => {
            error.with_hint("look at the user in the URL, the password and pg_hba.conf")
        }
        Code::NotFound => error.with_hint("PostgreSQL's createdb makes it"),
        Code::Internal => error.with_hint("look into PostgreSQL's log; this is not expected"),
        _ => error,
    }
}

fn code_of(error: &DbError) -> Code {
    let code = error.code();
    match &code.code()[..2] {
        _ if *code == SqlState::LOCK_NOT_AVAILABLE => Code::Overloaded,
        _ if *code == SqlState::QUERY_CANCELED => Code::Overloaded,
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Code::Unreachable,
        _ if *code == SqlState::DISK_FULL => Code::NoSpace,
        _ if *code == SqlState::IO_ERROR => Code::DiskFailed,
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => Code::NotPermitted,
        _ if *code == SqlState::UNDEFINED_TABLE => Code::Corrupt,
        "40" => Code::Conflict,
        "53" => Code::Overloaded,
        // Starting, stopping, or a crash of another backend.
        "57" | "08" | "25" => Code::Unreachable,
        "28" => Code::NotAuthenticated,
        "3D" => Code::NotFound,
        "XX" => Code::Corrupt,
        _ => Code::Internal,
    }
}

/// The error when a transaction's connection is gone before anything was committed: it may run again.
pub(crate) fn gone(what: &str) -> Error {
    let message = format!("PostgreSQL, {what}: the connection is gone; nothing was committed");
    Error::new(Code::TransactionTooOld, message)
}
