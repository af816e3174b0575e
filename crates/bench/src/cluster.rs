//! The workloads, through the client library.

use crate::{Options, RANDOM_BYTES, SEQUENTIAL_BYTES, rate};
use kiln_client::{Client, File, NewFile, OpenMode};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Caller, Error, InodeId, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The file that is written and read, in the root of the file system.
pub(crate) struct TestFile {
    name: String,
    file: Arc<File>,
}

impl TestFile {
    pub(crate) async fn remove(self, client: &Client, caller: &Caller) -> Result<()> {
        client.remove(caller, InodeId::ROOT, self.name.as_bytes(), false).await?;
        self.file.close().await.map(drop)
    }
}

pub(crate) async fn write(
    env: &Env,
    client: &Arc<Client>,
    caller: &Caller,
    options: &Options,
) -> Result<(TestFile, f64)> {
    let name = format!(".kiln-bench-{:016x}", env.random_u64());
    let new = NewFile {
        parent: InodeId::ROOT,
        name: name.as_bytes(),
        mode: 0o600,
        exclusive: true,
        open: OpenMode::EDIT,
    };
    let file = Arc::new(client.create(caller, &new).await?);
    let mut block = Buffer::zeroed(SEQUENTIAL_BYTES);
    env.fill_random(&mut block);
    let block = block.freeze();
    let started = env.now();
    let target = Arc::clone(&file);
    each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, move |index| {
        write_one(Arc::clone(&target), index, block.clone())
    })
    .await?;
    file.sync().await?;
    let rate = rate(options.size, env.now().since(started));
    Ok((TestFile { name, file }, rate))
}

async fn write_one(file: Arc<File>, index: u64, block: Bytes) -> Result<()> {
    file.write_at(index * SEQUENTIAL_BYTES as u64, block).await
}

pub(crate) async fn read(env: &Env, file: &TestFile, options: &Options) -> Result<f64> {
    let (started, target) = (env.now(), Arc::clone(&file.file));
    each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, move |index| {
        read_one(Arc::clone(&target), index * SEQUENTIAL_BYTES as u64, SEQUENTIAL_BYTES)
    })
    .await?;
    Ok(rate(options.size, env.now().since(started)))
}

pub(crate) async fn read_random(env: &Env, file: &TestFile, options: &Options) -> Result<f64> {
    let (started, target) = (env.now(), Arc::clone(&file.file));
    let offset = random_offsets(env, options);
    each(env, options.random_depth, options.random_count, move |index| {
        read_one(Arc::clone(&target), offset(index), RANDOM_BYTES)
    })
    .await?;
    Ok(rate(options.random_count, env.now().since(started)))
}

/// Where the random request of an index reads.
pub(crate) fn random_offsets(
    env: &Env,
    options: &Options,
) -> impl Fn(u64) -> u64 + Clone + Send + Sync + 'static {
    let (key, blocks) = (env.random_u64() | 1, options.size / RANDOM_BYTES as u64);
    // Odd multipliers visit all residues of 2^64; the high bits are spread well enough for a disk.
    move |index: u64| {
        let drawn = index.wrapping_add(1).wrapping_mul(key);
        let block = (u128::from(drawn) * u128::from(blocks)) >> 64;
        block as u64 * RANDOM_BYTES as u64
    }
}

async fn read_one(file: Arc<File>, offset: u64, bytes: usize) -> Result<()> {
    file.read_at(offset, Buffer::zeroed(bytes)).await.map(drop)
}

/// Runs `count` requests, `depth` of them at a time.
pub(crate) async fn each<F>(
    env: &Env,
    depth: usize,
    count: u64,
    request: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(0));
    let worker = |_| {
        let (next, request) = (Arc::clone(&next), request.clone());
        let work = async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok::<(), Error>(());
                }
                request(index).await?;
            }
        };
        env.spawn("bench worker", work)
    };
    let workers: Vec<_> = (0..depth).map(worker).collect();
    for worker in workers {
        worker.join().await??;
    }
    Ok(())
}
