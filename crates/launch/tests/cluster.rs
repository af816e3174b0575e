//! Directories, starts, deaths, restarts and stops, with a script in the binary's place.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::Env;
use kiln_launch::{Cluster, ClusterDir, Event, Lock, State, Stop, Wishes};
use kiln_types::{Code, Result};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Events = Arc<Mutex<Vec<String>>>;

fn run<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

fn two_servers() -> Wishes {
    Wishes { storage: Some(2), ..Wishes::default() }
}

async fn start(path: &Path) -> (Result<Cluster>, Events) {
    let env = Env::real();
    let (dir, lock) = ClusterDir::take(path, &two_servers(), &env).await.unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-kiln.sh");
    let events = Events::default();
    let log = Arc::clone(&events);
    let report = move |event: Event| log.lock().unwrap().push(event.to_string());
    (Cluster::start(dir, lock, &program, env, report).await, events)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        Env::real().sleep(Duration::from_millis(10)).await;
    }
    panic!("waited too long: {what}");
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_directory_is_made_once_and_keeps_its_shape_and_secrets() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("new/cluster");
    run(async {
        let env = Env::real();
        let (dir, lock) = ClusterDir::take(&path, &two_servers(), &env).await.unwrap();
        assert_eq!(
            (mode(&path), mode(&dir.server_key()), mode(&dir.credential())),
            (0o700, 0o600, 0o600)
        );
        let key = kiln_config::read_server_key(&dir.server_key()).unwrap();
        let credential = kiln_config::read_credential(&dir.credential()).unwrap();
        assert_eq!(credential, kiln_wire::credential(&key, "admin").unwrap());
        assert_eq!(Lock::holder(&path).unwrap(), Some(std::process::id()));

        let busy = ClusterDir::take(&path, &Wishes::default(), &env).await.unwrap_err();
        assert_eq!(busy.code(), Code::Busy);
        assert!(busy.message().contains(&format!("pid {}", std::process::id())), "{busy}");
        drop(lock);
        assert_eq!(Lock::holder(&path).unwrap(), None);

        let (again, _lock) = ClusterDir::take(&path, &Wishes::default(), &env).await.unwrap();
        assert_eq!((again.id(), again.shape()), (dir.id(), dir.shape()));
        drop(_lock);
        let wrong = Wishes { storage: Some(3), ..Wishes::default() };
        let error = ClusterDir::take(&path, &wrong, &env).await.unwrap_err();
        assert!(error.message().contains("2 storage servers"), "{error}");
    });
}

#[test]
fn what_the_services_are_told_is_valid_wherever_the_directory_is() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("c");
    let moved = temporary.path().join("moved");
    run(async { drop(ClusterDir::take(&path, &two_servers(), &Env::real()).await.unwrap()) });
    fs::rename(&path, &moved).unwrap();
    let dir = ClusterDir::open(&moved).unwrap();
    let services = dir.services();
    let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["mgmtd", "meta", "storage-1", "storage-2"]);
    let config = dir.config(&services[0]);
    let mgmtd: kiln_config::MgmtdConfig = kiln_config::load(Some(&config), [], &[]).unwrap();
    assert_eq!((mgmtd.bootstrap.storage_servers, mgmtd.bootstrap.replicas), (2, 2));
    assert!(kiln_config::read_server_key(&mgmtd.node.server_key).is_ok());
    let config = dir.config(&services[3]);
    let storage: kiln_config::StorageConfig = kiln_config::load(Some(&config), [], &[]).unwrap();
    assert_eq!(storage.node.id.0, 102);
    assert_eq!(storage.disks[0].path, moved.join("storage-2/disk-1"));
    let config = dir.config(&services[1]);
    kiln_config::load::<kiln_config::MetaConfig>(Some(&config), [], &[]).unwrap();
}

#[test]
fn what_is_not_a_cluster_of_this_layout_is_refused_and_not_touched() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path();
    let take = || run(ClusterDir::take(path, &Wishes::default(), &Env::real()));
    fs::write(path.join("thesis.tex"), "mine").unwrap();
    let error = take().unwrap_err();
    assert_eq!(error.code(), Code::Exists);
    assert!(error.message().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(path).unwrap().count(), 1);
    assert_eq!(ClusterDir::open(path).unwrap_err().code(), Code::NotFound);
    fs::remove_file(path.join("thesis.tex")).unwrap();

    // Interrupted while it was made: it is made again.
    fs::write(path.join(".new"), "").unwrap();
    fs::write(path.join("server.key"), "half").unwrap();
    let (dir, lock) = take().unwrap();
    drop(lock);
    assert!(!path.join(".new").exists());

    let file = path.join("cluster.toml");
    let good = fs::read_to_string(&file).unwrap();
    let code_of = |text: String| {
        fs::write(&file, text).unwrap();
        ClusterDir::open(path).unwrap_err()
    };
    let newer = code_of(good.replace("version = 1", "version = 2"));
    assert_eq!(newer.code(), Code::Unsupported, "{newer}");
    assert_eq!(code_of(good.replace("kiln cluster", "other")).code(), Code::Invalid);
    let unknown = code_of(good.replace("storage = ", "storages = "));
    assert!(unknown.message().contains("cluster.toml:"), "{unknown}");
    let other = good.replace(&dir.id().to_string(), &"0".repeat(32));
    assert_eq!(code_of(other).code(), Code::WrongCluster);
}

