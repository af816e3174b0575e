//! Damaged chunks: one that is written while a target behind is filled, and one of which nobody can say what
//! was lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use kiln_chain::replica::View;
use kiln_chunk_store::{Identity, Options, Store};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_net::{
    ConnectionPool, Handler, KeyRing, Peer, PoolOptions, Request, Response, ServerOptions, Serving,
    SimulatedNetwork, SimulatedOptions, Terms, Transport,
};
use kiln_storage_server::{Completeness, Peers, Recovery, Target};
use kiln_types::{
    Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, ClusterId, Code, Consistency, DiskId,
    Error, HeldPage, Incarnation, InodeId, KeyId, LocalState, Member, Node, NodeId, PublicState,
    Result, RoutingInfo, Secret, ServerKey, ServiceKind, TargetId, TreeId, TruncateEpoch, crc32c,
};
use kiln_wire::{Body, Change, Copied, Forward, Install, Name, Operation, Update, WriteDone};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

const CHAIN: ChainId = ChainId(3);
const HEAD: TargetId = TargetId(1);
const MINE: TargetId = TargetId(2);
const FILLED: TargetId = TargetId(3);
const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const PEERS: NodeId = NodeId(2);

/// The head, which has the first version whole, and the target that is filled.
#[derive(Default)]
struct Others {
    installed: Mutex<Vec<(ChunkVersion, Vec<u8>)>>,
}

#[async_trait]
impl Handler for Others {
    async fn handle(&self, _peer: &Arc<Peer>, mut request: Request) -> Result<Response> {
        let is = |operation: Operation| request.operation == operation as u16;
        if is(Operation::Copy) {
            let content = content();
            let checksums = Some(content.chunks(BLOCK).map(crc32c).collect());
            let copied = Copied { version: version(4, 1), epoch: TruncateEpoch(0), checksums };
            return Ok(Response::new(copied.encode()).with_payload(Bytes::copy_of(&content)));
        }
        if is(Operation::Forward) {
            let forward = Forward::decode(&request.body)?;
            request.payload.take().await?;
            if self.installed.lock().unwrap().is_empty() {
                return Err(Error::new(Code::VersionMismatch, "it follows nothing here"));
            }
            return Ok(Response::new(WriteDone { version: forward.version }.encode()));
        }
        if is(Operation::Install) {
            let install = Install::decode(&request.body)?;
            let bytes = request.payload.take().await?;
            let copy = install.copy.unwrap();
            self.installed.lock().unwrap().push((copy.version, bytes.to_vec()));
            return Ok(Response::default());
        }
        // A step of the walk: nothing is there.
        Ok(Response::new(HeldPage::new(Vec::new(), 1).encode()))
    }
}

fn content() -> Vec<u8> {
    [[7; BLOCK], [8; BLOCK]].concat()
}

fn version(chain: u64, counter: u64) -> ChunkVersion {
    ChunkVersion { chain: ChainVersion(chain), counter }
}

fn chunk() -> ChunkId {
    ChunkId::file(TreeId::MAIN, InodeId(5), 0)
}

fn key() -> ServerKey {
    ServerKey { cluster: ClusterId(1), id: KeyId(1), secret: Secret([9; 32]) }
}

/// The chain while the third target is away, and as it is filled.
fn chain(version: u64) -> Chain {
    let last = if version == 4 { PublicState::Offline } else { PublicState::Syncing };
    let states = [(HEAD, PublicState::Serving), (MINE, PublicState::Serving), (FILLED, last)];
    let members = states.map(|(target, state)| Member { target, state }).to_vec();
    Chain { id: CHAIN, version: ChainVersion(version), members, min_serving: 2, replicas: 3 }
}

fn routing(address: &str) -> RoutingInfo {
    let (disk, local) = (DiskId(2), LocalState::UpToDate);
    let place = |id| kiln_types::Target { id, chain: CHAIN, node: PEERS, disk, local };
    let node = Node {
        id: PEERS,
        kind: ServiceKind::Storage,
        address: address.into(),
        incarnation: Incarnation(1),
        alive: true,
        tags: Default::default(),
    };
    RoutingInfo {
        nodes: [(node.id, node)].into(),
        targets: [(HEAD, place(HEAD)), (FILLED, place(FILLED))].into(),
        chains: [(CHAIN, chain(5))].into(),
        ..RoutingInfo::default()
    }
}

/// A write that the head passed on.
async fn forward(
    env: &Env,
    target: &Arc<Target>,
    version: ChunkVersion,
    previous: ChunkVersion,
    bytes: &[u8],
) -> Result<ChunkVersion> {
    let checksums = bytes.chunks(BLOCK).map(crc32c).collect();
    let update = Update {
        change: Change::Write { offset: 0, checksums },
        epoch: TruncateEpoch(0),
        floor: TruncateEpoch(0),
        chunk_bytes: MIB as u32,
        retry: None,
    };
    let name = Name { chain: CHAIN, chain_version: version.chain, chunk: chunk() };
    let forward = Forward { name, from: HEAD, version, previous, update };
    let deadline = env.deadline_after(Duration::from_secs(60));
    target.forward(forward, Bytes::copy_of(bytes), deadline).await
}

