//! Replicated writes without a protocol: the bytes run through one socket to each replica in turn, which
//! checks them, writes them to a file of its own, past the page cache, and passes them on.

use super::RawFile;
use crate::run::{Bench, RANDOM_BYTES, SEQUENTIAL_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_disk::Disk;
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_types::{Context, Error, Result, block_checksums};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How long one step of the pipeline may take.
const STALL: Duration = Duration::from_secs(60);

/// What goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// All of a file, in order, in requests of 1 MiB.
    Sequential,
    /// Requests of 4 KiB here and there, until the time is over.
    Random,
}

/// One replica.
struct Replica {
    env: Env,
    runtime: Handle,
    disk: Arc<dyn Disk>,
    request: usize,
    depth: usize,
    offset: Arc<dyn Fn(u64) -> u64 + Send + Sync>,
}

/// The replicas' files.
pub(crate) struct Pipeline {
    files: Vec<RawFile>,
}

impl Pipeline {
    pub(crate) async fn create(bench: &Bench, dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for _ in 0..bench.options.replicas {
            files.push(RawFile::create(bench, dir).await?);
        }
        Ok(Self { files })
    }

    pub(crate) async fn run(&self, bench: &Bench, traffic: Traffic) -> Result<Sample> {
        let (request, depth) = match traffic {
            Traffic::Sequential => (SEQUENTIAL_BYTES, bench.options.depth),
            Traffic::Random => (RANDOM_BYTES, bench.options.random_depth),
        };
        let offset: Arc<dyn Fn(u64) -> u64 + Send + Sync> = match traffic {
            Traffic::Sequential => Arc::new(|number| number * SEQUENTIAL_BYTES as u64),
            Traffic::Random => Arc::new(bench.random_offsets()),
        };
        let (mut threads, mut next) = (Vec::new(), None);
        for file in &self.files {
            let (env, runtime) = (bench.env.clone(), Handle::current());
            let (disk, offset) = (Arc::clone(&file.disk), Arc::clone(&offset));
            let replica = Replica { env, runtime, disk, request, depth, offset };
            let (near, far) = connection()?;
            let successor = next.replace(near);
            let work = move || replica.run(far, successor);
            threads.push(bench.env.spawn_thread("bench replica", work)?);
        }
        let head = next.ok_or_else(|| Error::invalid("a pipeline needs replicas"))?;
        let began = bench.env.now();
        let fed = feed(bench, head, traffic, request).await;
        for thread in threads {
            let joined = bench.env.blocking(move || thread.join()).await?;
            joined.map_err(|_| Error::internal("a thread of the limit panicked"))??;
        }
        let mut sample = fed?;
        sample.took = bench.env.now().since(began);
        // A request has no answer here: how long one took cannot be seen.
        Ok(if traffic == Traffic::Sequential { sample.in_bytes(request) } else { sample.whole() })
    }
}

fn connection() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a socket for the limit")?;
    let address = listener.local_addr().context("a socket for the limit")?;
    let near = TcpStream::connect(address).context("the limit's replica")?;
    let (far, _) = listener.accept().context("the limit's predecessor")?;
    Ok((near, far))
}

/// Sends everything, then closes the socket.
async fn feed(bench: &Bench, head: TcpStream, traffic: Traffic, request: usize) -> Result<Sample> {
    head.set_write_timeout(Some(STALL)).context("the limit's socket")?;
    let (block, blocks, head) =
        (bench.random_block(request), bench.blocks(), Mutex::new(Some(head)));
    let own = move |_| Ok(head.lock().take());
    let send = move |head: &mut Option<TcpStream>, turn: Turn| {
        let left = traffic == Traffic::Random || turn.shared < blocks;
        let Some(head) = head.as_mut().filter(|_| left) else { return Ok(0) };
        head.write_all(&block).context("feeding the limit").map(|()| 1)
    };
    let crew = if traffic == Traffic::Random { bench.timed(1) } else { bench.crew(1) };
    crew.threads(own, send).await
}

impl Replica {
    fn run(self, mut from: TcpStream, mut to: Option<TcpStream>) -> Result<()> {
        let _entered = self.runtime.enter();
        from.set_read_timeout(Some(STALL)).context("the limit's socket")?;
        let mut writes = VecDeque::new();
        let pool = Pool::new((self.depth + 1) * self.request);
        for number in 0.. {
            let mut buffer = pool.take(self.request);
            match from.read_exact(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                read => read.context("the limit's predecessor")?,
            }
            let bytes = buffer.freeze();
            std::hint::black_box(block_checksums(&bytes));
            writes.push_back(self.begin_write(number, bytes.clone()));
            if let Some(to) = &mut to {
                to.write_all(&bytes).context("the limit's successor")?;
            }
            if writes.len() == self.depth {
                self.finish(writes.pop_front())?;
            }
        }
        for write in writes {
            self.finish(Some(write))?;
        }
        self.runtime.block_on(self.disk.sync())
    }

    fn begin_write(&self, number: u64, bytes: Bytes) -> oneshot::Receiver<Result<()>> {
        let (disk, offset) = (Arc::clone(&self.disk), (self.offset)(number));
        let (sender, done) = oneshot::channel();
        let write = async move { drop(sender.send(disk.write(offset, bytes).await)) };
        self.env.spawn("bench write", write).detach();
        done
    }

    fn finish(&self, write: Option<oneshot::Receiver<Result<()>>>) -> Result<()> {
        let Some(write) = write else { return Ok(()) };
        let lost = |_| Error::internal("a write of the limit was dropped");
        self.runtime.block_on(write).map_err(lost)?
    }
}
