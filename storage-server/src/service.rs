//! What the server answers to chunk requests.

use crate::rights::Rights;
use crate::scrub::{BYTES_MAX, scrub};
use crate::target::{Incoming, Target};
use async_trait::async_trait;
use kiln_chain::replica::View;
use kiln_chunk_store::{ChunkExtents, ChunkStat, Store};
use kiln_env::Env;
use kiln_net::{Handler, Peer, Request, Response};
use kiln_telemetry::{REQUESTS, Trace, about, metrics};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{ChainId, ChunkId, ChunkVersion, Code, Error, PublicState, Result, TargetId};
use kiln_wire::{
    Body, DiskSpace, Extents, Fill, Forward, Goodbye, Install, LIST_LIMIT_MAX, List, Listed,
    Listing, Name, Operation, Read, ReadDone, Space, Write, WriteDone,
};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A payload that takes longer to arrive needs the right to be written anew: a removed file's
/// chunks are looked for until no capability is left, and not later.
const ARRIVAL: Duration = Duration::from_secs(1);

/// Whether this server's lease holds: without it nothing is answered.
pub type Lease = Arc<dyn Fn() -> bool + Send + Sync>;

/// The chunk service of one storage server.
pub struct ChunkService {
    env: Env,
    stores: Vec<Arc<Store>>,
    /// By chain; one may have two here while one of them takes the other's place.
    targets: RwLock<BTreeMap<(ChainId, TargetId), Arc<Target>>>,
    rights: Rights,
    lease: Lease,
}

impl ChunkService {
    /// A service over `stores`; targets are added as they are opened.
    pub fn new(env: Env, stores: Vec<Arc<Store>>, rights: Rights, lease: Lease) -> Arc<Self> {
        Arc::new(Self { env, stores, targets: RwLock::default(), rights, lease })
    }

    /// The disks' stores.
    pub fn stores(&self) -> &[Arc<Store>] {
        &self.stores
    }