/// Flips a bit of the second block where the disk has it.
async fn damage(disk: &Arc<SimulatedDisk>) {
    let device: Arc<dyn Disk> = Arc::clone(disk) as _;
    for at in (0..64 * MIB).step_by(BLOCK) {
        let block = device.read(at, Buffer::zeroed(BLOCK)).await.unwrap();
        if block[..] == [8; BLOCK] {
            return disk.flip_bit(at + 9, 0);
        }
    }
    panic!("the block is nowhere");
}

/// A target on a disk of its own, and what stands for all others.
struct Bench {
    disk: Arc<SimulatedDisk>,
    target: Arc<Target>,
    others: Arc<Others>,
    _serving: Box<dyn Serving>,
}

async fn bench(env: &Env, options: Options) -> Bench {
    let disk = SimulatedDisk::new(env.clone(), 64 * MIB);
    let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let identity = Identity { disk: DiskId(1), cluster: ClusterId(1) };
    Store::format(&device, identity).await.unwrap();
    let pool = Pool::new(8 << 20);
    let store = Store::open(device, env.clone(), pool, options).await.unwrap();
    store.create_target(MINE, CHAIN, vec![]).await.unwrap();

    let network = SimulatedNetwork::new(SimulatedOptions::default(), env.clone());
    let host = |name, node| {
        let terms = Terms { node: Some(node), ..Terms::CURRENT };
        network.host(name, kiln_net::Identity::Server(key()), terms)
    };
    let others = Arc::new(Others::default());
    let options = ServerOptions {
        address: "others:1".into(),
        terms: Terms { node: Some(PEERS), ..Terms::CURRENT },
        ..ServerOptions::default()
    };
    let ring = Arc::new(KeyRing::new(key()));
    let peers = host("others", PEERS);
    let serving = peers.serve(options, ring, Arc::clone(&others) as _).await.unwrap();
    let (_sender, receiver) = watch::channel(Arc::new(routing(serving.address())));
    let transport = Arc::new(host("mine", NodeId(1)));
    let connections = ConnectionPool::new(transport, PoolOptions::default(), env.clone());
    let peers = Peers::new(connections, receiver);
    let recovery = Recovery::new(0, env.clone());
    let complete = Completeness::Complete;
    let target = Target::open(MINE, CHAIN, store, env.clone(), peers, recovery, complete);
    Bench { disk, target, others, _serving: serving }
}

#[test]
fn a_write_to_a_damaged_chunk_does_not_wait_for_its_repair() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let Bench { disk, target, others, .. } = &bench(&env, Options::default()).await;
        target.take_view(View::of(&chain(4), MINE));
        let (first, second) = (version(4, 1), version(5, 2));
        forward(&env, target, first, ChunkVersion::NONE, &content()).await.unwrap();
        damage(disk).await;
        target.take_view(View::of(&chain(5), MINE));
        forward(&env, target, second, first, &[9; BLOCK]).await.unwrap();
        let installed = others.installed.lock().unwrap().clone();
        assert!(installed.contains(&(first, content())), "{} copies", installed.len());
    });
}

/// The index keeps short versions only: that of a chain which changed millions of times is in the record alone.
#[test]
fn a_target_that_lost_a_chunks_version_leaves_its_chain_to_be_filled() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        // Nothing is remembered of records that were read.
        let options = Options { cache_bytes: 0, ..Options::default() };
        let Bench { disk, target, .. } = &bench(&env, options).await;
        let much = 1 << 30;
        target.take_view(View::of(&Chain { version: ChainVersion(much), ..chain(4) }, MINE));
        let first = version(much, 1);
        forward(&env, target, first, ChunkVersion::NONE, &content()).await.unwrap();
        let device: Arc<dyn Disk> = Arc::clone(disk) as _;
        for block in disk.written_blocks() {
            let at = block * BLOCK as u64;
            let bytes = device.read(at, Buffer::zeroed(BLOCK)).await.unwrap();
            if !content().chunks(BLOCK).any(|data| data == &bytes[..]) {
                (0..BLOCK as u64).step_by(16).for_each(|byte| disk.flip_bit(at + byte, 0));
            }
        }
        assert_eq!(target.local_state(), LocalState::UpToDate);
        let read = || {
            let name = Name { chain: CHAIN, chain_version: ChainVersion(much), chunk: chunk() };
            let (floor, all) = (TruncateEpoch(0), (0, 2 * BLOCK as u32));
            let deadline = env.deadline_after(Duration::from_secs(10));
            target.read(name, all, floor, Consistency::Linearizable, deadline)
        };
        read().await.expect_err("its record is damaged");
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!(target.local_state(), LocalState::Offline);
        assert_eq!(read().await.unwrap_err().code(), Code::NotServing);
        // Once it is out of its chain it may come back, to be filled.
        target.take_view(View::of(&Chain { version: ChainVersion(much + 1), ..without() }, MINE));
        assert_eq!(target.local_state(), LocalState::Online);
    });
}

/// The chain that goes on without the target.
fn without() -> Chain {
    let states = [(HEAD, PublicState::Serving), (MINE, PublicState::Waiting)];
    let members = states.map(|(target, state)| Member { target, state }).to_vec();
    Chain { members, ..chain(5) }
}
