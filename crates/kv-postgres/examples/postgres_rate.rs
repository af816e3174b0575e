//! Measures small commits on a PostgreSQL of its own beside the embedded engine's, both in the same
//! directory: `cargo run --release -p kiln-kv-postgres --example postgres_rate -- DIRECTORY [SECONDS]`

#[path = "../tests/server/mod.rs"]
mod server;

use kiln_env::Env;
use kiln_kv::{Kv, Transaction};
use kiln_kv_embedded::EmbeddedKv;
use kiln_kv_postgres::{Options, PostgresKv};
use kiln_types::{Code, Context, Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const VALUE: [u8; 128] = [7; 128];
const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or_else(|| Error::invalid("which directory?"))?;
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().context("start of the runtime")?;
    let Some(server) = server::Server::start_in(Path::new(&directory)) else { return Ok(()) };
    runtime.block_on(measure(Path::new(&directory), &server.url(), time))
}

async fn measure(directory: &Path, url: &str, time: Duration) -> Result<()> {
    let env = Env::real();
    let options = kiln_kv_embedded::Options::default();
    let embedded = Arc::new(EmbeddedKv::open(directory.join("kv"), &env, options).await?);
    let one = || PostgresKv::open(Options::new(url), &env);
    let (first, second) = (Arc::new(one().await?), Arc::new(one().await?));
    for round in 1..=ROUNDS {
        for writers in [1, 8, 32] {
            let engines: [(&str, Vec<Arc<dyn Kv>>); 3] = [
                ("embedded", vec![embedded.clone()]),
                ("postgres", vec![first.clone()]),
                ("postgres, two servers", vec![first.clone(), second.clone()]),
            ];
            for (name, engines) in engines.into_iter().filter(|(_, kvs)| kvs.len() <= writers) {
                let (rate, slowest) = rate(&engines, writers, time, &env).await?;
                println!(
                    "round {round}  {writers:>2} writers  {name:<22} {rate:>7.0} /s   slowest {slowest:.1?}"
                );
            }
        }
    }
    Ok(())
}

async fn rate(
    engines: &[Arc<dyn Kv>],
    writers: usize,
    time: Duration,
    env: &Env,
) -> Result<(f64, Duration)> {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let kv = Arc::clone(&engines[writer % engines.len()]);
            env.spawn("writer", run(kv, env.clone(), writer, time))
        })
        .collect();
    let (mut commits, mut slowest) = (0, Duration::ZERO);
    for task in tasks {
        let (count, longest) = task.join().await??;
        commits += count;
        slowest = slowest.max(longest);
    }
    Ok((commits as f64 / time.as_secs_f64(), slowest))
}

/// Small read-modify-write transactions of one writer on keys of its own; the commits, the slowest.
async fn run(kv: Arc<dyn Kv>, env: Env, writer: usize, time: Duration) -> Result<(u64, Duration)> {
    let (start, mut count, mut slowest) = (env.now(), 0u64, Duration::ZERO);
    while env.now().since(start) < time {
        let begun = env.now();
        let mut tx: Box<dyn Transaction> = kv.begin().await?;
        let key = format!("writer {writer} {}", count % 10_000);
        tx.get(key.as_bytes()).await?;
        tx.set(key.as_bytes(), &VALUE);
        tx.add(b"commits", 1);
        match tx.commit().await {
            Ok(()) => count += 1,
            Err(error) if error.code() == Code::Conflict => {}
            Err(error) => return Err(error),
        }
        slowest = slowest.max(env.now().since(begun));
    }
    Ok((count, slowest))
}
