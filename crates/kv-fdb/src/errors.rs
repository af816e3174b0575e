//! What FoundationDB's errors mean here.

use foundationdb::FdbError;
use kiln_types::{Code, Error};

/// Where an operator looks first.
pub(crate) const LOOK: &str = "is the cluster healthy and reachable? 'fdbcli --exec status' tells";

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing can have been committed.
    Read,
    Commit,
}

/// The error of a step that failed.
pub(crate) fn refused(step: Step, what: &str, error: FdbError) -> Error {
    let code = code_of(step, error);
    let text = format!("FoundationDB, {what}: {} ({})", error.message(), error.code());
    let error = Error::new(code, text);
    match code {
        Code::Unreachable => error.with_hint(LOOK),
        Code::ReadOnly => error.with_hint("'fdbcli' unlocks it, when what locked it is over"),
        Code::Internal => error.with_hint("FoundationDB's trace logs tell more"),
        _ => error,
    }
}

fn code_of(step: Step, error: FdbError) -> Code {
    match error.code() {
        // not_committed
        1020 => Code::Conflict,
        // transaction_too_old
        1007 => Code::TransactionTooOld,
        // transaction_too_large, key_too_large, value_too_large
        2101..=2103 => Code::TransactionTooLarge,
        // database_locked
        1038 => Code::ReadOnly,
        _ if step == Step::Commit && error.is_maybe_committed() => Code::MaybeCommitted,
        // Storage servers that are behind, proxies without memory, tags that are throttled.
        _ if error.is_retryable_not_committed() => Code::TransactionTooOld,
        _ if step == Step::Read && error.is_retryable() => Code::TransactionTooOld,
        // no_cluster_file_found, file_not_found
        1511 | 1515 => Code::NotFound,
        // connection_string_invalid
        1516 | 2104 => Code::Invalid,
        // Cancelled, timed out, a broken promise, or one that a later version knows.
        _ if step == Step::Commit => Code::MaybeCommitted,
        // operation_cancelled, timed_out, transaction_timed_out, broken_promise
        1101 | 1004 | 1031 | 1100 => Code::Unreachable,
        _ => Code::Internal,
    }
}
