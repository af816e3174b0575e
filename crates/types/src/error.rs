//! The one error type, and the one table of codes: number, name, what the caller should do, errno.

use std::fmt;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try the same request again after a pause: nothing is wrong with it.
    Retry,
    /// Fetch the routing information (or the capability) anew, then try again.
    Refresh,
    /// Trying again does not help: report it to whoever asked.
    GiveUp,
    /// Someone has to look at the cluster.
    Operator,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $action:ident, $errno:ident = $errno_number:literal;)*) => {
        /// Every kind of failure. Numbers are part of the protocol: never reused, never renumbered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// What the caller should do.
            pub fn action(self) -> Action {
                match self { $(Code::$name => Action::$action,)* }
            }

            /// The Linux errno that a program sees.
            pub fn errno(self) -> i32 {
                match self { $(Code::$name => $errno_number,)* }
            }

            /// The name of the errno.
            pub fn errno_name(self) -> &'static str {
                match self { $(Code::$name => stringify!($errno),)* }
            }

            /// The code's name.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)* }
            }

            /// The code with this number on the wire; an unknown one (a newer peer's) is `Internal`.
            pub fn from_number(number: u16) -> Code {
                match number { $($number => Code::$name,)* _ => Code::Internal }
            }
        }
    };
}

codes! {
    /// The request itself is wrong.
    Invalid = 100, GiveUp, EINVAL = 22;
    /// A defect of ours, or a code of a newer peer.
    Internal = 101, Operator, EIO = 5;
    /// This build or this cluster does not offer it.
    Unsupported = 102, GiveUp, EOPNOTSUPP = 95;
    /// Bytes from a disk, a file or the network are not what they should be.
    Corrupt = 103, Operator, EIO = 5;
    /// The deadline passed first; it is unknown whether the request took effect.
    DeadlineExceeded = 104, Retry, ETIMEDOUT = 110;
    /// The caller went away, or the server is stopping.
    Cancelled = 105, Retry, EINTR = 4;
    /// A bounded queue is full.
    Overloaded = 106, Retry, EAGAIN = 11;
    /// A local file, directory, socket or process operation failed.
    Local = 107, Operator, EIO = 5;
    /// Someone else holds it: a data directory, a port, a busy chunk.
    Busy = 108, Retry, EBUSY = 16;

    /// Nobody answers at the address.
    Unreachable = 200, Retry, EIO = 5;
    /// The connection broke; it is unknown whether the request took effect.
    ConnectionLost = 201, Retry, EIO = 5;
    /// The peer does not speak this protocol or no common version of it.
    ProtocolMismatch = 202, Operator, EPROTO = 71;
    /// The peer could not prove that it belongs to the cluster.
    NotAuthenticated = 203, GiveUp, EACCES = 13;
    /// The peer belongs to another cluster.
    WrongCluster = 204, Operator, EACCES = 13;
    /// The credential was revoked, or does not allow this user or path.
    NotAuthorized = 205, GiveUp, EACCES = 13;

    /// No such file, directory, xattr owner or object.
    NotFound = 300, GiveUp, ENOENT = 2;
    /// The name is taken.
    Exists = 301, GiveUp, EEXIST = 17;
    /// A path component is not a directory.
    NotDirectory = 302, GiveUp, ENOTDIR = 20;
    /// The operation wants something other than a directory.
    IsDirectory = 303, GiveUp, EISDIR = 21;
    /// The directory is not empty.
    NotEmpty = 304, GiveUp, ENOTEMPTY = 39;
    /// The mode bits forbid it.
    PermissionDenied = 305, GiveUp, EACCES = 13;
    /// Only the owner or root may do it.
    NotPermitted = 306, GiveUp, EPERM = 1;
    /// The name is longer than 255 bytes, or a symlink's target longer than 4095.
    NameTooLong = 307, GiveUp, ENAMETOOLONG = 36;
    /// The inode has as many links as it can.
    TooManyLinks = 308, GiveUp, EMLINK = 31;
    /// Too many symlinks in the path.
    SymlinkLoop = 309, GiveUp, ELOOP = 40;
    /// Beyond the largest file of its layout.
    FileTooLarge = 310, GiveUp, EFBIG = 27;
    /// The disks are full.
    NoSpace = 311, GiveUp, ENOSPC = 28;
    /// The handle or inode is gone.
    StaleHandle = 312, GiveUp, ESTALE = 116;
    /// No such extended attribute.
    NoAttribute = 313, GiveUp, ENODATA = 61;
    /// The buffer is too small for the value.
    OutOfRange = 314, GiveUp, ERANGE = 34;
    /// The file system or credential is read-only.
    ReadOnly = 315, GiveUp, EROFS = 30;
    /// The handle was not opened for this.
    BadHandle = 316, GiveUp, EBADF = 9;
    /// The value is larger than the file system keeps (xattrs).
    TooBig = 317, GiveUp, E2BIG = 7;
    /// Somebody else holds a lock that excludes this one.
    Locked = 318, GiveUp, EAGAIN = 11;
    /// The file has as many locks as it can.
    NoLocks = 319, GiveUp, ENOLCK = 37;
    /// A signal ended the wait of a program.
    Interrupted = 320, GiveUp, EINTR = 4;
    /// The file ends before, or has nothing of that kind from there on (lseek(2)).
    BeyondEnd = 321, GiveUp, ENXIO = 6;
    /// The quota of a directory, user or group is used up.
    QuotaExceeded = 322, GiveUp, EDQUOT = 122;
    /// It would have to change the quota that it counts for, which only a copy can (rename, link).
    OtherQuota = 323, GiveUp, EXDEV = 18;

    /// The chain changed: the version in the request is not the current one.
    StaleChainVersion = 400, Refresh, EIO = 5;
    /// The server is not the one that this request goes to (not the head, not a member).
    WrongTarget = 401, Refresh, EIO = 5;
    /// The server may not serve now: its lease ran out or its target is not serving.
    NotServing = 402, Refresh, EIO = 5;
    /// The chunk does not exist; to a reader, a hole.
    ChunkNotFound = 403, GiveUp, ENODATA = 61;
    /// The data does not match its checksum; another replica may do better.
    ChecksumMismatch = 404, Retry, EIO = 5;
    /// The file was truncated since: the epoch in the request is old.
    StaleEpoch = 405, Refresh, EIO = 5;
    /// The channel's sequence number is behind: the request was answered long ago.
    DuplicateRequest = 406, GiveUp, EIO = 5;
    /// The successor is not at the version that this write follows.
    VersionMismatch = 407, Refresh, EIO = 5;
    /// Fewer replicas serve than the chain table demands for writes.
    BelowMinServing = 408, Retry, EIO = 5;
    /// The capability is missing, forged, expired or does not cover the request.
    CapabilityRefused = 409, Refresh, EACCES = 13;
    /// A disk failed; its targets are out.
    DiskFailed = 410, Operator, EIO = 5;
    /// The client incarnation was evicted.
    ClientEvicted = 411, GiveUp, EIO = 5;

    /// This manager does not hold the primary lease.
    NotPrimary = 500, Refresh, EIO = 5;
    /// The manager does not know the node, target or chain.
    UnknownMember = 501, Operator, EIO = 5;
    /// A newer run of the same node has registered.
    StaleIncarnation = 502, Operator, EIO = 5;
    /// No chain table yet: too few storage servers have registered.
    NotReady = 503, Retry, EIO = 5;

    /// The transaction conflicts with another one: run it again.
    Conflict = 600, Retry, EIO = 5;
    /// The transaction may or may not be committed: run it again if it is idempotent.
    MaybeCommitted = 601, Retry, EIO = 5;
    /// A key, a value or a transaction is above the engine's limits.
    TransactionTooLarge = 602, GiveUp, EFBIG = 27;
    /// The transaction ran longer than it may.
    TransactionTooOld = 603, Retry, EIO = 5;
}

