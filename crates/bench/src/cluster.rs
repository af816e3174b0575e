//! The workloads, through the client library.

use crate::{Options, RANDOM_BYTES, SEQUENTIAL_BYTES, rate};
use kiln_client::{Client, File};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Caller, InodeId, Result};
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
        match Arc::try_unwrap(self.file) {
            Ok(file) => file.close().await.map(drop),
            Err(_) => Ok(()),
        }
    }
}

pub(crate) async fn write(
    env: &Env,
    client: &Arc<Client>,
    caller: &Caller,
    options: &Options,
) -> Result<(TestFile, f64)> {
    let name = format!(".kiln-bench-{:016x}", env.random_u64());
    let file = client.create(caller, InodeId::ROOT, name.as_bytes(), 0o600).await?;
    let file = Arc::new(file);
    let mut block = Buffer::zeroed(SEQUENTIAL_BYTES);
    env.fill_random(&mut block);
    let block = block.freeze();
    let started = env.now();
    each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, |index| {
        write_one(Arc::clone(&file), index, block.clone())
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
    let started = env.now();
    each(env, options.depth, options.size / SEQUENTIAL_BYTES as u64, |index| {
        read_one(Arc::clone(&file.file), index * SEQUENTIAL_BYTES as u64, SEQUENTIAL_BYTES)
    })
    .await?;
    Ok(rate(options.size, env.now().since(started)))
}

pub(crate) async fn read_random(env: &Env, file: &TestFile, options: &Options) -> Result<f64> {
    let started = env.now();
    let blocks = options.size / RANDOM_BYTES as u64;
    each(env, options.random_depth, options.random_count, |_| {
        let offset = env.random_below(blocks) * RANDOM_BYTES as u64;
        read_one(Arc::clone(&file.file), offset, RANDOM_BYTES)
    })
    .await?;
    Ok(rate(options.random_count, env.now().since(started)))
}

async fn read_one(file: Arc<File>, offset: u64, bytes: usize) -> Result<()> {
    file.read_at(offset, Buffer::zeroed(bytes)).await.map(drop)
}

/// Runs `count` requests, `depth` of them at a time.
pub(crate) async fn each<F>(
    env: &Env,
    depth: usize,
    count: u64,
    request: impl Fn(u64) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = AtomicU64::new(0);
    let worker = async || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(());
            }
            env.spawn("bench request", request(index)).join().await??;
        }
    };
    let workers: Vec<_> = (0..depth).map(|_| Box::pin(worker())).collect();
    let mut result = Ok(());
    let mut running: Vec<_> = workers;
    std::future::poll_fn(|context| {
        running.retain_mut(|worker| match worker.as_mut().poll(context) {
            std::task::Poll::Ready(done) => {
                result = std::mem::replace(&mut result, Ok(())).and(done);
                false
            }
            std::task::Poll::Pending => true,
        });
        match running.is_empty() || result.is_err() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    result
}