#[test]
fn servers_start_and_stop_in_order_and_come_back_at_their_addresses() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path();
    run(async {
        let (cluster, _) = start(path).await;
        let mut cluster = cluster.unwrap();
        let before = State::read(path).unwrap();
        assert!(before.servers.iter().all(|s| s.pid.is_some() && s.address.is_some()));
        let mgmtd = ClusterDir::open(path).unwrap().mgmtd_address().unwrap();
        assert_eq!(Some(mgmtd), cluster.address("mgmtd").map(|a| a.to_string()));
        cluster.stop().await;
        drop(cluster);
        let calls = fs::read_to_string(path.join("calls")).unwrap();
        let stopped: Vec<_> = calls.lines().filter(|l| l.starts_with("stopped")).collect();
        assert_eq!(stopped[..2], ["stopped mgmtd", "stopped meta"]);
        assert_eq!(stopped.len(), 4);
        let meta = calls.lines().find(|l| l.starts_with("started meta")).unwrap();
        let address = before.address_of("mgmtd").unwrap();
        assert!(meta.ends_with(&format!("--mgmtd {address}")), "{meta}");
        let error = ClusterDir::open(path).unwrap().mgmtd_address().unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);

        // Another program took one port meanwhile.
        let taken = before.address_of("storage-1").unwrap();
        let _listener = TcpListener::bind(taken).unwrap();
        let (cluster, events) = start(path).await;
        let cluster = cluster.unwrap();
        assert_ne!(cluster.address("storage-1"), Some(taken));
        assert_eq!(cluster.address("meta"), before.address_of("meta"));
        let said = events.lock().unwrap().join("\n");
        assert!(said.contains(&format!("storage-1: another program listens on {taken}")), "{said}");
    });
}

#[test]
fn a_server_that_does_not_start_is_named_with_its_last_words_and_the_others_end() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path();
    run(async {
        drop(start(path).await.0.unwrap());
        fs::write(path.join("fail-storage-2"), "").unwrap();
        let error = start(path).await.0.err().unwrap();
        let message = error.message();
        assert!(
            message.starts_with("storage-2 did not start: it ended with status 1"),
            "{message}"
        );
        assert!(message.ends_with(": storage-2: the disk is gone"), "{message}");
        assert!(error.hint().unwrap().contains("logs/storage-2.log"), "{error}");
        assert!(State::read(path).unwrap().servers.iter().all(|server| server.pid.is_none()));
        assert_eq!(Lock::holder(path).unwrap(), None);
    });
}

#[test]
fn what_dies_is_started_again_after_a_growing_pause() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().to_path_buf();
    run(async {
        let (cluster, events) = start(&path).await;
        let mut cluster = cluster.unwrap();
        let mut stop = Stop::on_any().unwrap();
        let address = cluster.address("meta");
        let said = |what: &str| events.lock().unwrap().iter().filter(|e| e.contains(what)).count();
        let kill = || {
            let state = State::read(&path).unwrap();
            let pid = state.servers[1].pid.unwrap() as i32;
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        let script = async {
            kill();
            until("death", || said("meta was killed by signal 9; starting it again in 100ms") == 1)
                .await;
            until("restart", || said("meta is ready") == 2).await;
            fs::write(path.join("fail-meta"), "").unwrap();
            kill();
            until("second death", || said("signal 9; starting it again in 200ms") == 1).await;
            until("failed start", || said("the disk is gone; trying again in 400ms") == 1).await;
            fs::remove_file(path.join("fail-meta")).unwrap();
            until("recovery", || said("meta is ready") == 3).await;
        };
        tokio::select! {
            result = cluster.supervise(&mut stop) => panic!("it ended: {result:?}"),
            () = script => {}
        }
        assert_eq!(cluster.address("meta"), address);
        assert_eq!(State::read(&path).unwrap().servers[1].restarts, 2);
        cluster.stop().await;
    });
}

