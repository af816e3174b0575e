//! Servers and mounts die during writes: programs see a pause, and what was fsynced is there and intact.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use cluster::mount::{Mount, ended, possible, wait_for};
use cluster::program::{installed, run, shell};
use rustix::io::Errno;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const RECORD: usize = 3000;
const MINUTE: Duration = Duration::from_secs(60);

/// One that nobody else would write: its number, what follows from it, and a checksum.
fn record(writer: u64, number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    let mut random = fastrand::Rng::with_seed(writer << 32 | number);
    bytes.extend(cluster::tree::bytes(&mut random, RECORD - 16));
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    bytes.extend(hasher.finish().to_le_bytes());
    bytes
}

/// A process that appends records to a log, each fsynced, and beside it writes small files and gives them
/// their names. (Not a thread: the servers that a test starts would inherit its open files, and close them,
/// which waits for the servers.)
struct Writer {
    dir: PathBuf,
    number: u64,
    process: Child,
    /// Where it tells how far it is, and what ended it.
    told: tempfile::TempDir,
}

impl Writer {
    fn start(dir: &Path, number: u64) -> Self {
        let dir = dir.join(format!("writer-{number}"));
        fs::create_dir(&dir).unwrap();
        let told = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "records_are_written_when_another_test_asks"]);
        command.env("WRITER_DIR", &dir).env("WRITER_NUMBER", number.to_string());
        command.env("WRITER_TOLD", told.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { dir, number, process: command.spawn().unwrap(), told }
    }

    /// How many records it has synced.
    fn synced(&self) -> u64 {
        let told = fs::read(self.told.path().join("synced")).unwrap_or_default();
        told.try_into().map_or(0, u64::from_le_bytes)
    }

    /// Waits until it has synced that many more records.
    fn wait_for(&mut self, more: u64) {
        let from = self.synced();
        let done = wait_for(2 * MINUTE, || {
            let ended = self.process.try_wait().unwrap().is_some();
            (self.synced() >= from + more || ended).then_some(())
        });
        assert!(done.is_some(), "writer {} does not go on", self.number);
    }

    /// The errno that ended it, when it was not this.
    fn finish(&mut self) -> Option<i32> {
        fs::write(self.told.path().join("stop"), "").unwrap();
        let status = ended(&mut self.process, 3 * MINUTE);
        assert!(
            status.is_some_and(|status| status.success()),
            "writer {}: {status:?}",
            self.number
        );
        fs::read_to_string(self.told.path().join("error")).ok().map(|code| code.parse().unwrap())
    }

    /// Everything that it has synced is there.
    fn check(&self) {
        let synced = self.synced();
        let log = fs::read(self.dir.join("log")).unwrap();
        let there = log.len() / RECORD;
        assert!(there as u64 >= synced, "{synced} records were synced, {there} are there");
        for number in 0..synced {
            let at = number as usize * RECORD;
            let same = log[at..at + RECORD] == record(self.number, number);
            assert!(same, "record {number} of {synced} of writer {}", self.number);
            let file = fs::read(self.dir.join(format!("file-{number}"))).unwrap();
            assert!(file == record(self.number + 100, number), "file {number} of {synced}");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

/// The body of a [`Writer`]'s process.
#[test]
fn records_are_written_when_another_test_asks() {
    let Some(dir) = std::env::var_os("WRITER_DIR") else { return };
    let number = std::env::var("WRITER_NUMBER").unwrap().parse().unwrap();
    let told = PathBuf::from(std::env::var_os("WRITER_TOLD").unwrap());
    if let Err(error) = write(Path::new(&dir), number, &told) {
        let _ = fs::write(told.join("error"), error.raw_os_error().unwrap_or(0).to_string());
    }
}

fn write(dir: &Path, writer: u64, told: &Path) -> io::Result<()> {
    let mut log = File::options().create_new(true).append(true).open(dir.join("log"))?;
    let progress = File::create(told.join("synced"))?;
    for number in 0.. {
        if told.join("stop").exists() || !told.exists() {
            break;
        }
        log.write_all(&record(writer, number))?;
        log.sync_all()?;
        let new = dir.join("new");
        let mut file = File::create(&new)?;
        file.write_all(&record(writer + 100, number))?;
        file.sync_all()?;
        fs::rename(&new, dir.join(format!("file-{number}")))?;
        progress.write_all_at(&(number + 1).to_le_bytes(), 0)?;
    }
    Ok(())
}

fn writers(mount: &Mount) -> Vec<Writer> {
    let dir = mount.make_dir("work");
    (1..=3).map(|number| Writer::start(&dir, number)).collect()
}

/// Ends the writers, which must not have seen an error, and checks what they wrote, also after a mount
/// that knows nothing of it.
fn finish(writers: &mut [Writer], mount: &mut Mount) {
    for writer in &mut *writers {
        let error = writer.finish();
        assert_eq!(error, None, "writer {}\n{}", writer.number, mount.said());
    }
    writers.iter().for_each(Writer::check);
    mount.unmount();
    mount.mount_again();
    writers.iter().for_each(Writer::check);
}

/// Replicas agree; when everything is removed, no chunk is left.
fn check_for_leaks(cluster: &TestCluster, mount: &Mount) {
    cluster.check();
    fs::remove_dir_all(mount.path().join("work")).unwrap();
    let empty = || cluster.check().contains(" 0 chunks").then_some(());
    assert!(wait_for(MINUTE, empty).is_some(), "chunks stay: {}", cluster.check());
}

#[test]
fn kill_9_of_every_server_at_once_is_a_pause() {
    if !possible() {
        return;
    }
    let mut cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    let mut writers = writers(&mount);
    writers.iter_mut().for_each(|writer| writer.wait_for(20));
    for _ in 0..2 {
        cluster.kill_all();
        cluster.up();
        writers.iter_mut().for_each(|writer| writer.wait_for(20));
    }
    finish(&mut writers, &mut mount);
    check_for_leaks(&cluster, &mount);
}

#[test]
fn kill_9_of_one_storage_server_is_a_pause() {
    if !possible() || !installed(&["sqlite3", "seq"]) {
        return;
    }
    let mut cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    let mut writers = writers(&mount);
    let dir = mount.path().join("work");
    run(&dir, "sqlite3 db 'CREATE TABLE t(n INTEGER PRIMARY KEY, text)'");
    let transaction = "BEGIN; INSERT INTO t(text) VALUES (hex(randomblob(3000))); COMMIT;";
    let script = format!(
        "i=0; while [ ! -e stop ]; do sqlite3 db '{transaction}'; i=$((i+1)); done; echo $i > count"
    );
    let mut database = shell(&dir, &script).spawn().unwrap();
    writers.iter_mut().for_each(|writer| writer.wait_for(10));
    // It is away for longer than its lease.
    cluster.kill("storage-2");
    writers.iter_mut().for_each(|writer| writer.wait_for(20));
    cluster.restart("storage-2");
    writers.iter_mut().for_each(|writer| writer.wait_for(10));
    fs::write(dir.join("stop"), "").unwrap();
    let status = ended(&mut database, 2 * MINUTE);
    assert!(status.is_some_and(|status| status.success()), "sqlite3: {status:?}");
    finish(&mut writers, &mut mount);
    let count = fs::read_to_string(dir.join("count")).unwrap();
    let asked = run(&dir, "sqlite3 db 'PRAGMA integrity_check; SELECT count(*) FROM t'");
    assert_eq!(asked, format!("ok\n{count}"));
}

#[test]
fn kill_9_of_the_mount_hangs_nobody_and_the_next_one_takes_over() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start_with(3, 3, Some(Duration::from_secs(4)));
    let mut mount = cluster.mount();
    let mut writers = writers(&mount);
    writers.iter_mut().for_each(|writer| writer.wait_for(30));
    let open = File::open(writers[0].dir.join("log")).unwrap();
    mount.kill();
    let gone = |code: Option<i32>| {
        let codes = [Errno::NOTCONN, Errno::CONNABORTED].map(|code| Some(code.raw_os_error()));
        assert!(codes.contains(&code), "{code:?}");
    };
    writers.iter_mut().for_each(|writer| gone(writer.finish()));
    gone(open.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error());
    gone(fs::metadata(mount.path().join("another name")).unwrap_err().raw_os_error());
    mount.mount_again();
    writers.iter().for_each(Writer::check);
    // Who had a file open still has the mount of then.
    gone(open.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error());
    drop(open);
    fs::write(mount.path().join("work/after"), "after").unwrap();
    check_for_leaks(&cluster, &mount);
}

#[test]
fn a_cluster_that_stays_away_is_an_error_in_time_and_none_when_it_is_back() {
    if !possible() {
        return;
    }
    let mut cluster = TestCluster::start(1, 1);
    let mount = cluster.mount_with(&["--io-timeout", "3s"]);
    let dir = mount.make_dir("work");
    fs::write(dir.join("before"), "before").unwrap();
    let mut open = File::create(dir.join("open")).unwrap();
    cluster.kill_all();
    let failed = |result: io::Result<()>| {
        let code = result.unwrap_err().raw_os_error();
        assert_eq!(code, Some(Errno::IO.raw_os_error()));
    };
    failed(fs::write(dir.join("new"), ""));
    failed(open.write_all(b"lost").and_then(|()| open.sync_all()));
    failed(fs::create_dir(dir.join("dir")));
    // Else the servers would inherit it, and wait for themselves.
    drop(open);
    cluster.up();
    let back = wait_for(MINUTE, || fs::write(dir.join("back"), "back").ok());
    assert!(back.is_some(), "it does not come back\n{}", mount.said());
    assert_eq!(fs::read(dir.join("before")).unwrap(), b"before");
    assert_eq!(fs::read(dir.join("back")).unwrap(), b"back");
    let mut again = File::create(dir.join("open")).unwrap();
    again.write_all(b"again").unwrap();
    again.sync_all().unwrap();
    assert_eq!(fs::read(dir.join("open")).unwrap(), b"again");
}

#[test]
fn a_lost_clusters_mount_goes_away_unless_somebody_uses_it() {
    if !possible() {
        return;
    }
    let mut cluster = TestCluster::start(1, 1);
    let mut mount = cluster.mount();
    fs::write(mount.path().join("f"), "there").unwrap();
    let mut user = Command::new("sleep").arg("300").current_dir(mount.path()).spawn().unwrap();
    cluster.kill_all();
    let path = mount.path().to_str().unwrap();
    let refused = cluster.run(&["umount", path]);
    user.kill().unwrap();
    user.wait().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("sleep (pid"), "{said}");
    mount.unmount();
}
