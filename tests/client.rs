//! What the commands do not reach yet: truncation, open files that lose their name, holes, and the
//! exclusive rights of a capability, through the client library on a real cluster.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod cluster;

use cluster::TestCluster;
use kiln_client::{Client, File, NewFile, OpenMode, Options};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Caller, InodeId};

const MIB: u64 = 1 << 20;

/// Runs `body` with a client of a fresh cluster.
fn with_client(body: impl AsyncFnOnce(&Client)) -> TestCluster {
    let cluster = TestCluster::start(3, 3);
    let dir = ClusterDir::open(cluster.path()).unwrap();
    let managers = vec![dir.mgmtd_address().unwrap()];
    let credential = kiln_config::read_credential(&dir.credential()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env = Env::real();
        let connect = Client::connect(&env, managers, credential, Options::default());
        let client = Box::pin(connect).await.unwrap();
        body(&client).await;
        Box::pin(client.close()).await;
    });
    cluster
}

async fn create(client: &Client, name: &str) -> File {
    let new = NewFile {
        parent: InodeId::ROOT,
        name: name.as_bytes(),
        mode: 0o644,
        exclusive: true,
        open: OpenMode::EDIT,
    };
    client.create(&Caller::root(), &new).await.unwrap()
}

async fn read(file: &File, offset: u64, length: usize) -> Vec<u8> {
    file.read_at(offset, Buffer::zeroed(length)).await.unwrap().to_vec()
}

/// A file beside the bytes that it must have.
struct Checked {
    file: File,
    model: Vec<u8>,
}

impl Checked {
    async fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[offset..end].copy_from_slice(bytes);
        self.file.write_at(offset as u64, Bytes::copy_of(bytes)).await.unwrap();
    }

    async fn set_length(&mut self, length: usize) {
        self.model.resize(length, 0);
        let attr = self.file.set_length(length as u64).await.unwrap();
        assert_eq!(attr.length, length as u64);
    }

    async fn check(&self) {
        let found = read(&self.file, 0, self.model.len() + 100).await;
        assert_eq!(found.len(), self.model.len());
        let first = found.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(first, None, "the first byte that differs");
    }
}

#[test]
fn what_a_truncation_cut_off_never_comes_back() {
    let cluster = with_client(async |client| {
        let mut random = fastrand::Rng::with_seed(11);
        let mut checked = Checked { file: create(client, "cut").await, model: Vec::new() };
        let mut bytes = |size: usize| cluster::tree::bytes(&mut random, size);
        checked.write(0, &bytes(3 * MIB as usize + 777)).await;
        checked.check().await;
        // Across a chunk, then longer again: zeros, not what was there.
        checked.set_length(MIB as usize + 5000).await;
        checked.set_length(3 * MIB as usize).await;
        checked.check().await;
        checked.write(2 * MIB as usize + 123, &bytes(5000)).await;
        checked.check().await;
        let mut steps = fastrand::Rng::with_seed(12);
        for _ in 0..40 {
            let at = steps.usize(..4 * MIB as usize);
            match steps.u8(..3) {
                0 => checked.set_length(at).await,
                _ => checked.write(at, &bytes(steps.usize(1..400_000))).await,
            }
            checked.check().await;
        }
        let length = checked.model.len() as u64;
        assert_eq!(checked.file.close().await.unwrap().length, length);
        // Another open sees the same.
        let attr = client.resolve(&Caller::root(), b"/cut", true).await.unwrap();
        let file = client.open(&Caller::root(), attr.inode, OpenMode::READ).await.unwrap();
        assert!(read(&file, 0, checked.model.len()).await == checked.model);
    });
    cluster.check();
}

#[test]
fn a_huge_sparse_file_costs_nothing_and_reads_as_zeros() {
    with_client(async |client| {
        let file = create(client, "sparse").await;
        let terabyte = 1 << 40;
        file.set_length(terabyte).await.unwrap();
        file.write_at(terabyte - 3, Bytes::copy_of(b"end")).await.unwrap();
        assert_eq!(read(&file, terabyte - 6, 100).await, b"\0\0\0end");
        assert_eq!(read(&file, 77 * MIB - 5, 10).await, [0; 10]);
        assert_eq!(file.set_length(0).await.unwrap().length, 0);
        assert!(read(&file, 0, 10).await.is_empty());
    });
}

#[test]
fn an_open_file_outlives_its_name_and_then_its_chunks_go() {
    let cluster = with_client(async |client| {
        let root = Caller::root();
        let file = create(client, "doomed").await;
        file.write_at(0, Bytes::copy_of(&[9; 2_500_000])).await.unwrap();
        file.sync().await.unwrap();
        client.remove(&root, InodeId::ROOT, b"doomed", false).await.unwrap();
        assert!(client.resolve(&root, b"/doomed", true).await.is_err());
        Env::real().sleep(std::time::Duration::from_secs(2)).await;
        assert_eq!(read(&file, 2_400_000, 200_000).await, vec![9; 100_000]);
        file.close().await.unwrap();
    });
    for _ in 0..100 {
        let checked = cluster.check();
        if checked.contains(" 0 chunks") {
            return;
        }
        cluster.sleep(std::time::Duration::from_millis(100));
    }
    panic!("the chunks stay: {}", cluster.check());
}

#[test]
fn open_files_are_read_and_written_while_the_metadata_server_restarts() {
    let lease = std::time::Duration::from_secs(30);
    let mut cluster = TestCluster::start_with(3, 3, Some(lease));
    let dir = ClusterDir::open(cluster.path()).unwrap();
    let managers = vec![dir.mgmtd_address().unwrap()];
    let credential = kiln_config::read_credential(&dir.credential()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let env = Env::real();
    let (client, file) = runtime.block_on(async {
        let options = Options { io_timeout: Some(lease / 2), ..Options::default() };
        let connect = Client::connect(&env, managers, credential, options);
        let client = Box::pin(connect).await.unwrap();
        let file = create(&client, "open").await;
        file.write_at(0, Bytes::copy_of(b"before")).await.unwrap();
        (client, file)
    });
    // When its capability is to be renewed, and counts for a while.
    cluster.sleep(lease * 2 / 3 - std::time::Duration::from_secs(1));
    cluster.kill("meta");
    cluster.sleep(std::time::Duration::from_secs(2));
    runtime.block_on(async {
        file.write_at(0, Bytes::copy_of(b"during")).await.unwrap();
        assert_eq!(read(&file, 0, 6).await, b"during");
    });
    cluster.restart("meta");
    runtime.block_on(async {
        file.close().await.unwrap();
        Box::pin(client.close()).await;
    });
    assert_eq!(cluster.ok(&["cat", "kiln:/open"]), "during");
}
