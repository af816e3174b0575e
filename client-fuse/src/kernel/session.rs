//! A mount as the kernel sees it: set up, served, ended.

use super::abi::{self, Header, Operation};
use super::adapter::Adapter;
use super::attach::{MountOptions, attach};
use super::device::{Device, Inbox};
use super::interrupts::UnderWay;
use super::link::KernelLink;
use super::pending::Pending;
use crate::filesystem::FileSystem;
use crate::mount::{How, table, unmount};
use kiln_env::Env;
use kiln_memory::Pool;
use kiln_types::{Code, Context, Error, Result};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What the kernel reads ahead of a sequential reader, in requests of the largest size.
const READ_AHEAD_KIB: u32 = 4096;

/// A mounted file system that is being served.
pub struct Session {
    path: PathBuf,
    ended: oneshot::Receiver<()>,
    link: Arc<KernelLink>,
    under_way: Arc<UnderWay>,
}

impl Session {
    /// Mounts `fs` on `path`, which is absolute and free of symlinks, and serves it on threads of its own;
    /// requests are worked out in the runtime of the calling task. The file system has `link`.
    ///
    /// # Errors
    /// `Local` when the kernel or fusermount3 refuses, `Unsupported` when the kernel is too old.
    pub fn mount(
        fs: Arc<dyn FileSystem>,
        link: Arc<KernelLink>,
        path: &Path,
        options: &MountOptions,
        env: &Env,
    ) -> Result<Self> {
        let device = attach(path, options)?;
        let session = Self::serve(device, fs, link, path, env);
        if session.is_err() {
            // Nobody would answer there.
            let _ = unmount(path, How::Lazily);
        }
        session
    }

    fn serve(
        device: Device,
        fs: Arc<dyn FileSystem>,
        link: Arc<KernelLink>,
        path: &Path,
        env: &Env,
    ) -> Result<Self> {
        let pool = Inbox::pool();
        greet(&device, &pool)?;
        let devices = ways(device);
        link.connect(Arc::clone(&devices[0]), env)?;
        let adapter = Adapter::new(fs, Arc::clone(&link), env.clone());
        let (alive, ended) = oneshot::channel();
        let under_way = Arc::<UnderWay>::default();
        let server = Server {
            adapter: Arc::new(adapter),
            under_way: Arc::clone(&under_way),
            devices,
            pool,
            _alive: alive,
        };
        let server = Arc::new(server);
        for (at, device) in server.devices.iter().enumerate() {
            let (server, device) = (Arc::clone(&server), Arc::clone(device));
            env.spawn_thread(&format!("fuse-{at}"), move || server.run(&device))?;
        }
        read_ahead(path);
        Ok(Self { path: path.into(), ended, link, under_way })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nothing is mounted any more, whoever unmounted it, or its threads cannot go on.
    pub async fn ended(&mut self) {
        // Nothing is sent: the sender goes with the last thread.
        let _ = (&mut self.ended).await;
        self.link.end();
        self.under_way.interrupt_all();
    }
}

/// Agrees with the kernel about what both can do, which it asks first.
fn greet(device: &Device, pool: &Pool) -> Result<()> {
    let mut inbox = Inbox::new(pool);
    let kernel = |errno: Errno| Error::new(Code::Local, format!("/dev/fuse: {errno}"));
    loop {
        device.receive(&mut inbox).map_err(kernel)?;
        let (message, payload, length) = inbox.take();
        let header = Header::decode(message, length)?;
        let Operation::Init(offer) = abi::operation(&header, message, payload)? else {
            return Err(Error::corrupt("the kernel's FUSE does not begin with its offer"));
        };
        match abi::accept(&offer) {
            Ok((reply, again)) => {
                device.answer(header.unique, &reply).map_err(kernel)?;
                if !again {
                    return Ok(());
                }
            }
            Err(error) => {
                device.refuse(header.unique, Errno::PROTO).map_err(kernel)?;
                return Err(error);
            }
        }
    }
}

/// A way to the kernel for each thread.
fn ways(first: Device) -> Vec<Arc<Device>> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let first = Arc::new(first);
    let another = |_| match first.another() {
        Ok(device) => Arc::new(device),
        Err(error) => {
            tracing::debug!(%error, "threads of the mount share a way to the kernel");
            Arc::clone(&first)
        }
    };
    let others: Vec<_> = (1..threads).map(another).collect();
    std::iter::once(first).chain(others).collect()
}

/// What the threads of a mount share.
struct Server {
    adapter: Arc<Adapter>,
    under_way: Arc<UnderWay>,
    devices: Vec<Arc<Device>>,
    pool: Pool,
    /// Gone when no thread is left.
    _alive: oneshot::Sender<()>,
}

impl Server {
    /// Takes up requests until nothing is mounted any more.
    fn run(&self, device: &Arc<Device>) {
        let mut inbox = Inbox::new(&self.pool);
        loop {
            match device.receive(&mut inbox) {
                Ok(()) => {}
                Err(Errno::NODEV) => return,
                Err(error) => return tracing::error!(%error, "/dev/fuse cannot be read"),
            }
            if let Err(error) = self.take_up(&mut inbox, device) {
                return tracing::error!(%error, "the kernel's FUSE is not understood");
            }
        }
    }

    fn take_up(&self, inbox: &mut Inbox, device: &Arc<Device>) -> Result<()> {
        let (message, payload, length) = inbox.take();
        let header = Header::decode(message, length)?;
        let pending = || Pending::new(device, &self.under_way, header.unique);
        match abi::operation(&header, message, payload) {
            Ok(Operation::Forget(lookups)) => self.adapter.forget(&lookups),
            Ok(Operation::Interrupt { unique }) => self.interrupt(header.unique, unique),
            Ok(operation) => self.adapter.serve(header, operation, pending()),
            Err(error) => self.adapter.refuse(&error, pending()),
        }
        Ok(())
    }

    /// `number`: of the interrupt itself.
    fn interrupt(&self, number: u64, unique: u64) {
        if self.under_way.interrupt(unique) {
            return;
        }
        // Another thread has received the request and not yet taken it up, or has answered it. The kernel
        // knows, by the one way that the request came, and sends the interrupt again in the first case.
        let again = |device: &Arc<Device>| device.refuse(number, Errno::AGAIN).is_ok();
        self.devices.iter().any(again);
    }
}

/// The kernel's 128 KiB would make small requests of a sequential reader's.
fn read_ahead(path: &Path) {
    let raised = table::read().and_then(|mounts| {
        let mount = table::at(&mounts, path)
            .ok_or_else(|| Error::internal("the mount is not in /proc/self/mountinfo"))?;
        let file = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
        fs::write(&file, READ_AHEAD_KIB.to_string()).context(file)
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the kernel's read-ahead stays as it is");
    }
}