/// A failure: its code, and in plain words what happened and, where it helps, what to do.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl Error {
    /// An error with a message that says what happened.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, message: message.into(), hint: None }))
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// Bytes are not what they should be.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Code::Corrupt, message)
    }

    /// A defect of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// A failed system call or file operation; `what` says which, on what.
    pub fn local(what: impl fmt::Display, source: &std::io::Error) -> Self {
        let code = match source.raw_os_error() {
            Some(28) => Code::NoSpace,
            _ => Code::Local,
        };
        Self::new(code, format!("{what}: {source}"))
    }

    /// Adds what the reader should do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts `what` was being done in front of the message.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What the caller should do.
    pub fn action(&self) -> Action {
        self.0.code.action()
    }

    /// The message, without the hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reader should do next, if it was said.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.code.name())
    }
}

impl std::error::Error for Error {}

impl From<Code> for Error {
    fn from(code: Code) -> Self {
        Self::new(code, code.name())
    }
}

/// Adds what was being done to an error on its way up.
pub trait Context<T> {
    /// Puts `what` in front of the error's message.
    ///
    /// # Errors
    /// The same error, with more context.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.while_doing(what))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::local(what, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(*code as u16), *code);
        }
        assert_eq!(Code::from_number(9), Code::Internal);
    }

    #[test]
    fn context_and_hint_reach_the_reader() {
        let error = Error::new(Code::NoSpace, "disk full").with_hint("delete something");
        let error = error.while_doing("write of chunk 7");
        assert_eq!(error.to_string(), "write of chunk 7: disk full (delete something)");
        assert_eq!((error.code().errno(), error.action()), (28, Action::GiveUp));
    }
}
