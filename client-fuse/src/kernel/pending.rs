//! A request that waits for its answer.

use super::abi::Reply;
use super::device::Device;
use super::interrupts::UnderWay;
use crate::filesystem::Interrupt;
use rustix::io::Errno;
use std::sync::Arc;

/// Is answered once, whatever happens: with EIO when this is dropped.
pub(super) struct Pending {
    device: Arc<Device>,
    under_way: Arc<UnderWay>,
    unique: u64,
    answered: bool,
}

impl Pending {
    /// A request that came by `device`.
    pub(super) fn new(device: &Arc<Device>, under_way: &Arc<UnderWay>, unique: u64) -> Self {
        under_way.begin(unique);
        let (device, under_way) = (Arc::clone(device), Arc::clone(under_way));
        Self { device, under_way, unique, answered: false }
    }

    /// Tells when the program that waits for it gets a signal.
    pub(super) fn interrupt(&self) -> Interrupt {
        self.under_way.listen(self.unique)
    }

    pub(super) fn answer(mut self, answer: Result<Reply, Errno>) {
        self.send(answer);
    }

    fn send(&mut self, answer: Result<Reply, Errno>) {
        self.answered = true;
        self.under_way.end(self.unique);
        let sent = match answer {
            Ok(reply) => self.device.answer(self.unique, &reply),
            Err(errno) => self.device.refuse(self.unique, errno),
        };
        match sent {
            // Nobody waits: the mount was taken away.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::warn!(%error, "an answer does not reach the kernel"),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.send(Err(Errno::IO));
        }
    }
}