    /// The targets.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.targets.read().values().cloned().collect()
    }

    /// Adds a target that was opened.
    pub fn add(&self, target: Arc<Target>) {
        self.targets.write().insert((target.chain(), target.id()), target);
    }

    /// Forgets a target that its store does not have any more.
    pub fn remove(&self, target: TargetId) {
        self.targets.write().retain(|(_, id), _| *id != target);
    }

    /// The target of a chain that a request is meant for: `fits` by its view, or else any.
    fn target(&self, chain: ChainId, fits: impl Fn(&View) -> bool) -> Result<Arc<Target>> {
        let targets = self.targets.read();
        let mut here = targets.range((chain, TargetId(0))..=(chain, TargetId(u64::MAX)));
        let first = here.next().map(|(_, target)| target);
        let rest = here.map(|(_, target)| target);
        let mut fitting =
            first.into_iter().chain(rest).filter(|t| t.view().is_some_and(|v| fits(&v)));
        let found = fitting.next().or(first).cloned();
        found.ok_or_else(|| {
            Error::new(Code::WrongTarget, format!("this server has no target of chain {chain}"))
        })
    }

    /// The target that is to hear what `from`, the one before it, says.
    fn behind(&self, chain: ChainId, from: TargetId) -> Result<Arc<Target>> {
        self.target(chain, |view| view.predecessor == Some(from))
    }

    /// Lets nothing pass without the lease. Called before a request is looked at, and again before data
    /// that was read goes out: what it shows was current while the lease held.
    fn require_lease(&self) -> Result<()> {
        match (self.lease)() {
            true => Ok(()),
            false => {
                mark("a request finds no lease");
                Err(Error::new(Code::NotServing, "this server's lease has run out"))
            }
        }
    }

    async fn read(&self, peer: &Peer, request: Request) -> Result<Response> {
        let read = Read::decode(&request.body)?;
        note(read.name, u64::from(read.length));
        self.rights.check_read(peer, &read, self.env.wall())?;
        let target = self.target(read.name.chain, serves)?;
        let length = read.length.min(request.receive_capacity);
        let deadline = request.deadline;
        let range = (read.offset, length);
        let found = target.read(read.name, range, read.floor, read.consistency, deadline).await?;
        if let Err(error) = self.require_lease()
            && !planted("reads need no lease")
        {
            mark("a read outlives the lease");
            return Err(error);
        }
        metrics::STORAGE_READ.add(found.bytes.len() as u64);
        let done = ReadDone {
            version: found.version,
            chunk_length: found.chunk_length,
            checksums: found.checksums,
        };
        Ok(Response::new(done.encode()).with_payload(found.bytes))
    }

    async fn extents(&self, peer: &Peer, request: Request) -> Result<Response> {
        let read = Read::decode(&request.body)?;
        note(read.name, 0);
        self.rights.check_read(peer, &read, self.env.wall())?;
        let target = self.target(read.name.chain, serves)?;
        let (range, deadline) = ((read.offset, read.length), request.deadline);
        let found =
            target.extents(read.name, range, read.floor, read.consistency, deadline).await?;
        self.require_lease()?;
        let ChunkExtents { version, chunk_length, data } = found;
        Ok(Response::new(Extents { version, chunk_length, data }.encode()))
    }

    async fn write(&self, peer: &Peer, mut request: Request) -> Result<Response> {
        let write = Write::decode(&request.body)?;
        let bytes = request.payload.len();
        note(write.name, bytes as u64);
        self.rights.check_write(peer, &write, bytes, self.env.wall())?;
        let target = self.target(write.name.chain, |view| view.is_head)?;
        let checked = self.env.now();
        let payload = request.payload.take().await?;
        if self.env.now().since(checked) > ARRIVAL {
            self.rights.check_write(peer, &write, bytes, self.env.wall())?;
        }
        let incoming = Incoming { update: write.update, payload, trace: Trace::current() };
        let version = target.write(write.name, incoming, request.deadline).await?;
        metrics::STORAGE_WRITTEN.add(bytes as u64);
        Ok(Response::new(WriteDone { version }.encode()))
    }

    async fn forward(&self, peer: &Peer, mut request: Request) -> Result<Response> {
        peer.require_server()?;
        let forward = Forward::decode(&request.body)?;
        note(forward.name, request.payload.len() as u64);
        let target = self.behind(forward.name.chain, forward.from)?;
        let payload = request.payload.take().await?;
        let version = target.forward(forward, payload, request.deadline).await?;
        Ok(Response::new(WriteDone { version }.encode()))
    }

    async fn committed_version(&self, peer: &Peer, request: Request) -> Result<Response> {
        peer.require_server()?;
        let name = Name::decode(&request.body)?;
        let target = self.target(name.chain, |view| view.is_commit_point)?;
        let version = target.committed_version(name).await?;
        self.require_lease()?;
        Ok(Response::new(WriteDone { version }.encode()))
    }

    async fn fill(&self, peer: &Peer, request: Request) -> Result<Response> {
        peer.require_server()?;
        let fill = Fill::decode(&request.body)?;
        let versions = self.behind(fill.chain, fill.from)?.be_filled(fill).await?;
        Ok(Response::new(versions.encode()))
    }

    async fn install(&self, peer: &Peer, mut request: Request) -> Result<Response> {
        peer.require_server()?;
        let install = Install::decode(&request.body)?;
        note(install.name, request.payload.len() as u64);
        let target = self.behind(install.name.chain, install.from)?;
        let payload = request.payload.take().await?;
        target.install(install, payload, request.deadline).await?;
        Ok(Response::default())
    }

    async fn copy(&self, peer: &Peer, request: Request) -> Result<Response> {
        peer.require_server()?;
        let name = Name::decode(&request.body)?;
        let (copy, bytes) = self.target(name.chain, serves)?.copy(name).await?;
        self.require_lease()?;
        Ok(Response::new(copy.encode()).with_payload(bytes))
    }

    async fn list(&self, peer: &Peer, request: Request) -> Result<Response> {
        peer.require_operator()?;
        let list = List::decode(&request.body)?;
        let target = self.target(list.chain, serves)?;
        let (store, id) = (target.store(), target.id());
        let limit = list.limit.clamp(1, LIST_LIMIT_MAX) as usize;
        let found = store.list(id, list.from, list.to, limit).await?;
        let more = found.len() == limit;
        let last = found.last().map(|(chunk, _)| *chunk).filter(|_| more);
        let chunks = found.into_iter().filter_map(listed).collect();
        Ok(Response::new(Listing { chunks, last }.encode()))
    }

    async fn scrub(&self, peer: &Peer, request: Request) -> Result<Response> {
        peer.require_operator()?;
        let list = List::decode(&request.body)?;
        let target = self.target(list.chain, serves)?;
        let done = scrub(&self.env, &target, &list, BYTES_MAX, request.deadline).await?;
        Ok(Response::new(done.encode()))
    }

    async fn goodbye(&self, request: Request) -> Result<Response> {
        let goodbye = Goodbye::decode(&request.body)?;
        for store in &self.stores {
            store.forget_client(goodbye.client).await?;
        }
        Ok(Response::default())
    }

    async fn space(&self, peer: &Peer) -> Result<Response> {
        peer.require_operator()?;
        let mut disks = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            let usage = store.usage();
            let beneath = store.beneath().await?;
            disks.push(DiskSpace {
                disk: store.identity().disk,
                capacity: usage.capacity_bytes,
                used: usage.used_bytes,
                free: usage.free_bytes,
                backed: usage.backed_bytes,
                beneath: beneath.map(|beneath| (beneath.id, beneath.free_bytes)),
            });
        }
        Ok(Response::new(Space { disks }.encode()))
    }
}

