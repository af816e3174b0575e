//! What the commands do not reach yet: truncation, open files that lose their name, holes, and the
//! exclusive rights of a capability, through the client library on a real cluster.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod cluster;

use cluster::TestCluster;
use kiln_client::{Client, CloseOne, File, NewFile, NewOne, OpenMode, Options, SetAttr, SetTime};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Account, Attr, Caller, Code, InodeId, QuotaLimits, Result, Timestamp};

const MIB: u64 = 1 << 20;

/// Runs `body` with a client of a fresh cluster.
fn with_client(body: impl AsyncFnOnce(&Client)) -> TestCluster {
    with_clients(async |[client, _]| body(client).await)
}

/// Runs `body` with two clients of a fresh cluster.
fn with_clients(body: impl AsyncFnOnce([&Client; 2])) -> TestCluster {
    let cluster = TestCluster::start(3, 3);
    let dir = ClusterDir::open(cluster.path()).unwrap();
    let managers = vec![dir.mgmtd_address().unwrap()];
    let credential = kiln_config::read_credential(&dir.credential()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env = Env::real();
        let connect = || {
            let (managers, credential) = (managers.clone(), credential.clone());
            Box::pin(Client::connect(&env, managers, credential, Options::default()))
        };
        let (one, other) = (connect().await.unwrap(), connect().await.unwrap());
        body([&one, &other]).await;
        Box::pin(one.close()).await;
        Box::pin(other.close()).await;
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
fn a_file_that_is_written_for_long_is_seen_to_grow() {
    with_clients(async |[client, other]| {
        let root = Caller::root();
        let mut random = fastrand::Rng::with_seed(21);
        let mut writer = Checked { file: create(client, "log").await, model: Vec::new() };
        let inode = writer.file.inode();
        let reader = other.open(&root, inode, OpenMode::READ).await.unwrap();
        let mut before = reader.attr();
        for _ in 0..3 {
            let bytes = cluster::tree::bytes(&mut random, 1_300_000);
            let end = writer.model.len();
            writer.write(end, &bytes).await;
            let length = writer.model.len() as u64;
            let mut attr = before.clone();
            for _ in 0..200 {
                attr = other.get_attr(&root, inode).await.unwrap();
                if attr.length == length {
                    break;
                }
                Env::real().sleep(std::time::Duration::from_millis(100)).await;
            }
            assert_eq!(attr.length, length, "nobody closed it, nobody synced it");
            assert!(attr.mtime > before.mtime);
            reader.take_attr(attr.clone());
            assert!(read(&reader, 0, writer.model.len() + 1).await == writer.model);
            before = attr;
        }
        // Everything is told: a close has nothing to add, and times that others set stay.
        while writer.file.needs_sync() {
            Env::real().sleep(std::time::Duration::from_millis(10)).await;
        }
        let time = Timestamp(77);
        let change = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
        other.set_attr(&root, inode, change).await.unwrap();
        writer.file.close().await.unwrap();
        assert_eq!(other.get_attr(&root, inode).await.unwrap().mtime, time);
    });
}

fn codes<T>(results: &[Result<T>]) -> Vec<Option<Code>> {
    results.iter().map(|result| result.as_ref().err().map(|error| error.code())).collect()
}

#[test]
fn many_files_are_made_closed_and_looked_at_in_a_few_calls() {
    let cluster = with_client(async |client| {
        let root = Caller::root();
        let directory = client.make_dir(&root, InodeId::ROOT, b"many", 0o755).await.unwrap().inode;
        let names: Vec<_> = (0..600).map(|number| format!("n{number}").into_bytes()).collect();
        let long = [b'x'; 300];
        let mut new: Vec<_> =
            names.iter().map(|name| NewOne { parent: directory, name, mode: 0o600 }).collect();
        new.insert(300, NewOne { name: b"n7", ..new[0] });
        new.insert(10, NewOne { name: &long, ..new[0] });
        let mut files = client.create_many(&root, &new, OpenMode::EDIT, false).await;
        assert_eq!(codes(&[files.remove(10)]), [Some(Code::NameTooLong)]);
        assert_eq!(codes(&[files.remove(300)]), [Some(Code::Exists)]);
        let files: Vec<_> = files.into_iter().map(Result::unwrap).collect();
        for (file, name) in files.iter().zip(&names) {
            file.write_at(0, Bytes::copy_of(name)).await.unwrap();
        }
        let set = SetAttr {
            mode: Some(0o640),
            mtime: Some(SetTime::At(Timestamp(5))),
            ..SetAttr::default()
        };
        let close = |file| CloseOne { file, set, name: None };
        let closing: Vec<_> = files.iter().map(close).collect();
        let twice = client.close_many(&root, &[close(&files[0]), close(&files[0])]).await;
        assert_eq!(codes(&twice), [Some(Code::Invalid); 2]);
        let closed = client.close_many(&root, &closing).await;
        let closed: Vec<Attr> = closed.into_iter().map(Result::unwrap).collect();
        let again = client.close_many(&root, &closing[..1]).await;
        assert_eq!(codes(&again), [Some(Code::StaleHandle)]);
        let mut all: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        all.push(b"nothing");
        let mut found = client.lookup_many(&root, directory, &all).await;
        assert_eq!(codes(&found[600..]), [Some(Code::NotFound)]);
        found.truncate(600);
        let inodes: Vec<_> = closed.iter().map(|attr| attr.inode).collect();
        let same = client.get_attrs(&root, &inodes).await;
        for (((attr, found), same), name) in closed.iter().zip(found).zip(same).zip(&names) {
            assert_eq!(
                (attr.length, attr.mode, attr.mtime),
                (name.len() as u64, 0o640, Timestamp(5))
            );
            assert_eq!((attr, attr), (&found.unwrap(), &same.unwrap()));
            let path = [b"/many/", name.as_slice()].concat();
            let file = client.open_path(&root, &path, OpenMode::READ).await.unwrap();
            assert_eq!(&read(&file, 0, 100).await, name);
        }
        let opened = client.open_path(&root, b"/many/nothing", OpenMode::READ).await;
        assert_eq!(codes(&[opened]), [Some(Code::NotFound)]);
    });
    cluster.check();
}

#[test]
fn of_many_files_as_many_are_made_as_a_quota_allows() {
    with_client(async |client| {
        let root = Caller::root();
        let directory = client.make_dir(&root, InodeId::ROOT, b"few", 0o755).await.unwrap().inode;
        let limits = QuotaLimits { bytes: None, inodes: Some(8) };
        client.set_quota(&root, Account::Directory(directory), limits).await.unwrap();
        let names: Vec<_> = (0..20).map(|number| format!("n{number}").into_bytes()).collect();
        let new: Vec<_> =
            names.iter().map(|name| NewOne { parent: directory, name, mode: 0o600 }).collect();
        let made = client.create_many(&root, &new, OpenMode::EDIT, false).await;
        // The directory counts, too.
        let expected = (0..20).map(|at| (at >= 7).then_some(Code::QuotaExceeded));
        assert_eq!(codes(&made), expected.collect::<Vec<_>>());
    });
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
