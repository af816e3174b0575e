//! Where the kernel gets raw pointers: the ring that owns what is in flight, and the device ioctl.
//! The crate's only unsafe code.
#![allow(unsafe_code)]

use crate::operation::{Operation, Task};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{Builder, IoUring, Probe, opcode, squeue};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU64;

/// Numbers in the ring's table of files.
const FILE: Fixed = Fixed(0);
const WAKE: Fixed = Fixed(1);

/// Marks the completion of a read of the wake eventfd.
const WOKEN: u64 = u64::MAX;

/// Where wake-ups are read to. Nobody looks at it, and it lives for ever.
static WAKE_SINK: AtomicU64 = AtomicU64::new(0);

/// One system call moves at most a little less than 2 GiB.
const TRANSFER_MAX: usize = 1 << 30;

/// An io_uring for one file. It owns the operations that the kernel works on.
///
/// Invariant: `flights[n]` is occupied from the push of an entry with user data `n` until its one
/// completion was taken; so the memory that the entry points to lives as long as the kernel may use
/// it.
pub(crate) struct Ring {
    uring: IoUring,
    flights: Vec<Option<Operation>>,
    free: Vec<usize>,
    mode: &'static str,
}

impl Ring {
    /// A ring of the calling thread, for `depth` operations on `file`, woken by the eventfd `wake`.
    pub(crate) fn new(
        depth: usize,
        file: BorrowedFd<'_>,
        wake: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let (uring, mode) = set_up(depth)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::from(Errno::NOSYS));
        }
        uring.submitter().register_files(&[file.as_raw_fd(), wake.as_raw_fd()])?;
        let flights = (0..depth).map(|_| None).collect();
        let mut ring = Self { uring, flights, free: (0..depth).collect(), mode };
        ring.arm_wake()?;
        Ok(ring)
    }

    /// The set-up that the kernel accepted.
    pub(crate) fn mode(&self) -> &'static str {
        self.mode
    }

    /// Whether no operation is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// Queues an operation for the next submission. The caller keeps to the ring's depth.
    pub(crate) fn start(&mut self, operation: Operation) -> io::Result<()> {
        let Some(slot) = self.free.pop() else { return Err(Errno::OVERFLOW.into()) };
        let operation = self.flights[slot].insert(operation);
        let (from, offset) = operation.rest();
        let entry = match &mut operation.task {
            Task::Read { buffer, .. } => {
                let rest = &mut buffer[from..];
                let length = rest.len().min(TRANSFER_MAX) as u32;
                opcode::Read::new(FILE, rest.as_mut_ptr(), length).offset(offset).build()
            }
            Task::Write { bytes, .. } => {
                let rest = &bytes[from..];
                let length = rest.len().min(TRANSFER_MAX) as u32;
                opcode::Write::new(FILE, rest.as_ptr(), length).offset(offset).build()
            }
            Task::Sync { .. } => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: the entry points into memory of the operation in `flights[slot]`: heap memory
        // that does not move with it, unique to us (Buffer) or never written (Bytes), and kept by
        // the invariant.
        unsafe { self.push(&entry.user_data(slot as u64)) }
    }

    /// Has the next write to the eventfd complete something.
    fn arm_wake(&mut self) -> io::Result<()> {
        let entry = opcode::Read::new(WAKE, WAKE_SINK.as_ptr().cast(), 8).offset(u64::MAX).build();
        // SAFETY: the kernel writes 8 bytes to a static of 8 bytes that is never read.
        unsafe { self.push(&entry.user_data(WOKEN)) }
    }

    /// # Safety
    /// The memory that `entry` points to must stay valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: by the caller's promise.
        unsafe { self.uring.submission().push(entry) }.map_err(|_| Errno::OVERFLOW.into())
    }

    /// Submits all that is queued and waits for a completion.
    pub(crate) fn submit_and_wait(&self) -> io::Result<usize> {
        self.uring.submit_and_wait(1)
    }

    /// Takes what has completed, each with the system's answer.
    pub(crate) fn reap(
        &mut self,
        completed: &mut Vec<(Operation, rustix::io::Result<usize>)>,
    ) -> io::Result<()> {
        let mut woken = false;
        for entry in self.uring.completion() {
            if entry.user_data() == WOKEN {
                woken = true;
                continue;
            }
            let slot = entry.user_data() as usize;
            if let Some(operation) = self.flights.get_mut(slot).and_then(Option::take) {
                self.free.push(slot);
                let outcome = usize::try_from(entry.result())
                    .map_err(|_| Errno::from_raw_os_error(-entry.result()));
                completed.push((operation, outcome));
            }
        }
        if woken { self.arm_wake() } else { Ok(()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing the ring does not wait for the kernel: memory that it may still use is given up.
        for operation in self.flights.iter_mut().filter_map(Option::take) {
            match operation.task {
                Task::Read { buffer, .. } => std::mem::forget(buffer),
                Task::Write { bytes, .. } => std::mem::forget(bytes),
                Task::Sync { .. } => {}
            }
        }
        let _ = self.uring.submitter().unregister_files();
    }
}

/// Tries set-ups from the best to the most widely known, because older kernels refuse what they do
/// not know.
fn set_up(depth: usize) -> io::Result<(IoUring, &'static str)> {
    let entries = u32::try_from(depth + 1).map_err(|_| io::Error::from(Errno::INVAL))?;
    type Setup = (&'static str, fn(&mut Builder));
    let setups: [Setup; 3] = [
        ("io_uring (deferred)", |builder| {
            builder.setup_single_issuer().setup_defer_taskrun();
        }),
        ("io_uring (cooperative)", |builder| {
            builder.setup_coop_taskrun();
        }),
        ("io_uring", |_| {}),
    ];
    let mut refused = Errno::NOSYS.into();
    for (mode, set) in setups {
        let mut builder = IoUring::builder();
        set(&mut builder);
        match builder.build(entries) {
            Ok(uring) => return Ok((uring, mode)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Tells a block device that a range is not needed any more.
pub(crate) fn discard_device(
    device: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> rustix::io::Result<()> {
    /// `BLKDISCARD` of linux/fs.h.
    const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);
    // SAFETY: BLKDISCARD reads two u64, offset and length in bytes, and touches no memory of ours.
    unsafe {
        let discard = rustix::ioctl::Setter::<BLKDISCARD, [u64; 2]>::new([offset, length]);
        rustix::ioctl::ioctl(device, discard)
    }
}
