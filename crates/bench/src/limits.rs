//! The limits: the same I/O without kiln.

use crate::cluster::{each, random_offsets};
use crate::{Options, RANDOM_BYTES, SEQUENTIAL_BYTES, rate};
use kiln_disk::{Disk, OpenOptions};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{Context, Error, Result, block_checksums};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long one step of the pipeline may take.
const STALL: Duration = Duration::from_secs(60);

/// A file in the raw directory, removed when it is dropped.
pub(crate) struct Raw {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    pub(crate) write_rate: f64,
}

impl Raw {
    /// Writes the file, with a sync at the end.
    pub(crate) async fn create(env: &Env, options: &Options) -> Result<Self> {
        let path = raw_path(env, &options.raw_dir);
        let disk = open(env, &path, options.size).await?;
        let mut raw = Self { disk, path, write_rate: 0.0 };
        let block = random_block(env);
        let started = env.now();
        let disk = Arc::clone(&raw.disk);
        each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, move |index| {
            let (disk, block) = (Arc::clone(&disk), block.clone());
            async move { disk.write(index * SEQUENTIAL_BYTES as u64, block).await }
        })
        .await?;
        raw.disk.sync().await?;
        raw.write_rate = rate(options.size, env.now().since(started));
        Ok(raw)
    }

    pub(crate) async fn read(&self, env: &Env, options: &Options) -> Result<f64> {
        let (started, disk) = (env.now(), Arc::clone(&self.disk));
        each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, move |index| {
            read_one(Arc::clone(&disk), index * SEQUENTIAL_BYTES as u64, SEQUENTIAL_BYTES)
        })
        .await?;
        Ok(rate(options.size, env.now().since(started)))
    }

    pub(crate) async fn read_random(&self, env: &Env, options: &Options) -> Result<f64> {
        let (started, disk) = (env.now(), Arc::clone(&self.disk));
        let offset = random_offsets(env, options);
        each(env, options.random_depth, options.random_count, move |index| {
            read_one(Arc::clone(&disk), offset(index), RANDOM_BYTES)
        })
        .await?;
        Ok(rate(options.random_count, env.now().since(started)))
    }
}

async fn read_one(disk: Arc<dyn Disk>, offset: u64, bytes: usize) -> Result<()> {
    disk.read(offset, Buffer::zeroed(bytes)).await.map(drop)
}

impl Drop for Raw {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Replicated writes without a protocol: the bytes run through one socket to each replica in turn, which
/// checks them, writes them to a file of its own, past the page cache, and passes them on.
pub(crate) async fn pipeline(env: &Env, options: &Options) -> Result<f64> {
    let mut threads = Vec::new();
    let mut next: Option<TcpStream> = None;
    let mut paths = Vec::new();
    for _ in 0..options.replicas {
        let path = raw_path(env, &options.raw_dir);
        let disk = open(env, &path, options.size).await?;
        paths.push(path);
        let listener = TcpListener::bind("127.0.0.1:0").context("a socket for the limit")?;
        let address = listener.local_addr().context("a socket for the limit")?;
        let (runtime, size, successor) =
            (tokio::runtime::Handle::current(), options.size, next.take());
        let (depth, own_env) = (options.depth, env.clone());
        threads.push(env.spawn_thread("bench replica", move || {
            let _entered = runtime.enter();
            let (stream, _) = listener.accept().context("the limit's predecessor")?;
            replica(&own_env, stream, successor, disk, size, depth, &runtime)
        })?);
        next = Some(TcpStream::connect(address).context("the limit's replica")?);
    }
    let head = next.ok_or_else(|| Error::invalid("a pipeline needs replicas"))?;
    let block = random_block(env);
    let (started, size) = (env.now(), options.size);
    let sent = env.blocking(move || feed(head, &block, size)).await?;
    for thread in threads {
        let joined = env.blocking(move || thread.join()).await?;
        joined.map_err(|_| Error::internal("a thread of the limit panicked"))??;
    }
    let took = env.now().since(started);
    paths.iter().for_each(|path| remove(path));
    sent.map(|()| rate(options.size, took))
}

fn feed(mut head: TcpStream, block: &Bytes, size: u64) -> Result<()> {
    head.set_write_timeout(Some(STALL)).context("the limit's socket")?;
    for _ in 0..size / SEQUENTIAL_BYTES as u64 {
        head.write_all(block).context("feeding the limit")?;
    }
    Ok(())
}

fn replica(
    env: &Env,
    mut from: TcpStream,
    mut to: Option<TcpStream>,
    disk: Arc<dyn Disk>,
    size: u64,
    depth: usize,
    runtime: &tokio::runtime::Handle,
) -> Result<()> {
    from.set_read_timeout(Some(STALL)).context("the limit's socket")?;
    let mut writes = std::collections::VecDeque::new();
    let pool = Pool::new((depth + 1) * SEQUENTIAL_BYTES);
    for index in 0..size / SEQUENTIAL_BYTES as u64 {
        let mut buffer = pool.take(SEQUENTIAL_BYTES);
        from.read_exact(&mut buffer).context("the limit's predecessor")?;
        let bytes = buffer.freeze();
        std::hint::black_box(block_checksums(&bytes));
        let (disk, copy) = (Arc::clone(&disk), bytes.clone());
        let offset = index * SEQUENTIAL_BYTES as u64;
        let (sender, done) = tokio::sync::oneshot::channel();
        let write = async move { drop(sender.send(disk.write(offset, copy).await)) };
        env.spawn("bench write", write).detach();
        writes.push_back(done);
        if let Some(to) = &mut to {
            to.write_all(&bytes).context("the limit's successor")?;
        }
        if writes.len() == depth {
            finish(writes.pop_front(), runtime)?;
        }
    }
    for write in writes {
        finish(Some(write), runtime)?;
    }
    runtime.block_on(disk.sync())
}

fn finish(
    write: Option<tokio::sync::oneshot::Receiver<Result<()>>>,
    runtime: &tokio::runtime::Handle,
) -> Result<()> {
    let Some(write) = write else { return Ok(()) };
    let lost = |_| Error::internal("a write of the limit was dropped");
    runtime.block_on(write).map_err(lost)?
}

async fn open(env: &Env, path: &Path, size: u64) -> Result<Arc<dyn Disk>> {
    let options = OpenOptions { capacity: Some(size), create: true, ..OpenOptions::default() };
    kiln_disk::open(path, options, env).await
}

fn random_block(env: &Env) -> Bytes {
    let mut block = Buffer::zeroed(SEQUENTIAL_BYTES);
    env.fill_random(&mut block);
    block.freeze()
}

fn raw_path(env: &Env, dir: &Path) -> PathBuf {
    dir.join(format!(".kiln-bench-{:016x}", env.random_u64()))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a test file stays");
    }
}
