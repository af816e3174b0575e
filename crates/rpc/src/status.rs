//! Our errors as gRPC statuses and back.

use kiln_types::{Code, Error};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code as Grpc, Status};

/// The metadata key under which a status carries the number of our [`Code`].
pub const CODE_KEY: &str = "kiln-code";
/// The metadata key under which a status carries the error's hint.
pub const HINT_KEY: &str = "kiln-hint-bin";
/// Messages and hints are cut here: they travel in HTTP/2 headers, which are bounded.
const TEXT_BYTES_MAX: usize = 2048;

/// The status that carries `error` to the caller.
pub fn status_from_error(error: &Error) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(CODE_KEY, MetadataValue::from(error.code() as u16));
    if let Some(hint) = error.hint() {
        metadata.insert_bin(HINT_KEY, MetadataValue::from_bytes(cut(hint).as_bytes()));
    }
    Status::with_metadata(grpc_code(error.code()), cut(error.message()), metadata)
}

/// The error that `status` carries. A status without our code was not made by one of our handlers:
/// the transport failed, and it is unknown whether the request took effect.
pub fn error_from_status(status: &Status) -> Error {
    let code = status.metadata().get(CODE_KEY).and_then(|value| value.to_str().ok());
    let Some(code) = code.and_then(|text| text.parse().ok()) else {
        return transport_error(status);
    };
    let error = Error::new(Code::from_number(code), status.message());
    let hint = status.metadata().get_bin(HINT_KEY).and_then(|value| value.to_bytes().ok());
    match hint {
        Some(hint) => error.with_hint(String::from_utf8_lossy(&hint)),
        None => error,
    }
}

fn transport_error(status: &Status) -> Error {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        // Our own connector said why there is no connection.
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.clone();
        }
        cause = error.source();
    }
    let code = match status.code() {
        Grpc::InvalidArgument | Grpc::OutOfRange | Grpc::FailedPrecondition => Code::Invalid,
        Grpc::DeadlineExceeded => Code::DeadlineExceeded,
        Grpc::Unauthenticated => Code::NotAuthenticated,
        Grpc::PermissionDenied => Code::NotAuthorized,
        Grpc::ResourceExhausted => Code::Overloaded,
        Grpc::Unimplemented => Code::Unsupported,
        Grpc::Cancelled => Code::Cancelled,
        _ => Code::ConnectionLost,
    };
    let mut message = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<Error>() {
            // Our connector said why: a refused handshake, or nobody at the address.
            return error.clone();
        }
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Error::new(code, message)
}

/// The gRPC code nearest to ours, for tools that know nothing of kiln.
fn grpc_code(code: Code) -> Grpc {
    match code {
        Code::Invalid => Grpc::InvalidArgument,
        Code::Unsupported => Grpc::Unimplemented,
        Code::DeadlineExceeded => Grpc::DeadlineExceeded,
        Code::Cancelled => Grpc::Cancelled,
        Code::Overloaded => Grpc::ResourceExhausted,
        Code::NotAuthenticated => Grpc::Unauthenticated,
        Code::NotAuthorized | Code::PermissionDenied | Code::NotPermitted | Code::WrongCluster => {
            Grpc::PermissionDenied
        }
        Code::NotFound | Code::NoAttribute | Code::ChunkNotFound => Grpc::NotFound,
        Code::Exists => Grpc::AlreadyExists,
        Code::Internal => Grpc::Internal,
        Code::Corrupt | Code::ChecksumMismatch => Grpc::DataLoss,
        _ if code.action() == kiln_types::Action::GiveUp => Grpc::FailedPrecondition,
        _ => Grpc::Unavailable,
    }
}

fn cut(text: &str) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    &text[..(0..=text.len().min(TEXT_BYTES_MAX)).rev().find(fits).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_with_message_and_hint() {
        for code in Code::ALL {
            let error = Error::new(*code, "zu spät: 3 Knoten").with_hint("später noch einmal");
            assert_eq!(error_from_status(&status_from_error(&error)), error);
        }
        let plain = Error::new(Code::Busy, "busy");
        assert_eq!(error_from_status(&status_from_error(&plain)), plain);
    }

    #[test]
    fn foreign_statuses_are_losses_of_contact() {
        assert_eq!(error_from_status(&Status::unknown("?")).code(), Code::ConnectionLost);
        assert_eq!(error_from_status(&Status::unimplemented("?")).code(), Code::Unsupported);
    }

    #[test]
    fn a_refused_connection_says_why() {
        #[derive(Debug)]
        struct Wrapped(Error);
        impl std::fmt::Display for Wrapped {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("transport error")
            }
        }
        impl std::error::Error for Wrapped {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let refused = Error::new(Code::NotAuthorized, "credential 'x' was revoked");
        let status = Status::from_error(Box::new(Wrapped(refused.clone())));
        assert_eq!(error_from_status(&status), refused);
    }

    #[test]
    fn long_messages_are_cut() {
        let error = Error::internal("ä".repeat(5000));
        assert!(error_from_status(&status_from_error(&error)).message().len() <= TEXT_BYTES_MAX);
    }
}
