//! Measures commits per second beside the bare `write` + `fdatasync` rate in the same directory:
//! `cargo run --release -p kiln-kv-embedded --example commit_rate -- DIRECTORY [SECONDS]`

use kiln_env::Env;
use kiln_kv::{Kv, Transaction};
use kiln_kv_embedded::{EmbeddedKv, Options};
use kiln_types::{Code, Context, Error, Result};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const VALUE: [u8; 128] = [7; 128];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or_else(|| Error::invalid("which directory?"))?;
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().context("start of the runtime")?;
    runtime.block_on(measure(Path::new(&directory), time))
}

async fn measure(directory: &Path, time: Duration) -> Result<()> {
    let env = Env::real();
    println!("write + fdatasync, 512 B     {:>8.0} /s", raw_rate(directory, &env, time)?);
    let kv: Arc<dyn Kv> =
        Arc::new(EmbeddedKv::open(directory.join("kv"), &env, Options::default()).await?);
    for clients in [1, 8, 64, 256] {
        let tasks: Vec<_> = (0..clients)
            .map(|client| env.spawn("client", run(Arc::clone(&kv), env.clone(), client, time)))
            .collect();
        let (mut commits, mut slowest) = (0, Duration::ZERO);
        for task in tasks {
            let (count, longest) = task.join().await??;
            commits += count;
            slowest = slowest.max(longest);
        }
        let rate = commits as f64 / time.as_secs_f64();
        println!("{clients:>3} clients, read + 2 writes {rate:>8.0} /s   slowest {slowest:.1?}");
    }
    Ok(())
}

fn raw_rate(directory: &Path, env: &Env, time: Duration) -> Result<f64> {
    let path = directory.join("raw");
    let mut file = std::fs::File::create(&path).context("file for the bare rate")?;
    file.set_len(64 << 20).and_then(|()| file.sync_all()).context("file for the bare rate")?;
    let (start, mut count) = (env.now(), 0);
    while env.now().since(start) < time {
        file.write_all(&[7; 512]).and_then(|()| file.sync_data()).context("bare write")?;
        count += 1;
    }
    std::fs::remove_file(&path).context("file for the bare rate")?;
    Ok(f64::from(count) / time.as_secs_f64())
}

/// Small read-modify-write transactions of one client on keys of its own; the commits, the slowest.
async fn run(kv: Arc<dyn Kv>, env: Env, client: u32, time: Duration) -> Result<(u64, Duration)> {
    let (start, mut count, mut slowest) = (env.now(), 0u64, Duration::ZERO);
    while env.now().since(start) < time {
        let begun = env.now();
        let mut tx: Box<dyn Transaction> = kv.begin().await?;
        let key = format!("client {client} {}", count % 10_000);
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