#[test]
fn one_that_takes_long_to_start_holds_up_no_other() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().to_path_buf();
    run(async {
        let (cluster, events) = start(&path).await;
        let mut cluster = cluster.unwrap();
        let mut stop = Stop::on_any().unwrap();
        let said = |what: &str| events.lock().unwrap().iter().filter(|e| e.contains(what)).count();
        let kill = |at: usize| {
            let pid = State::read(&path).unwrap().servers[at].pid.unwrap() as i32;
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        let script = async {
            fs::write(path.join("slow-storage-1"), "").unwrap();
            kill(2);
            let started = || fs::read_to_string(path.join("calls")).unwrap();
            until("a slow start", || started().matches("started storage-1").count() == 2).await;
            kill(1);
            until("another's restart", || said("meta is ready") == 2).await;
            assert_eq!(said("storage-1 is ready"), 1);
            // It dies before it is ready.
            kill(2);
            let why = "storage-1 did not start: it was killed by signal 9";
            until("a start that fails", || said(why) == 1).await;
            fs::remove_file(path.join("slow-storage-1")).unwrap();
            until("its start", || said("storage-1 is ready") == 2).await;
        };
        tokio::select! {
            result = cluster.supervise(&mut stop) => panic!("it ended: {result:?}"),
            () = script => {}
        }
        cluster.stop().await;
    });
}

#[test]
fn the_harness_kills_pauses_and_starts_single_servers() {
    let temporary = tempfile::tempdir().unwrap();
    run(async {
        let mut cluster = start(temporary.path()).await.0.unwrap();
        assert_eq!(cluster.start_server("storage-1").await.unwrap_err().code(), Code::Busy);
        let exit = cluster.kill("storage-1").await.unwrap();
        assert!(exit.to_string().contains("signal 9"), "{exit}");
        assert_eq!(cluster.kill("storage-1").await.unwrap_err().code(), Code::NotFound);
        cluster.start_server("storage-1").await.unwrap();
        cluster.pause("storage-1").unwrap();
        let stat = format!("/proc/{}/stat", cluster.pid("storage-1").unwrap());
        let state = || fs::read_to_string(&stat).unwrap().split(' ').nth(2).unwrap().to_string();
        until("stopped", || state() == "T").await;
        cluster.resume("storage-1").unwrap();
        until("going on", || state() != "T").await;
        cluster.pause("storage-1").unwrap();
        cluster.stop().await;
        let calls = fs::read_to_string(temporary.path().join("calls")).unwrap();
        assert!(calls.contains("stopped storage-1"), "a paused server stops in order: {calls}");
        assert_eq!(cluster.kill("nobody").await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn what_a_killed_supervisor_left_is_ended_at_the_next_start() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path();
    run(async {
        let cluster = start(path).await.0.unwrap();
        let pid = cluster.pid("meta").unwrap();
        // The script knows nothing of supervisors: it lives on, as a server might for a moment.
        std::mem::forget(cluster);
        let lock = path.join("run/lock");
        fs::remove_file(&lock).unwrap();
        let (cluster, events) = start(path).await;
        let mut cluster = cluster.unwrap();
        let said = events.lock().unwrap().join("\n");
        assert!(said.contains(&format!("meta (pid {pid}) was left")), "{said}");
        cluster.stop().await;
    });
}

#[test]
fn a_mount_starts_last_is_started_again_when_it_dies_and_stops_first() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, point) = (temporary.path(), Path::new("/mnt/somewhere"));
    run(async {
        let (cluster, events) = start(path).await;
        let mut cluster = cluster.unwrap();
        fs::write(path.join("fail-mount"), "").unwrap();
        let error = cluster.mount(point).await.unwrap_err();
        assert!(error.message().starts_with("mount did not start"), "{error}");
        fs::remove_file(path.join("fail-mount")).unwrap();
        cluster.mount(point).await.unwrap();
        let mount = || State::read(path).unwrap().servers.pop().unwrap();
        assert_eq!((mount().name.as_str(), mount().mount.as_deref()), ("mount", Some(point)));
        let mut stop = Stop::on_any().unwrap();
        let said = |what: &str| events.lock().unwrap().iter().filter(|e| e.contains(what)).count();
        let script = async {
            let pid = rustix::process::Pid::from_raw(mount().pid.unwrap() as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            until("restart", || said("mounted on /mnt/somewhere") == 2).await;
            assert_eq!(mount().restarts, 1);
            // Unmounted by somebody: that was wanted.
            fs::write(path.join("done-mount"), "").unwrap();
            until("its end", || said("/mnt/somewhere has been unmounted") == 1).await;
            assert_eq!(mount().pid, None);
            fs::remove_file(path.join("done-mount")).unwrap();
        };
        tokio::select! {
            result = cluster.supervise(&mut stop) => panic!("it ended: {result:?}"),
            () = script => {}
        }
        cluster.start_server("mount").await.unwrap();
        cluster.stop().await;
        let calls = fs::read_to_string(path.join("calls")).unwrap();
        let stopped = calls.lines().filter(|line| line.starts_with("stopped")).skip(1);
        assert_eq!(stopped.take(2).collect::<Vec<_>>(), ["stopped mount", "stopped mgmtd"]);
    });
}
