//! What a call costs over loopback, beside the same bytes over a raw tokio stream in the same run.
//! The two ends have a runtime each, as two processes would: no end polls the other's sockets.
//!
//! `cargo run --release -p kiln-net --example pingpong [SECONDS [NAME]]`

use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_net::{
    Call, Connection, Handler, Identity, KeyRing, Peer, Request, Response, ServerOptions,
    TcpTransport, Transport,
};
use kiln_types::{ClusterId, Context, KeyId, Result, Secret, ServerKey};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};

const READ: u16 = 1;
const WRITE: u16 = 2;
const LARGE: usize = 1 << 20;

/// Serves from memory: reads return one buffer, writes are dropped.
struct Memory {
    data: Bytes,
}

#[async_trait]
impl Handler for Memory {
    async fn handle(&self, _: &Arc<Peer>, mut request: Request) -> Result<Response> {
        if request.operation == WRITE {
            request.payload.take().await?;
            return Ok(Response::new(request.body));
        }
        let bytes = (request.receive_capacity as usize).min(self.data.len());
        let response = Response::new(request.body);
        Ok(if bytes == 0 { response } else { response.with_payload(self.data.slice(0..bytes)) })
    }
}

/// One measurement: what each of `depth` callers does again and again.
#[derive(Clone, Copy)]
struct Job {
    operation: u16,
    bytes: usize,
    depth: usize,
}

const JOBS: [(&str, Job); 8] = [
    ("64 B, depth 1", Job { operation: READ, bytes: 0, depth: 1 }),
    ("64 B, depth 8", Job { operation: READ, bytes: 0, depth: 8 }),
    ("read 4 KiB, depth 1", Job { operation: READ, bytes: 4096, depth: 1 }),
    ("read 4 KiB, depth 8", Job { operation: READ, bytes: 4096, depth: 8 }),
    ("read 1 MiB, depth 1", Job { operation: READ, bytes: LARGE, depth: 1 }),
    ("read 1 MiB, depth 8", Job { operation: READ, bytes: LARGE, depth: 8 }),
    ("write 1 MiB, depth 1", Job { operation: WRITE, bytes: LARGE, depth: 1 }),
    ("write 1 MiB, depth 8", Job { operation: WRITE, bytes: LARGE, depth: 8 }),
];

fn main() -> Result<()> {
    let near = runtime()?;
    let far = runtime()?;
    let env = Env::real();
    let key = ServerKey { cluster: ClusterId(1), id: KeyId(1), secret: Secret([1; 32]) };
    let transport = TcpTransport::new(Identity::Server(key.clone()), env.clone());
    let data = Pool::new(LARGE).take(LARGE).freeze();
    let (ring, memory) = (Arc::new(KeyRing::new(key)), Arc::new(Memory { data }));
    let serving = far.block_on(transport.serve(ServerOptions::default(), ring, memory))?;
    near.block_on(run(&env, &transport, serving.address(), far.handle()))
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("start of a runtime")
}

async fn run(env: &Env, transport: &TcpTransport, address: &str, far: &Handle) -> Result<()> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let wanted = std::env::args().nth(2).unwrap_or_default();
    let connection = transport.connect(address, env.deadline_after(time)).await?;
    println!("{:22} {:>12} {:>12} {:>7}", "", "kiln", "raw", "ratio");
    for (name, job) in JOBS.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let kiln = calls(env, &connection, job, time).await?;
        let raw = raw(env, far, job, time).await?;
        let show = |rate: f64| match job.bytes {
            LARGE => format!("{:.2} GB/s", rate * LARGE as f64 / 1e9),
            _ => format!("{rate:.0} /s"),
        };
        println!("{name:22} {:>12} {:>12} {:>7.2}", show(kiln), show(raw), kiln / raw);
    }
    Ok(())
}

/// Calls per second.
async fn calls(env: &Env, connection: &Connection, job: Job, time: Duration) -> Result<f64> {
    let end = env.deadline_after(time);
    let done = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..job.depth)
        .map(|_| {
            let (env, connection, done) = (env.clone(), connection.clone(), Arc::clone(&done));
            env.clone().spawn("caller", async move {
                let pool = Pool::new(4 * LARGE);
                let payload = pool.take(job.bytes).freeze();
                while !end.passed(env.now()) {
                    let deadline = env.deadline_after(Duration::from_secs(5));
                    let call = Call::new(job.operation, vec![7; 64], deadline);
                    let call = match (job.bytes, job.operation) {
                        (0, _) => call,
                        (bytes, READ) => call.with_receive(pool.take(bytes)),
                        _ => call.with_payload(payload.clone()),
                    };
                    connection.call(call).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, kiln_types::Error>(())
            })
        })
        .collect();
    for caller in callers {
        caller.join().await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / time.as_secs_f64())
}

/// The same bytes over plain streams, one for each caller: 128 bytes each way for header and body.
async fn raw(env: &Env, far: &Handle, job: Job, time: Duration) -> Result<f64> {
    const HEAD: usize = 128;
    let (there, back) = match job.operation {
        READ => (HEAD, HEAD + job.bytes),
        _ => (HEAD + job.bytes, HEAD),
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("bind")?;
    listener.set_nonblocking(true).context("set-up")?;
    let address = listener.local_addr().context("address")?;
    let _listening = {
        let _far = far.enter();
        env.spawn("far end", far_end(listener, env.clone(), there, back))
    };
    let end = env.deadline_after(time);
    let done = Arc::new(AtomicU64::new(0));
    let mut callers = Vec::new();
    for _ in 0..job.depth {
        let mut near = TcpStream::connect(address).await.context("connect")?;
        near.set_nodelay(true).context("set-up")?;
        let (env2, done) = (env.clone(), Arc::clone(&done));
        callers.push(env.spawn("near end", async move {
            let (request, mut answer) = (vec![0; there], vec![0; back]);
            while !end.passed(env2.now()) {
                near.write_all(&request).await.context("write")?;
                near.read_exact(&mut answer).await.context("read")?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, kiln_types::Error>(())
        }));
    }
    for caller in callers {
        caller.join().await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / time.as_secs_f64())
}

async fn far_end(
    listener: std::net::TcpListener,
    env: Env,
    there: usize,
    back: usize,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (mut far, _) = listener.accept().await?;
        far.set_nodelay(true)?;
        env.spawn("far end", async move {
            let (mut request, answer) = (vec![0; there], vec![0; back]);
            while far.read_exact(&mut request).await.is_ok() {
                if far.write_all(&answer).await.is_err() {
                    break;
                }
            }
        })
        .detach();
    }
}
