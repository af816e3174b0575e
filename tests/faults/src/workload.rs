//! The checked workload: writers and readers of all kinds, on the hosts of clients.

use crate::access::Access;
use crate::blocks::{self, BlockFile};
use crate::board::Board;
use crate::logs::{self, Log};
use crate::names::{self, Names};
use crate::seat::{self, Entry, Seat};
use kiln_client::{Client, Options};
use kiln_types::{Code, Error, InodeId, Result, RoutingInfo};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// How much is done.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Files of blocks.
    pub(crate) files: u32,
    /// Their writers and readers on each client's host.
    pub(crate) writers: usize,
    pub(crate) readers: usize,
}

/// How long the impatient client tries: what it gives up may have happened or not.
const IMPATIENT: Duration = Duration::from_secs(7);
/// What runs at the end has so long to finish: as long as a patient client tries.
const FINISH_WITHIN: Duration = Duration::from_secs(130);

/// Everything that is written and read.
struct Content {
    files: Arc<Vec<BlockFile>>,
    logs: Vec<Arc<Log>>,
    names: Vec<Arc<Names>>,
}

pub(crate) struct Workload {
    board: Arc<Board>,
    entry: Entry,
    runtimes: Runtimes,
    watcher: Arc<Client>,
    content: Arc<Content>,
    workers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Makes the files and starts to work.
    pub(crate) async fn start(
        access: &Access,
        board: &Arc<Board>,
        seed: u64,
        load: Load,
    ) -> Result<Self> {
        let runtimes = access.hosts.iter().map(seat::runtime).collect::<Result<_>>()?;
        let runtimes = Runtimes(runtimes);
        let options = Options::default();
        let credential = access.credential()?;
        let entry = Entry { manager: access.manager.clone(), credential, options };
        let made = on(&runtimes.0[0], {
            let (board, entry, hosts) = (Arc::clone(board), entry.clone(), access.hosts.len());
            async move { make(board, entry, load.files, hosts).await }
        });
        let (watcher, content) =
            board.env.timeout(FINISH_WITHIN, "the first files", made).await???;
        let content = Arc::new(content);
        let board = Arc::clone(board);
        let mut workload = Self { board, entry, runtimes, watcher, content, workers: Vec::new() };
        workload.employ(seed, load).await?;
        Ok(workload)
    }

    async fn employ(&mut self, seed: u64, load: Load) -> Result<()> {
        let hosts = self.runtimes.0.len();
        for host in 0..hosts {
            let options = match host {
                0 => Options::default(),
                _ => Options {
                    io_timeout: Some(IMPATIENT),
                    meta_timeout: Some(IMPATIENT),
                    ..Options::default()
                },
            };
            let (board, entry) = (Arc::clone(&self.board), Entry { options, ..self.entry.clone() });
            let runtime = &self.runtimes.0[host];
            let seat = on(runtime, Seat::take(board, entry)).await?;
            let mut random = fastrand::Rng::with_seed(seed ^ (host as u64 + 1) << 32);
            let content = &self.content;
            for writer in 0..load.writers {
                let place = (host * load.writers + writer, hosts * load.writers);
                let files = Arc::clone(&content.files);
                let work = blocks::write(Arc::clone(&seat), files, place, random.fork());
                self.workers.push(runtime.spawn(work));
            }
            for _ in 0..load.readers {
                let files = Arc::clone(&content.files);
                let work = blocks::read(Arc::clone(&seat), files, random.fork());
                self.workers.push(runtime.spawn(work));
            }
            let (log, names) = (&content.logs[host], &content.names[host]);
            let all = (content.logs.clone(), content.names.clone());
            let seat = || Arc::clone(&seat);
            let work = logs::write(seat(), Arc::clone(log), random.fork());
            self.workers.push(runtime.spawn(work));
            self.workers.push(runtime.spawn(logs::read(seat(), all.0, random.fork())));
            let work = names::change(seat(), Arc::clone(names), random.fork());
            self.workers.push(runtime.spawn(work));
            self.workers.push(runtime.spawn(names::look(seat(), all.1, random.fork())));
        }
        Ok(())
    }

    /// What the clients are told of the cluster.
    pub(crate) fn routing(&self) -> Arc<RoutingInfo> {
        self.watcher.routing()
    }

    /// Lets everybody finish what is under way.
    pub(crate) async fn finish(&mut self) {
        self.board.end();
        let workers = std::mem::take(&mut self.workers);
        let end = async {
            for worker in workers {
                if let Err(error) = worker.await {
                    self.board.violate(format!("a worker died: {error}"));
                }
            }
        };
        if self.board.env.timeout(FINISH_WITHIN, "the last operations", end).await.is_err() {
            let under_way = self.board.under_way().join("; ");
            self.board.violate(format!("after all faults there is still under way: {under_way}"));
        }
    }

    /// Reads everything as a client that never was there before.
    pub(crate) async fn verify(&self) -> Result<()> {
        let (board, entry) = (Arc::clone(&self.board), self.entry.clone());
        let content = Arc::clone(&self.content);
        let verified = on(&self.runtimes.0[0], async move {
            let seat = Seat::take(board, entry).await;
            for file in content.files.iter() {
                file.verify(&seat).await?;
            }
            for log in &content.logs {
                log.verify(&seat).await?;
            }
            for names in &content.names {
                names.verify(&seat).await?;
            }
            Ok(())
        });
        self.board.env.timeout(FINISH_WITHIN, "reading everything", verified).await??
    }
}

/// The event loops of the clients' hosts.
struct Runtimes(Vec<Runtime>);

impl Drop for Runtimes {
    /// What still runs is dropped; nobody waits for it.
    fn drop(&mut self) {
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}

/// Runs `work` on the threads of `runtime`.
async fn on<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let ended = runtime.spawn(work).await;
    ended.map_err(|error| Error::new(Code::Internal, format!("a client's task: {error}")))
}

async fn make(
    board: Arc<Board>,
    entry: Entry,
    files: u32,
    hosts: usize,
) -> Result<(Arc<Client>, Content)> {
    let seat = Seat::take(board, entry).await;
    let mut made = Vec::new();
    for number in 0..files {
        made.push(BlockFile::make(&seat, InodeId::ROOT, number).await?);
    }
    let (mut logs, mut names) = (Vec::new(), Vec::new());
    for host in 0..hosts {
        logs.push(Arc::new(Log::make(&seat, InodeId::ROOT, host).await?));
        names.push(Arc::new(Names::make(&seat, InodeId::ROOT, host).await?));
    }
    Ok((seat.client(), Content { files: Arc::new(made), logs, names }))
}
