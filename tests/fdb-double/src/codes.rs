//! FoundationDB's error codes, and what may follow on them.

use std::ffi::CStr;

/// An error code of FoundationDB.
pub(crate) type Code = i32;

macro_rules! codes {
    ($($name:ident = $code:literal $text:literal;)*) => {
        $(pub(crate) const $name: Code = $code;)*

        /// What FoundationDB says about a code.
        pub(crate) fn text(code: Code) -> &'static CStr {
            match code {
                0 => c"Success",
                $($code => $text,)*
                _ => c"An unknown error",
            }
        }
    };
}

codes! {
    TRANSACTION_TOO_OLD = 1007 c"Transaction is too old to perform reads or be committed";
    FUTURE_VERSION = 1009 c"Request for future version";
    NOT_COMMITTED = 1020 c"Transaction not committed due to conflict with another transaction";
    COMMIT_UNKNOWN_RESULT = 1021 c"Transaction may or may not have committed";
    TRANSACTION_CANCELLED = 1025 c"Operation aborted because the transaction was cancelled";
    PROCESS_BEHIND = 1037 c"Storage process does not have recent mutations";
    CLUSTER_VERSION_CHANGED = 1039 c"Cluster has been upgraded to a new protocol version";
    OPERATION_CANCELLED = 1101 c"Asynchronous operation cancelled";
    IO_ERROR = 1510 c"Disk i/o operation failed";
    CONNECTION_STRING_INVALID = 2104 c"Connection string invalid";
    CLIENT_INVALID_OPERATION = 2000 c"Invalid API call";
    KEY_OUTSIDE_LEGAL_RANGE = 2004 c"Key outside legal range";
    INVERTED_RANGE = 2005 c"Range begin key larger than end key";
    USED_DURING_COMMIT = 2017 c"Operation issued while a commit was outstanding";
    TRANSACTION_TOO_LARGE = 2101 c"Transaction exceeds byte limit";
    KEY_TOO_LARGE = 2102 c"Key length exceeds limit";
    VALUE_TOO_LARGE = 2103 c"Value length exceeds limit";
    UNSUPPORTED_OPERATION = 2108 c"Operation is not supported";
    API_VERSION_ALREADY_SET = 2201 c"API version may be set only once";
    API_VERSION_NOT_SUPPORTED = 2203 c"API version not supported";
    NETWORK_ALREADY_SETUP = 2009 c"Network can be configured only once";
}

/// Whether `on_error` lets a transaction begin anew.
pub(crate) fn is_retryable(code: Code) -> bool {
    is_maybe_committed(code) || is_retryable_not_committed(code)
}

pub(crate) fn is_maybe_committed(code: Code) -> bool {
    matches!(code, COMMIT_UNKNOWN_RESULT | CLUSTER_VERSION_CHANGED)
}

pub(crate) fn is_retryable_not_committed(code: Code) -> bool {
    matches!(code, TRANSACTION_TOO_OLD | FUTURE_VERSION | NOT_COMMITTED | PROCESS_BEHIND)
}
