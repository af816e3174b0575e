//! What a disk gives without anything on top: `raw PATH [auto|uring|plain] [--overwrite]`.
//!
//! PATH is created (1 GiB) and removed afterwards; an existing file or device is overwritten only
//! when that is asked for.

use kiln_disk::{Disk, Engine, OpenOptions, open};
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_types::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 4096;
const LARGE: usize = 1 << 20;
const FILE_BYTES: u64 = 1 << 30;
const ROUND: Duration = Duration::from_secs(3);

struct Arguments {
    path: PathBuf,
    engine: Engine,
    overwrite: bool,
}

fn arguments() -> Result<Arguments> {
    let usage = || Error::invalid("usage: raw PATH [auto|uring|plain] [--overwrite]");
    let mut path = None;
    let (mut engine, mut overwrite) = (Engine::Auto, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "auto" => engine = Engine::Auto,
            "uring" => engine = Engine::Uring,
            "plain" => engine = Engine::Plain,
            "--overwrite" => overwrite = true,
            other if other.starts_with('-') || path.is_some() => return Err(usage()),
            other => path = Some(PathBuf::from(other)),
        }
    }
    Ok(Arguments { path: path.ok_or_else(usage)?, engine, overwrite })
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { path, engine, overwrite } = arguments()?;
    let existed = path.exists();
    if existed && !overwrite {
        return Err(Error::invalid(format!("{} exists", path.display()))
            .with_hint("this overwrites it: say --overwrite if you mean it"));
    }
    let env = Env::real();
    let capacity = (!existed).then_some(FILE_BYTES);
    let options = OpenOptions { capacity, create: !existed, engine, ..OpenOptions::default() };
    let disk = open(&path, options, &env).await?;
    println!("{}", disk.describe());
    let result = measure(&Bench { disk, env, pool: Pool::new(64 << 20) }).await;
    if !existed {
        let _ = std::fs::remove_file(&path);
    }
    result
}

#[derive(Clone)]
struct Bench {
    disk: Arc<dyn Disk>,
    env: Env,
    pool: Pool,
}

#[derive(Clone, Copy)]
enum Job {
    /// 1 MiB each, one after the other; the number says how many take turns.
    Write(u64),
    Read(u64),
    RandomRead,
    WriteAndSync,
}

async fn measure(bench: &Bench) -> Result<()> {
    let rounds = [
        ("sequential write 1 MiB, depth 8", 8, Job::Write(8)),
        ("sequential read 1 MiB, depth 8", 8, Job::Read(8)),
        ("random read 4 KiB, depth 1", 1, Job::RandomRead),
        ("random read 4 KiB, depth 32", 32, Job::RandomRead),
        ("write 4 KiB + sync, 1 job", 1, Job::WriteAndSync),
        ("write 4 KiB + sync, 8 jobs", 8, Job::WriteAndSync),
    ];
    for (name, depth, job) in rounds {
        let start = bench.env.now();
        let tasks: Vec<_> = (0..depth)
            .map(|number| bench.env.spawn("job", bench.clone().run(job, number)))
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.join().await??);
        }
        if matches!(job, Job::Write(_)) {
            bench.disk.sync().await?;
        }
        report(name, job, &mut times, bench.env.now().since(start));
    }
    Ok(())
}

fn report(name: &str, job: Job, times: &mut [Duration], elapsed: Duration) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3;
    let rate = times.len() as f64 / elapsed.as_secs_f64();
    let rate = match job {
        Job::Write(_) | Job::Read(_) => format!("{:8.0} MiB/s", rate),
        Job::RandomRead | Job::WriteAndSync => format!("{rate:8.0} /s"),
    };
    println!("{name:34} {rate:15} p50 {:7.0} us   p99 {:7.0} us", at(0.5), at(0.99));
}

impl Bench {
    /// Works for a while; the time of each operation.
    async fn run(self, job: Job, number: u64) -> Result<Vec<Duration>> {
        let end = self.env.deadline_after(ROUND);
        let capacity = self.disk.capacity();
        let small = self.random(BLOCK);
        let large = self.random(LARGE);
        let mut times = Vec::new();
        let mut turn = number;
        while !end.left(self.env.now()).is_zero() {
            let offset = self.env.random_below(capacity / BLOCK as u64) * BLOCK as u64;
            let start = self.env.now();
            match job {
                Job::Write(step) | Job::Read(step) => {
                    let large_count = capacity / LARGE as u64;
                    let offset = turn % large_count * LARGE as u64;
                    turn += step;
                    if matches!(job, Job::Write(_)) {
                        self.disk.write(offset, large.clone()).await?;
                    } else {
                        self.disk.read(offset, self.pool.take(LARGE)).await?;
                    }
                }
                Job::RandomRead => drop(self.disk.read(offset, self.pool.take(BLOCK)).await?),
                Job::WriteAndSync => {
                    self.disk.write(offset, small.clone()).await?;
                    self.disk.sync().await?;
                }
            }
            times.push(self.env.now().since(start));
        }
        Ok(times)
    }

    fn random(&self, length: usize) -> Bytes {
        let mut buffer = self.pool.take(length);
        self.env.fill_random(&mut buffer);
        buffer.freeze()
    }
}
