//! A replica whose successor refuses a write, or does not answer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use kiln_chain::replica::View;
use kiln_chunk_store::{Identity, Options, Store};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::{Env, Executor};
use kiln_memory::{Bytes, Pool};
use kiln_net::{
    ConnectionPool, Handler, KeyRing, Peer, PoolOptions, Request, Response, ServerOptions, Serving,
    SimulatedNetwork, SimulatedOptions, Terms, Transport,
};
use kiln_storage_server::{Completeness, Incoming, Peers, Recovery, Target};
use kiln_telemetry::Trace;
use kiln_types::{
    Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, ClusterId, Code, Consistency, DiskId,
    Error, Incarnation, InodeId, KeyId, LocalState, Member, Node, NodeId, PublicState, Result,
    RoutingInfo, Secret, ServerKey, ServiceKind, TargetId, TreeId, TruncateEpoch, crc32c,
};
use kiln_wire::{Body, Change, Forward, Name, Operation, Update, WriteDone};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const CHAIN: ChainId = ChainId(3);
const HEAD: TargetId = TargetId(1);
const TAIL: TargetId = TargetId(2);
const MIB: u64 = 1 << 20;

/// A successor that is full, or silent, or not. As it refuses, the disk of the one before it gets full too.
struct Successor {
    full: AtomicBool,
    silent: AtomicBool,
    /// What it says is committed.
    decided: Mutex<Option<ChunkVersion>>,
    disk: Arc<SimulatedDisk>,
}

#[async_trait]
impl Handler for Successor {
    async fn handle(&self, _peer: &Arc<Peer>, mut request: Request) -> Result<Response> {
        let decided = *self.decided.lock();
        if request.operation == Operation::CommittedVersion as u16
            && let Some(version) = decided
        {
            return Ok(Response::new(WriteDone { version }.encode()));
        }
        if self.silent.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let forward = Forward::decode(&request.body)?;
        request.payload.take().await?;
        if self.full.load(Ordering::Relaxed) {
            self.disk.set_physical_capacity(0);
            return Err(Error::from(Code::NoSpace));
        }
        Ok(Response::new(WriteDone { version: forward.version }.encode()))
    }
}

fn key() -> ServerKey {
    ServerKey { cluster: ClusterId(1), id: KeyId(1), secret: Secret([9; 32]) }
}

fn chain() -> Chain {
    let member = |target| Member { target, state: PublicState::Serving };
    let members = vec![member(HEAD), member(TAIL)];
    Chain { id: CHAIN, version: ChainVersion(4), members, min_serving: 2, replicas: 3 }
}

fn routing(address: &str) -> RoutingInfo {
    let (node, disk, local) = (NodeId(2), DiskId(2), LocalState::UpToDate);
    let place = kiln_types::Target { id: TAIL, chain: CHAIN, node, disk, local };
    let node = Node {
        id: node,
        kind: ServiceKind::Storage,
        address: address.into(),
        incarnation: Incarnation(1),
        alive: true,
        tags: Default::default(),
    };
    RoutingInfo {
        nodes: [(node.id, node)].into(),
        targets: [(TAIL, place)].into(),
        chains: [(CHAIN, chain())].into(),
        ..RoutingInfo::default()
    }
}

fn name(index: u64) -> Name {
    let chunk = ChunkId::file(TreeId::MAIN, InodeId(5), index);
    Name { chain: CHAIN, chain_version: ChainVersion(4), chunk }
}

struct World {
    env: Env,
    disk: Arc<SimulatedDisk>,
    target: Arc<Target>,
    successor: Arc<Successor>,
    _serving: Box<dyn Serving>,
    _routing: watch::Sender<Arc<RoutingInfo>>,
}

impl World {
    async fn new(env: Env) -> Self {
        let disk = SimulatedDisk::new(env.clone(), 64 * MIB);
        let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let identity = Identity { disk: DiskId(1), cluster: ClusterId(1) };
        Store::format(&device, identity).await.unwrap();
        let pool = Pool::new(8 << 20);
        let store = Store::open(device, env.clone(), pool, Options::default()).await.unwrap();
        store.create_target(HEAD, CHAIN, vec![]).await.unwrap();

        let network = SimulatedNetwork::new(SimulatedOptions::default(), env.clone());
        let host = |name, node| {
            let terms = Terms { node: Some(NodeId(node)), ..Terms::CURRENT };
            network.host(name, kiln_net::Identity::Server(key()), terms)
        };
        let (full, silent) = (AtomicBool::new(true), AtomicBool::new(false));
        let (decided, disk_beneath) = (Mutex::default(), Arc::clone(&disk));
        let successor = Arc::new(Successor { full, silent, decided, disk: disk_beneath });
        let options = ServerOptions {
            address: "tail:1".into(),
            terms: Terms { node: Some(NodeId(2)), ..Terms::CURRENT },
            ..ServerOptions::default()
        };
        let ring = Arc::new(KeyRing::new(key()));
        let tail = host("tail", 2);
        let serving = tail.serve(options, ring, Arc::clone(&successor) as _).await.unwrap();
        let (sender, receiver) = watch::channel(Arc::new(routing(serving.address())));
        let transport = Arc::new(host("head", 1));
        let connections = ConnectionPool::new(transport, PoolOptions::default(), env.clone());
        let peers = Peers::new(connections, receiver);
        let target = Target::open(
            HEAD,
            CHAIN,
            store,
            env.clone(),
            peers,
            Recovery::new(0, env.clone()),
            Completeness::Complete,
        );
        target.take_view(View::of(&chain(), HEAD));
        Self { env, disk, target, successor, _serving: serving, _routing: sender }
    }

