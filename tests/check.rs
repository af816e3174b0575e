//! `kiln admin check` finds what is lost, damaged, different or left over, tells what it is about, and finds
//! nothing while a healthy cluster is in use.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use async_trait::async_trait;
use cluster::mount::{possible, wait_for};
use cluster::program::{installed, run, shell};
use cluster::{TestCluster, tree};
use kiln_client::{ChunkClient, Client, Grant, Granted, Options, Place};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_memory::Bytes;
use kiln_net::{Call, ConnectionPool, Identity, PoolOptions, TcpTransport};
use kiln_types::{
    Attr, Caller, ChainId, ChunkId, ClientId, Deadline, InodeId, Result, TreeId, TruncateEpoch,
};
use kiln_wire::{Body, Change, Forward, List, Listed, Name, Operation, Update};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;
const WITHIN: Duration = Duration::from_secs(20);

/// Acts with the servers' key: what no client may do.
struct Saboteur {
    env: Env,
    client: Client,
    connections: ConnectionPool,
    chunks: ChunkClient,
    _routing: tokio::sync::watch::Sender<Arc<kiln_types::RoutingInfo>>,
}

/// A server's right: to write under the first epoch, and to cut whatever is there.
struct Server(TruncateEpoch);

const FIRST: Server = Server(TruncateEpoch(0));
const CUT: Server = Server(TruncateEpoch(1 << 20));

#[async_trait]
impl Grant for Server {
    async fn current(&self, _index: u64) -> Result<Granted> {
        Ok(Granted { capability: [].into(), epoch: self.0, floor: TruncateEpoch(0) })
    }

    async fn renew(&self) -> Result<()> {
        Ok(())
    }
}

impl Saboteur {
    async fn new(cluster: &TestCluster) -> Self {
        let (env, dir) = (Env::real(), ClusterDir::open(cluster.path()).unwrap());
        let managers = vec![dir.mgmtd_address().unwrap()];
        let credential = kiln_config::read_credential(&dir.credential()).unwrap();
        let connect = Client::connect(&env, managers, credential, Options::default());
        let client = Box::pin(connect).await.unwrap();
        let key = kiln_config::read_server_key(&dir.server_key()).unwrap();
        let connections = || {
            let transport = TcpTransport::new(Identity::Server(key.clone()), env.clone());
            ConnectionPool::new(Arc::new(transport), PoolOptions::default(), env.clone())
        };
        let (_routing, routing) = tokio::sync::watch::channel(client.routing());
        let id = ClientId(env.random_u128());
        let chunks = ChunkClient::new(env.clone(), id, connections(), routing);
        Self { connections: connections(), chunks, client, env, _routing }
    }

    fn deadline(&self) -> Deadline {
        self.env.deadline_after(WITHIN)
    }

    async fn attr(&self, path: &str) -> Attr {
        self.client.resolve(&Caller::root(), path.as_bytes(), true).await.unwrap()
    }

    fn place(&self, attr: &Attr, index: u64) -> Place {
        let layout = attr.layout.unwrap();
        let stripe = self.client.routing().stripe(&layout).unwrap();
        Place {
            chain: stripe[(index % stripe.len() as u64) as usize],
            chunk: ChunkId::file(TreeId::MAIN, attr.inode, index),
            index,
            chunk_bytes: layout.chunk_bytes,
        }
    }

    /// Removes a chunk from all replicas.
    async fn remove(&self, place: Place) {
        let change = self.chunks.change(&CUT, place, Change::Remove, None, self.deadline());
        change.await.unwrap();
    }

    async fn write(&self, place: Place, bytes: &[u8]) {
        let bytes = Bytes::copy_of(bytes);
        self.chunks.write(&FIRST, place, 0, bytes, self.deadline()).await.unwrap();
    }

    async fn listed(&self, chain: ChainId, chunk: ChunkId) -> Listed {
        let list = List { chain, from: chunk, to: ChunkId::kv_block(0, 0, 0), limit: 1 };
        let listing = self.chunks.list(&list, self.deadline()).await.unwrap();
        listing.chunks[0]
    }

