//! A byte stream to a peer, whatever carries it.

use crate::peer::Peer;
use kiln_types::{Code, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The two halves of a connection before anything is known of the peer.
pub(crate) struct Stream {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// Where the peer is, for messages.
    pub(crate) address: String,
}

/// The end of a connection: happens once, for one reason, and everyone who waits hears of it.
pub(crate) struct Ending {
    reason: std::sync::OnceLock<Error>,
    /// Has no permits; closing it wakes everyone.
    bell: Semaphore,
}

impl Ending {
    pub(crate) fn new() -> Self {
        Self { reason: std::sync::OnceLock::new(), bell: Semaphore::new(0) }
    }

    /// Ends it, unless it has ended before.
    pub(crate) fn end(&self, reason: Error) {
        if self.reason.set(reason).is_ok() {
            self.bell.close();
        }
    }

    pub(crate) fn reason(&self) -> Option<&Error> {
        self.reason.get()
    }

    pub(crate) fn has_come(&self) -> bool {
        self.reason.get().is_some()
    }

    pub(crate) async fn wait(&self) {
        // The semaphore never has a permit: this returns when it is closed.
        let _ = self.bell.acquire().await;
    }
}

/// A failed read or write on the connection to `peer`.
pub(crate) fn lost(peer: &Peer, source: &std::io::Error) -> Error {
    Error::new(Code::ConnectionLost, format!("connection to {peer}: {source}"))
}

/// The end of the stream where more was due, or where the peer left.
pub(crate) fn hung_up(peer: &Peer) -> Error {
    Error::new(Code::ConnectionLost, format!("connection to {peer}: the other end closed it"))
}