    async fn write(&self, index: u64) -> Result<ChunkVersion> {
        self.write_byte(index, 7).await
    }

    async fn write_byte(&self, index: u64, byte: u8) -> Result<ChunkVersion> {
        let bytes = Bytes::copy_of(&[byte; 4096]);
        let change = Change::Write { offset: 0, checksums: vec![crc32c(&bytes)] };
        self.change(index, change, bytes).await
    }

    async fn change(&self, index: u64, change: Change, payload: Bytes) -> Result<ChunkVersion> {
        // A removal under a chunk's own epoch was done before.
        let epoch = TruncateEpoch(u64::from(change == Change::Remove));
        let update =
            Update { change, epoch, floor: TruncateEpoch(0), chunk_bytes: MIB as u32, retry: None };
        let name = name(index);
        let incoming = Incoming { update, payload, trace: Trace::default() };
        let deadline = self.env.deadline_after(Duration::from_secs(5));
        self.target.write(name, incoming, deadline).await
    }

    /// The first byte of a chunk, as the head shows it.
    async fn read(&self, index: u64, consistency: Consistency) -> Result<u8> {
        let deadline = self.env.deadline_after(Duration::from_secs(2));
        let read = self.target.read(name(index), (0, 1), TruncateEpoch(0), consistency, deadline);
        Ok(read.await?.bytes[0])
    }

    fn pending(&self) -> usize {
        self.target.store().pending(HEAD).len()
    }
}

#[test]
fn a_refused_version_goes_though_the_disk_is_full() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let world = World::new(env).await;
        for index in 0..300 {
            world.disk.set_physical_capacity(64 * MIB);
            world.successor.full.store(index % 3 > 0, Ordering::Relaxed);
            let written = world.write(index / 6).await.map_err(|error| error.code());
            match index % 3 {
                0 => assert!(written.is_ok(), "write {index}: {written:?}"),
                _ => assert_eq!(written, Err(Code::NoSpace), "write {index}"),
            }
            assert_eq!(world.pending(), 0, "after write {index}");
        }
    });
}

#[test]
fn a_relaxed_read_does_not_wait_for_a_write_that_is_under_way() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let world = Arc::new(World::new(env.clone()).await);
        world.successor.full.store(false, Ordering::Relaxed);
        world.write_byte(0, 1).await.unwrap();
        world.successor.silent.store(true, Ordering::Relaxed);
        let writing = Arc::clone(&world);
        let write = env.spawn("write", async move { writing.write_byte(0, 2).await });
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!(world.pending(), 1, "it is passed on, and not answered");
        assert_eq!(world.read(0, Consistency::Relaxed).await, Ok(1));
        // The successor, which decides, does not say what is committed.
        assert!(world.read(0, Consistency::Linearizable).await.is_err());
        drop(write);
    });
}

#[test]
fn a_removal_that_the_successor_has_decided_is_seen_by_reads_here() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let world = Arc::new(World::new(env.clone()).await);
        world.successor.full.store(false, Ordering::Relaxed);
        let written = world.write_byte(0, 1).await.unwrap();
        world.successor.silent.store(true, Ordering::Relaxed);
        let removing = Arc::clone(&world);
        let remove =
            env.spawn(
                "remove",
                async move { removing.change(0, Change::Remove, Bytes::empty()).await },
            );
        env.sleep(Duration::from_secs(1)).await;
        let linearizable = || world.read(0, Consistency::Linearizable);
        *world.successor.decided.lock() = Some(written);
        assert_eq!(linearizable().await, Ok(1), "not decided yet");
        // Its answer to the removal does not come, or late.
        let removed = world.target.store().pending(HEAD)[0].1;
        *world.successor.decided.lock() = Some(removed);
        assert_eq!(linearizable().await.map_err(|e| e.code()), Err(Code::ChunkNotFound));
        drop(remove);
    });
}