    /// Removes a chunk from the last replica of its chain, as if the one before it had said so.
    async fn remove_at_tail(&self, place: Place) {
        let routing = self.client.routing();
        let chain = &routing.chains[&place.chain];
        let serving: Vec<_> = chain.serving().collect();
        let (from, tail) = (serving[serving.len() - 2], serving[serving.len() - 1]);
        let listed = self.listed(place.chain, place.chunk).await;
        let mut version = listed.version;
        version.counter += 1;
        let forward = Forward {
            name: Name { chain: chain.id, chain_version: chain.version, chunk: place.chunk },
            from,
            version,
            previous: listed.version,
            update: Update {
                change: Change::Remove,
                epoch: listed.epoch.next(),
                floor: TruncateEpoch(0),
                chunk_bytes: place.chunk_bytes,
                retry: None,
            },
        };
        let call = Call::new(Operation::Forward as u16, forward.encode(), self.deadline());
        let address = &routing.node_of(tail).unwrap().address;
        self.connections.call(address, call).await.unwrap();
    }
}

/// Runs `body` with somebody who knows the servers' key.
fn sabotage<T>(cluster: &TestCluster, body: impl AsyncFnOnce(&Saboteur) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let saboteur = Box::pin(Saboteur::new(cluster)).await;
        let output = body(&saboteur).await;
        Box::pin(saboteur.client.close()).await;
        output
    })
}

