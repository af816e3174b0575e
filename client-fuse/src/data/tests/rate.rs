//! How fast streams go: printed, never asserted.
//! `cargo test --release -p kiln-client-fuse rate -- --ignored --nocapture`

use crate::data::{Backing, Content, DataOptions, DataPool, Stream};
use async_trait::async_trait;
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes};
use kiln_types::Result;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 1024 * MIB;

/// Takes `delay` for each request, `lanes` of them at a time.
struct Lanes {
    env: Env,
    lanes: Semaphore,
    delay: Duration,
}

impl Lanes {
    async fn pass(&self) {
        let _lane = self.lanes.acquire().await.unwrap();
        if !self.delay.is_zero() {
            self.env.sleep(self.delay).await;
        }
    }
}

#[async_trait]
impl Backing for Lanes {
    async fn read(&self, _: u64, buffer: Buffer) -> Result<Buffer> {
        self.pass().await;
        Ok(buffer)
    }

    async fn write(&self, _: u64, _: Bytes) -> Result<()> {
        self.pass().await;
        Ok(())
    }
}

fn content(env: &Env, lanes: usize, delay: Duration, length: u64) -> Arc<Content> {
    let pool = DataPool::new(env.clone(), DataOptions::new(64 * MIB, 8 * MIB, None));
    let backing = Lanes { env: env.clone(), lanes: Semaphore::new(lanes), delay };
    Content::new(pool, MIB as u32, length, Arc::new(backing))
}

async fn stream_out(env: Env, lanes: usize, delay: Duration, size: u64) {
    let content = content(&env, lanes, delay, 0);
    let bytes = Bytes::copy_of(&vec![1; size as usize]);
    let start = env.now();
    for at in (0..BYTES).step_by(size as usize) {
        content.write(at, bytes.clone()).await.unwrap();
    }
    content.flush().await.unwrap();
    report("write", size, &env, start);
}

async fn stream_in(env: Env, lanes: usize, delay: Duration, size: u64) {
    let content = content(&env, lanes, delay, BYTES);
    let (stream, start) = (Stream::default(), env.now());
    for at in (0..BYTES).step_by(size as usize) {
        content.read(&stream, at, size as usize).await.unwrap();
    }
    report("read", size, &env, start);
}

fn report(what: &str, size: u64, env: &Env, start: kiln_types::Monotonic) {
    let took = env.now().since(start).as_secs_f64();
    println!("{what} in {:4} KiB: {:6.0} MiB/s", size >> 10, (BYTES / MIB) as f64 / took);
}

#[test]
#[ignore = "prints rates"]
fn rate() {
    let delay = Duration::from_millis(3);
    println!("3 ms for each request, 8 at a time: at most {} MiB/s", 8 * 1000 / 3);
    for size in [4 << 10, 128 << 10, MIB] {
        let executor = Executor::new(1);
        executor.run(stream_out(executor.env(), 8, delay, size));
        executor.run(stream_in(executor.env(), 8, delay, size));
    }
    println!("no delay, on this machine");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for size in [4 << 10, 128 << 10, MIB] {
        runtime.block_on(stream_out(Env::real(), 8, Duration::ZERO, size));
        runtime.block_on(stream_in(Env::real(), 8, Duration::ZERO, size));
    }
}