fn serves(view: &View) -> bool {
    view.state == PublicState::Serving
}

/// Notes what the request is about, for the log.
fn note(name: Name, bytes: u64) {
    about(|about| {
        (about.chunk, about.chain, about.bytes) = (Some(name.chunk), Some(name.chain), Some(bytes));
    });
}

/// A chunk as a listing shows it; one that is removed for good is not shown.
fn listed((chunk, stat): (ChunkId, ChunkStat)) -> Option<Listed> {
    let pending = stat.pending.is_some();
    let content = stat.committed.filter(|stat| !stat.removed);
    let (version, epoch, length) = match (&content, &stat.pending) {
        (Some(stat), _) => (stat.version, stat.epoch, stat.length),
        (None, Some(stat)) => (ChunkVersion::NONE, stat.epoch, 0),
        (None, None) => return None,
    };
    Some(Listed { chunk, version, epoch, length, pending })
}

#[async_trait]
impl Handler for ChunkService {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        let operation = Operation::from_number(request.operation)?;
        let answered = async {
            if operation != Operation::Read || !planted("reads need no lease") {
                self.require_lease()?;
            }
            match operation {
                Operation::Read => self.read(peer, request).await,
                Operation::Extents => self.extents(peer, request).await,
                Operation::Write => self.write(peer, request).await,
                Operation::Forward => self.forward(peer, request).await,
                Operation::CommittedVersion => self.committed_version(peer, request).await,
                Operation::List => self.list(peer, request).await,
                Operation::Scrub => self.scrub(peer, request).await,
                Operation::Goodbye => self.goodbye(request).await,
                Operation::Space => self.space(peer).await,
                Operation::Fill => self.fill(peer, request).await,
                Operation::Install => self.install(peer, request).await,
                Operation::Copy => self.copy(peer, request).await,
                Operation::Ping => peer.require_server().map(|()| Response::default()),
            }
            .inspect_err(|error| tracing::debug!(%error, "refused"))
        };
        REQUESTS.measure(&self.env, operation.name(), &peer.address, answered).await
    }
}