/// A cluster with a file of 3 MiB and a bit at `path`.
fn with_file(path: &str) -> (TestCluster, Vec<u8>) {
    let (cluster, local) = (TestCluster::start(3, 3), tempfile::tempdir().unwrap());
    let bytes = tree::bytes(&mut fastrand::Rng::with_seed(5), 3 * MIB + 777);
    let file = local.path().join("file");
    fs::write(&file, &bytes).unwrap();
    cluster.ok(&["mkdir", "kiln:/dir"]);
    cluster.ok(&["cp", file.to_str().unwrap(), &format!("kiln:{path}")]);
    cluster.check();
    (cluster, bytes)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// What a check finds, which has to be something.
fn findings(cluster: &TestCluster, arguments: &[&str]) -> Vec<Value> {
    let output = cluster.run(&[&["admin", "check", "--json"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(&output), 1, "{said}\n{}", cluster.logs());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report["what_to_do"].as_array().unwrap().is_empty(), "{report}");
    report["findings"].as_array().unwrap().clone()
}

#[test]
fn a_lost_chunk_is_told_with_its_file_and_bytes() {
    let (cluster, _) = with_file("/dir/whole");
    sabotage(&cluster, async |saboteur| {
        let attr = saboteur.attr("/dir/whole").await;
        assert_eq!(attr.dense_end, attr.length, "all of it was acknowledged");
        for index in [1, 2] {
            saboteur.remove(saboteur.place(&attr, index)).await;
        }
    });
    let found = findings(&cluster, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    let told = |key: &str| found[0][key].clone();
    assert_eq!((told("kind"), told("path")), ("loss".into(), "/dir/whole".into()));
    assert_eq!((told("offset"), told("length")), (MIB.into(), (2 * MIB).into()));
    let output = cluster.run(&["admin", "check"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dir/whole, bytes 1048576 to 3145727"), "{text}");
    assert!(text.contains("What to do:\n- loss: "), "{text}");
    refuse_guests(&cluster);
    cluster.ok(&["rm", "kiln:/dir/whole"]);
    cluster.check();
    // Servers that do not answer are no verdict.
    let mut cluster = cluster;
    cluster.down();
    let output = cluster.run(&["admin", "check"]);
    assert_eq!(code(&output), 2, "{}", String::from_utf8_lossy(&output.stderr));
}

/// Who is no operator checks nothing.
fn refuse_guests(cluster: &TestCluster) {
    let local = tempfile::tempdir().unwrap();
    let guest = local.path().join("guest.toml").to_str().unwrap().to_string();
    cluster.ok(&["admin", "credential", "create", "guest", "--output", &guest]);
    let manager = ClusterDir::open(cluster.path()).unwrap().mgmtd_address().unwrap();
    for more in [&[][..], &["--read"], &["--remove-leaks"]] {
        let mut command = cluster.command(["admin", "check", "--cluster", &manager]);
        let output = command.env_remove("KILN_DIR").args(["--credential", &guest]).args(more);
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), 2, "{said}");
        assert!(said.contains("does not allow operator commands"), "{said}");
    }
}

#[test]
fn replicas_that_differ_are_told_with_their_file() {
    let (cluster, _) = with_file("/dir/differs");
    sabotage(&cluster, async |saboteur| {
        let attr = saboteur.attr("/dir/differs").await;
        saboteur.remove_at_tail(saboteur.place(&attr, 2)).await;
    });
    let found = findings(&cluster, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0]["kind"], &found[0]["path"]),
        (&"difference".into(), &"/dir/differs".into())
    );
    assert!(found[0]["why"].as_str().unwrap().contains("has none"), "{found:?}");
}

#[test]
fn leaks_are_found_and_removed_and_what_is_newer_than_the_metadata_is_left_alone() {
    let (cluster, _) = with_file("/dir/gone");
    let attr = sabotage(&cluster, async |saboteur| saboteur.attr("/dir/gone").await);
    cluster.ok(&["rm", "kiln:/dir/gone"]);
    let is_empty = || cluster.check().contains(" 0 chunks").then_some(());
    assert!(wait_for(Duration::from_secs(60), is_empty).is_some(), "{}", cluster.check());
    // An id that the metadata server has taken and not used, and one that it has not taken.
    let attr = Attr { inode: InodeId(attr.inode.0 + 500), ..attr };
    let newer = Attr { inode: InodeId(1 << 40), ..attr.clone() };
    sabotage(&cluster, async |saboteur| {
        saboteur.write(saboteur.place(&attr, 7), &[3; 5000]).await;
        saboteur.write(saboteur.place(&newer, 0), &[4; 6000]).await;
    });
    let kinds = |found: &[Value]| found.iter().map(|f| f["kind"].clone()).collect::<Vec<_>>();
    let found = findings(&cluster, &[]);
    assert_eq!(kinds(&found), ["newer", "leak"], "{found:?}");
    assert!(found[1]["why"].as_str().unwrap().contains("1 chunk, 5000 bytes"), "{found:?}");
    let found = findings(&cluster, &["--remove-leaks"]);
    assert_eq!(kinds(&found), ["newer"], "the leak is gone: {found:?}");
    assert_eq!(kinds(&findings(&cluster, &[])), ["newer"]);
    sabotage(&cluster, async |saboteur| saboteur.remove(saboteur.place(&newer, 0)).await);
    assert!(cluster.check().contains(" 0 chunks"), "what was freed is gone everywhere");
}

/// Changes a byte of `block` where a server's disk has it.
fn damage(server: &Path, block: &[u8]) {
    for path in tree::paths(server).iter().map(|path| server.join(path)) {
        let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(&path) else { continue };
        let length = file.metadata().unwrap().len();
        for at in (0..length).step_by(MIB) {
            let mut bytes = vec![0; MIB.min((length - at) as usize)];
            file.read_exact_at(&mut bytes, at).unwrap();
            let found = bytes.chunks(4096).position(|candidate| candidate == block);
            if let Some(found) = found {
                file.write_all_at(&[!block[9]], at + found as u64 * 4096 + 9).unwrap();
                return file.sync_all().unwrap();
            }
        }
    }
    panic!("the block is nowhere in {}", server.display());
}

#[test]
fn a_damaged_block_is_found_by_reading_and_repaired_from_another_replica() {
    let (mut cluster, bytes) = with_file("/dir/damaged");
    cluster.down();
    let offset = 2 * MIB + 5 * 4096;
    damage(&cluster.path().join("storage-2/disk-1"), &bytes[offset..offset + 4096]);
    cluster.up();
    cluster.check();
    let found = findings(&cluster, &["--read"]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["kind"], &found[0]["path"]), (&"damage".into(), &"/dir/damaged".into()));
    assert_eq!(found[0]["offset"], offset);
    assert!(found[0]["target"].is_u64(), "{found:?}");
    for _ in 0..6 {
        assert_eq!(cluster.command(["cat", "kiln:/dir/damaged"]).output().unwrap().stdout, bytes);
    }
    let repaired = (0..50).any(|_| {
        cluster.sleep(Duration::from_millis(200));
        code(&cluster.run(&["admin", "check", "--read"])) == 0
    });
    assert!(repaired, "{}", cluster.logs());
}

