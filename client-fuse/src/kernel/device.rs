//! The way to the kernel and back: /dev/fuse. Bytes are moved here, not understood.

use super::abi::{self, Reply};
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const PATH: &str = "/dev/fuse";
/// Idle memory for the bytes of writes.
const IDLE_BYTES_MAX: usize = 32 << 20;

/// One way to the kernel. A request is answered on the one that it came by.
pub(super) struct Device(OwnedFd);

impl Device {
    /// A device that is not yet anybody's.
    pub(super) fn open() -> Result<Self> {
        let opened = rustix::fs::open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Ok(Self(opened.map_err(std::io::Error::from).context(PATH)?))
    }

    /// Another way to the kernel for the same mount, so that threads do not wait for each other there.
    pub(super) fn another(&self) -> Result<Self> {
        const CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);
        let other = Self::open()?;
        let own = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: FUSE_DEV_IOC_CLONE reads the u32 that it is given the address of, and writes nothing.
        #[expect(unsafe_code, reason = "the one call that the kernel offers for it")]
        unsafe {
            let clone = rustix::ioctl::Setter::<CLONE, u32>::new(own);
            rustix::ioctl::ioctl(&other.0, clone).map_err(std::io::Error::from).context(PATH)?;
        }
        Ok(other)
    }

    /// Waits for a request and puts it into `inbox`.
    ///
    /// # Errors
    /// NODEV when nothing is mounted any more.
    pub(super) fn receive(&self, inbox: &mut Inbox) -> std::result::Result<(), Errno> {
        loop {
            let mut parts = [IoSliceMut::new(&mut inbox.head), IoSliceMut::new(&mut inbox.rest)];
            match rustix::io::readv(&self.0, &mut parts) {
                Ok(length) => {
                    inbox.length = length;
                    return Ok(());
                }
                // A request that was taken back, and what any system call may say.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// NOENT when the kernel does not wait for it.
    pub(super) fn answer(&self, unique: u64, reply: &Reply) -> std::result::Result<(), Errno> {
        match reply {
            Reply::Done => self.send(unique, 0, &[]),
            Reply::Fields(fields) => self.send(unique, 0, fields),
            Reply::Data(bytes) => self.send(unique, 0, bytes),
            Reply::NoSuchCall => self.refuse(unique, Errno::NOSYS),
        }
    }

    /// Answers a request with an error.
    ///
    /// # Errors
    /// NOENT when the kernel does not wait for it.
    pub(super) fn refuse(&self, unique: u64, errno: Errno) -> std::result::Result<(), Errno> {
        self.send(unique, -errno.raw_os_error(), &[])
    }

    /// Tells the kernel something that it did not ask for.
    ///
    /// # Errors
    /// NOENT when it does not know what this is about.
    pub(super) fn notify(&self, what: i32, body: &[u8]) -> std::result::Result<(), Errno> {
        self.send(0, what, body)
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) -> std::result::Result<(), Errno> {
        let header = abi::answer_header(unique, error, body.len());
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        // The kernel takes a message as a whole.
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.0, &parts)).map(drop)
    }
}

impl From<OwnedFd> for Device {
    fn from(opened: OwnedFd) -> Self {
        Self(opened)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where one thread receives requests. What a write brings lands in memory of its own, aligned, so that it
/// can be handed on as it is.
pub(super) struct Inbox {
    head: [u8; abi::WRITE_HEAD_BYTES],
    rest: Buffer,
    length: usize,
    pool: Pool,
    whole: Vec<u8>,
}

impl Inbox {
    pub(super) fn new(pool: &Pool) -> Self {
        let (head, whole) = ([0; abi::WRITE_HEAD_BYTES], Vec::new());
        Self { head, rest: Self::room(pool), length: 0, pool: pool.clone(), whole }
    }

    /// The memory that inboxes share.
    pub(super) fn pool() -> Pool {
        Pool::new(IDLE_BYTES_MAX)
    }

    fn room(pool: &Pool) -> Buffer {
        pool.take(abi::REQUEST_BYTES_MAX as usize)
    }

    /// The bytes of the request that was received, but for a write's payload; that payload; and the length
    /// of all.
    pub(super) fn take(&mut self) -> (&[u8], Option<Bytes>, usize) {
        let beyond = self.length.saturating_sub(self.head.len());
        if self.length < self.head.len() {
            return (&self.head[..self.length], None, self.length);
        }
        if abi::has_payload(&self.head) {
            let payload = self.payload(beyond);
            return (&self.head, Some(payload), self.length);
        }
        self.whole.clear();
        self.whole.extend_from_slice(&self.head);
        self.whole.extend_from_slice(&self.rest[..beyond]);
        (&self.whole, None, self.length)
    }

    /// Few bytes are copied: they may have to wait, and would keep the room of many.
    fn payload(&mut self, length: usize) -> Bytes {
        if length * 2 > self.rest.len() {
            let mut payload = std::mem::replace(&mut self.rest, Self::room(&self.pool));
            payload.truncate(length);
            return payload.freeze();
        }
        let mut payload = self.pool.take(length);
        payload.copy_from_slice(&self.rest[..length]);
        payload.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An inbox as the kernel fills it: the head first, then the rest.
    fn received(pool: &Pool, opcode: u32, length: usize) -> (Inbox, Vec<u8>) {
        let mut message: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        message[4..8].copy_from_slice(&opcode.to_le_bytes());
        let mut inbox = Inbox::new(pool);
        let (head, rest) = message.split_at(inbox.head.len().min(length));
        inbox.head[..head.len()].copy_from_slice(head);
        inbox.rest[..rest.len()].copy_from_slice(rest);
        inbox.length = length;
        (inbox, message)
    }

    #[test]
    fn a_large_write_is_handed_on_where_it_lies_and_a_small_one_keeps_no_room() {
        const WRITE: u32 = 16;
        let pool = Inbox::pool();
        for (bytes, stays) in [(1 << 20, true), (600 << 10, true), (4096, false), (0, false)] {
            let (mut inbox, message) = received(&pool, WRITE, abi::WRITE_HEAD_BYTES + bytes);
            let lay_at = inbox.rest.as_ptr();
            let (head, payload, length) = inbox.take();
            assert_eq!((head, length), (&message[..abi::WRITE_HEAD_BYTES], message.len()));
            let payload = payload.unwrap();
            assert!(payload[..] == message[abi::WRITE_HEAD_BYTES..] && payload.is_aligned());
            assert_eq!(payload.as_ptr() == lay_at, stays, "{bytes}");
            assert_eq!(inbox.rest.as_ptr() == lay_at, !stays, "{bytes}");
            assert_eq!(inbox.rest.len(), abi::REQUEST_BYTES_MAX as usize);
        }
    }

    #[test]
    fn other_requests_come_in_one_piece() {
        const SETXATTR: u32 = 21;
        let pool = Inbox::pool();
        for length in [40, 80, 81, 70_000] {
            let (mut inbox, message) = received(&pool, SETXATTR, length);
            let (whole, payload, told) = inbox.take();
            assert!(whole == message && payload.is_none() && told == length, "{length}");
        }
    }
}
