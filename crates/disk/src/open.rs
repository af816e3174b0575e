//! Opening a real disk: the options, and the choice of the engine.

use crate::Disk;
use crate::file::DataFile;
use crate::file_disk::{Driver, FileDisk};
use crate::sync_gate::SyncGate;
use crate::uring::Uring;
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The most operations that may be in flight.
const DEPTH_MAX: usize = 4096;
/// Each operation of the plain engine occupies a thread.
const PLAIN_DEPTH_MAX: usize = 32;

/// How long to wait for a file that is held.
const HELD_MAX: Duration = Duration::from_secs(2);
const HELD_PAUSE: Duration = Duration::from_millis(20);

/// How operations reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the system allows it, else plain.
    #[default]
    Auto,
    /// io_uring: one ring and one thread for each disk.
    Uring,
    /// pread and pwrite on the runtime's blocking threads.
    Plain,
}

/// How to open a disk.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Its size in bytes, a multiple of 4 KiB; `None`: as large as it is.
    pub capacity: Option<u64>,
    /// Whether a missing file is created (sparse); needs a capacity.
    pub create: bool,
    /// How operations reach the kernel.
    pub engine: Engine,
    /// How many operations may be in flight; the rest wait for their turn. The plain engine has 32
    /// at most.
    pub depth: usize,
    /// Whether to leave the page cache out where the file system can do that.
    pub direct: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { capacity: None, create: false, engine: Engine::Auto, depth: 128, direct: true }
    }
}

/// Opens a regular file or a block device, for this process alone.
///
/// A file may grow to a larger configured capacity, never shrink; of a device a part may be used.
/// Without direct I/O (the file system cannot, or `direct` is off) everything goes through the page
/// cache, with the same guarantees; [`Disk::describe`] says which it is. The future that drops the
/// last handle waits a moment for operations in flight.
///
/// # Errors
/// `Busy` when another process has it open, `NotFound`, `Invalid` for a capacity that does not fit,
/// `Unsupported` when io_uring was asked for by name and does not work, `DiskFailed`, `Local`.
pub async fn open(path: &Path, options: OpenOptions, env: &Env) -> Result<Arc<dyn Disk>> {
    if !(1..=DEPTH_MAX).contains(&options.depth) {
        return Err(Error::invalid(format!(
            "{}: a queue depth of {} is not from 1 to {DEPTH_MAX}",
            path.display(),
            options.depth
        )));
    }
    if options.create && options.capacity.is_none() {
        return Err(Error::invalid(format!("{}: no capacity to create it with", path.display())));
    }
    let engine = options.engine;
    let depth = options.depth;
    let file = open_file(path, &options, env).await?;
    let disk = start(Arc::new(file), engine, depth, env).await?;
    tracing::info!("opened disk {}", disk.describe());
    Ok(Arc::new(disk))
}

/// Opens the file, and waits a moment for one that is held: the kernel holds what a killed process had
/// open until its last operations are done, and they must not land after ours.
async fn open_file(path: &Path, options: &OpenOptions, env: &Env) -> Result<DataFile> {
    let deadline = env.deadline_after(HELD_MAX);
    loop {
        let (owned, options) = (path.to_owned(), options.clone());
        match env.blocking(move || DataFile::open(&owned, &options)).await? {
            Err(error) if error.code() == Code::Busy && !deadline.passed(env.now()) => {
                env.sleep(HELD_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

async fn start(file: Arc<DataFile>, engine: Engine, depth: usize, env: &Env) -> Result<FileDisk> {
    let gate = SyncGate::new();
    if engine != Engine::Plain {
        let slots = Arc::new(Semaphore::new(depth));
        match Uring::start(Arc::clone(&file), Arc::clone(&slots), Arc::clone(&gate), env).await {
            Ok(uring) => {
                return Ok(FileDisk::new(Driver::Uring(uring), file, env, slots, gate));
            }
            Err(error) if engine == Engine::Uring => return Err(error),
            Err(error) => tracing::warn!("{error}: using the plain engine"),
        }
    }
    let slots = Arc::new(Semaphore::new(depth.min(PLAIN_DEPTH_MAX)));
    Ok(FileDisk::new(Driver::Plain, file, env, slots, gate))
}