/// Files of all kinds, made as programs make them.
const KINDS: &str = r#"
head -c 3000000 /dev/urandom > whole
cp whole cut && truncate -s 1200000 cut
cp whole longer && truncate -s 900000 longer && truncate -s 5000000 longer
truncate -s 9000000 sparse && dd if=whole of=sparse bs=65536 seek=60 count=30 conv=notrunc status=none
for i in $(seq 300); do echo "line $i" >> appended; done
echo x > again && : > again && cat whole >> again
"#;

const AT_RANDOM: &str = r#"python3 -c '
import mmap, os
file = open("mapped", "w+b")
file.truncate(2500000)
view = mmap.mmap(file.fileno(), 0)
view[0:2000000] = os.urandom(2000000)
view.flush()
view.close()
file = os.open("backwards", os.O_CREAT | os.O_WRONLY)
for at in reversed(range(25)):
    os.pwrite(file, os.urandom(100000), at * 100000)
'"#;

#[test]
fn holes_are_no_losses_whatever_programs_do() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    run(mount.path(), KINDS);
    let has_python = installed(&["python3"]);
    if has_python {
        run(mount.path(), AT_RANDOM);
    }
    mount.unmount();
    let said = cluster.check();
    assert!(said.contains("no problems"), "{said}");
    sabotage(&cluster, async |saboteur| {
        // As far as each was written from its start on, at least: the last page of a map is whole.
        let ends = [("/whole", 3_000_000), ("/cut", 1_200_000), ("/longer", 900_000)];
        let more = [("/sparse", 0), ("/again", 3_000_000)];
        let python = [("/mapped", 2_000_000), ("/backwards", 2_500_000)];
        let python = python.into_iter().filter(|_| has_python);
        for (path, end) in ends.into_iter().chain(more).chain(python) {
            assert!(saboteur.attr(path).await.dense_end >= end, "{path}");
        }
        let attr = saboteur.attr("/appended").await;
        assert_eq!(attr.dense_end, attr.length, "appended");
        saboteur.remove(saboteur.place(&saboteur.attr("/longer").await, 0)).await;
        // Nobody ever wrote there.
        saboteur.remove(saboteur.place(&saboteur.attr("/sparse").await, 0)).await;
    });
    let found = findings(&cluster, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["path"], "/longer");
    assert_eq!(found[0]["length"], 900_000);
}

/// Everything changes all the time.
const BUSY: &str = r#"
head -c 2500000 /dev/urandom > seed
end=$(( $(date +%s) + 25 ))
while [ "$(date +%s)" -lt "$end" ]; do
  for i in 1 2 3 4 5 6; do cp seed "f$i"; done
  truncate -s 1300000 f1; cat seed >> f1; : > f2; cat seed >> f2
  mv f3 f4; rm f5; dd if=seed of=f6 bs=300000 seek=3 count=4 conv=notrunc status=none
  mkdir -p d; for i in $(seq 40); do echo "$i" > "d/$i"; done; rm -r d
done
"#;

#[test]
fn nothing_is_found_while_a_healthy_cluster_is_in_use() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    let mut busy = shell(mount.path(), BUSY).spawn().unwrap();
    let mut checks = 0;
    while busy.try_wait().unwrap().is_none() {
        let output = cluster.run(&["admin", "check", "--read"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(code(&output), 0, "{said}{}", String::from_utf8_lossy(&output.stderr));
        checks += 1;
    }
    assert!(busy.wait().unwrap().success());
    assert!(checks > 1, "{checks} checks");
    mount.unmount();
    cluster.check();
}
