//! The kernel adapter and mount points, with real mounts of a file system in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod memory;

use kiln_client_fuse::mount::{self, Health, How, table, unmount};
use kiln_client_fuse::{KernelCache, KernelLink, MountOptions, Session};
use kiln_env::Env;
use kiln_types::{Code, InodeId};
use memory::{Memory, SLOW};
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, RenameFlags, fcntl_lock, flock};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A mounted file system in memory; unmounted when it goes.
struct Mounted {
    dir: tempfile::TempDir,
    fs: Arc<Memory>,
    link: Arc<KernelLink>,
    session: Option<Session>,
    runtime: Runtime,
}

impl Mounted {
    /// `None` where nothing can be mounted, which is told.
    fn new(keep: Duration) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let (env, link) = (Env::real(), KernelLink::new());
        let fs = Arc::new(Memory::new(env.clone(), keep));
        let session = runtime.block_on(async {
            let path = dir.path().canonicalize().unwrap();
            Session::mount(fs.clone(), Arc::clone(&link), &path, &options(), &env).unwrap()
        });
        Some(Self { dir, fs, link, session: Some(session), runtime })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut session = self.session.take().unwrap();
        unmount(session.path(), How::UnlessBusy).unwrap();
        self.runtime.block_on(session.ended());
    }
}

fn options() -> MountOptions {
    MountOptions { source: "memory:/".into(), allow_other: true, ..MountOptions::default() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("SKIPPED: mounting needs root and /dev/fuse");
    }
    can
}

#[test]
fn files_directories_and_links_are_as_on_any_file_system() {
    let Some(mounted) = Mounted::new(Duration::from_secs(1)) else { return };
    let [file, dir] = [mounted.path("f"), mounted.path("d")];
    fs::write(&file, "hello").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"hello");
    let mut opened = OpenOptions::new().append(true).open(&file).unwrap();
    opened.write_all(b" world").unwrap();
    drop(opened);
    assert_eq!(fs::read_to_string(&file).unwrap(), "hello world");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4750)).unwrap();
    let metadata = fs::metadata(&file).unwrap();
    let seen = (metadata.mode(), metadata.len(), metadata.blocks(), metadata.nlink());
    assert_eq!(seen, (0o104_750, 11, 1, 1));
    fs::create_dir(&dir).unwrap();
    fs::hard_link(&file, dir.join("g")).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 2);
    symlink("../f", dir.join("s")).unwrap();
    assert_eq!(fs::read_link(dir.join("s")).unwrap(), Path::new("../f"));
    assert_eq!(fs::read(dir.join("s")).unwrap(), b"hello world");
    assert_eq!(fs::remove_dir(&dir).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::rename(dir.join("g"), mounted.path("h")).unwrap();
    let both = |flags| rustix::fs::renameat_with(CWD, &file, CWD, mounted.path("h"), flags);
    assert!(both(RenameFlags::NOREPLACE).is_err());
    both(RenameFlags::EXCHANGE).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(fs::read(&file).unwrap_err().kind(), ErrorKind::NotFound);
    let opened = OpenOptions::new().write(true).truncate(true).open(mounted.path("h")).unwrap();
    opened.set_len(1 << 20).unwrap();
    assert_eq!(opened.metadata().unwrap().len(), 1 << 20);
    let node = |name: &str, kind, device| {
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(CWD, mounted.path(name), kind, mode, device).unwrap();
        fs::symlink_metadata(mounted.path(name)).unwrap()
    };
    let number = rustix::fs::makedev(7, 300);
    assert!(node("p", rustix::fs::FileType::Fifo, 0).file_type().is_fifo());
    let device = node("b", rustix::fs::FileType::BlockDevice, number);
    assert!(device.file_type().is_block_device() && device.rdev() == number);
    let space = rustix::fs::statvfs(mounted.dir.path()).unwrap();
    assert_eq!((space.f_blocks, space.f_bsize, space.f_namemax), (1 << 28, 4096, 255));
}

#[test]
fn writing_takes_set_user_id_bits_away_except_for_root() {
    let Some(mounted) = Mounted::new(Duration::from_secs(60)) else { return };
    let file = mounted.path("f");
    fs::set_permissions(mounted.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let user = |command: &str| {
        let mut su = Command::new("setpriv");
        su.args(["--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", command]);
        assert!(su.current_dir(mounted.dir.path()).status().unwrap().success(), "{command}");
    };
    let mode = |file: &Path| fs::metadata(file).unwrap().mode() & 0o7777;
    for (command, after) in [
        ("echo x >> f", 0o777),
        ("echo x > f", 0o777),
        ("truncate -s 9 f", 0o777),
        ("cat f > /dev/null", 0o6777),
    ] {
        fs::write(&file, "program").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        user(command);
        assert_eq!(mode(&file), after, "{command}");
    }
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"by root").unwrap();
    assert_eq!(mode(&file), 0o6777);
    user("chown : f 2> /dev/null || true");
    assert_eq!(mode(&file), 0o6777);
    let chown = |uid| std::os::unix::fs::chown(&file, uid, None).unwrap();
    for uid in [Some(1), None] {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        chown(uid);
        assert_eq!(mode(&file), 0o777, "{uid:?}");
    }
}

#[test]
fn times_and_extended_attributes_come_back() {
    let Some(mounted) = Mounted::new(Duration::ZERO) else { return };
    let file = mounted.path("f");
    fs::write(&file, "x").unwrap();
    for (seconds, nanos) in [(1_700_000_000, 123_456_789), (-5, 400_000_000)] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (seconds, nanos));
        assert_eq!((metadata.atime(), metadata.atime_nsec()), (seconds, nanos));
    }
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    setxattr(&file, "user.a", b"one", XattrFlags::CREATE).unwrap();
    setxattr(&file, "user.b", b"", XattrFlags::empty()).unwrap();
    assert!(setxattr(&file, "user.a", b"two", XattrFlags::CREATE).is_err());
    setxattr(&file, "user.a", b"two", XattrFlags::REPLACE).unwrap();
    let mut small = [0_u8; 1];
    assert_eq!(getxattr(&file, "user.a", &mut small[..]), Err(rustix::io::Errno::RANGE));
    let mut value = [0_u8; 16];
    assert_eq!(getxattr(&file, "user.a", &mut value[..]), Ok(3));
    assert_eq!(listxattr(&file, &mut value[..]), Ok(14));
    assert_eq!(&value[..14], b"user.a\0user.b\0");
    removexattr(&file, "user.a").unwrap();
    assert_eq!(getxattr(&file, "user.a", &mut value[..]), Err(rustix::io::Errno::NODATA));
}

#[test]
fn a_large_directory_is_read_whole_and_forgotten() {
    let Some(mounted) = Mounted::new(Duration::from_secs(60)) else { return };
    let names: BTreeSet<_> = (0..5000).map(|i| format!("{i}-{}", "n".repeat(i % 200))).collect();
    for name in &names {
        fs::write(mounted.path(name), name).unwrap();
    }
    for _ in 0..2 {
        let entries = fs::read_dir(mounted.dir.path()).unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), entry.file_name().len() as u64);
            entry.file_name().into_string().unwrap()
        });
        let entries: Vec<_> = entries.collect();
        assert_eq!(entries.len(), names.len());
        assert_eq!(entries.into_iter().collect::<BTreeSet<_>>(), names);
    }
    assert!(mounted.fs.remembered() >= names.len());
    // Each lookup that was counted is forgotten once: the file system panics when one was not counted.
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let env = Env::real();
    mounted.runtime.block_on(async {
        for _ in 0..100 {
            if mounted.fs.remembered() <= 1 {
                return;
            }
            env.sleep(Duration::from_millis(50)).await;
        }
        panic!("{} inodes are not forgotten", mounted.fs.remembered());
    });
}

#[test]
fn cached_and_direct_reads_and_writes_and_mappings_agree() {
    let Some(mounted) = Mounted::new(Duration::from_secs(60)) else { return };
    let name = mounted.path("f");
    let bytes: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
    fs::write(&name, &bytes).unwrap();
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options
    };
    let direct = open().custom_flags(OFlags::DIRECT.bits() as i32).open(&name).unwrap();
    let mut back = vec![0; bytes.len()];
    direct.read_exact_at(&mut back, 0).unwrap();
    assert!(back == bytes);
    direct.write_all_at(&[7; 4096], 8192).unwrap();
    let mut cached = open().open(&name).unwrap();
    cached.seek(SeekFrom::Start(8190)).unwrap();
    let mut part = [0; 4];
    cached.read_exact(&mut part).unwrap();
    assert_eq!(part, [bytes[8190], bytes[8191], 7, 7]);

    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let length = bytes.len();
    // SAFETY: the mapping is unmapped below, and nothing else refers to it.
    unsafe {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let at = mmap(std::ptr::null_mut(), length, rights, MapFlags::SHARED, &cached, 0).unwrap();
        let mapped = at.cast::<u8>();
        assert_eq!(*mapped.add(100), bytes[100]);
        *mapped.add(100) = 99;
        msync(at, length, MsyncFlags::SYNC).unwrap();
        munmap(at, length).unwrap();
    }
    let mut part = [0; 1];
    direct.read_exact_at(&mut part, 100).unwrap();
    assert_eq!(part, [99]);
}

#[test]
fn failures_are_what_a_program_can_deal_with_and_the_daemon_goes_on() {
    let Some(mounted) = Mounted::new(Duration::ZERO) else { return };
    for name in ["panic", "lost"] {
        fs::write(mounted.path(name), "x").unwrap();
        // Past the cache: what was just written is in it.
        let flags = OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(mounted.path(name));
        let error = file.unwrap().read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
    }
    // Closing tells what writing could not.
    let of = format!("of={}", mounted.path("full").display());
    let dd = Command::new("dd").args(["if=/dev/null", &of]).output().unwrap();
    let said = String::from_utf8_lossy(&dd.stderr);
    assert!(said.contains("No space left"), "{said}");
    fs::write(mounted.path("f"), "fine").unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"fine");
}

#[test]
fn a_slow_request_holds_up_nobody_else() {
    let Some(mounted) = Mounted::new(Duration::ZERO) else { return };
    fs::write(mounted.path("slow"), vec![1; 1 << 20]).unwrap();
    fs::write(mounted.path("quick"), "x").unwrap();
    let env = Env::real();
    let readers: Vec<_> = (0..32)
        .map(|i| {
            let name = mounted.path("slow");
            env.spawn_thread("reader", move || {
                let flags = OFlags::DIRECT.bits() as i32;
                let file = OpenOptions::new().read(true).custom_flags(flags).open(name).unwrap();
                file.read_at(&mut [0; 4096], i * 4096).unwrap()
            })
            .unwrap()
        })
        .collect();
    // More readers wait than there are threads of the runtime or the adapter.
    let mut turns = 0;
    while readers.iter().any(|reader| !reader.is_finished()) {
        assert_eq!(fs::read(mounted.path("quick")).unwrap(), b"x");
        turns += 1;
    }
    assert!(readers.into_iter().all(|reader| reader.join().unwrap() == 4096));
    assert!(turns > 10, "{turns} reads in {SLOW:?}");
}

#[test]
fn what_others_change_is_seen_when_the_kernel_is_told() {
    let Some(mounted) = Mounted::new(Duration::from_secs(600)) else { return };
    let name = mounted.path("f");
    assert!(fs::read(&name).is_err());
    let inode = mounted.fs.write_elsewhere(b"f", b"first");
    assert!(fs::read(&name).is_err(), "the kernel remembers that there is nothing");
    drop(mounted.link.drop_name(InodeId::ROOT, b"f"));
    until("the name", || fs::read(&name).is_ok_and(|read| read == b"first"));

    // Reading changed the time of the last access: this asks for the attributes.
    assert_eq!(fs::metadata(&name).unwrap().len(), 5);
    mounted.fs.write_elsewhere(b"f", b"second, longer");
    assert_eq!(fs::metadata(&name).unwrap().len(), 5);
    mounted.link.drop_attributes(inode);
    assert_eq!(fs::metadata(&name).unwrap().len(), 14);
    drop(mounted.link.drop_content(inode));
    until("the content", || fs::read(&name).unwrap() == b"second, longer");

    // A flood is not lost, and the working directory of a process stays where it is.
    fs::create_dir(mounted.path("d")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "read x; /bin/pwd"]).current_dir(mounted.path("d"));
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert!(fs::read(mounted.path("late")).is_err());
    mounted.fs.write_elsewhere(b"late", b"here");
    drop(mounted.link.drop_name(InodeId::ROOT, b"d"));
    for name in 0..300_000_u32 {
        drop(mounted.link.drop_name(InodeId::ROOT, &name.to_ne_bytes()));
    }
    drop(mounted.link.drop_name(InodeId::ROOT, b"late"));
    until("a name after many", || fs::read(mounted.path("late")).is_ok());
    let cwd = format!("/proc/{}/cwd", shell.id());
    std::thread::scope(|scope| {
        let ask = || (0..3000).for_each(|_| assert!(fs::metadata(mounted.path("d")).is_ok()));
        let asking = scope.spawn(ask);
        while !asking.is_finished() {
            drop(mounted.link.drop_all_names());
            let shown = fs::read_link(&cwd).unwrap();
            assert!(shown.ends_with("d"), "{}", shown.display());
        }
    });
    shell.stdin.take().unwrap().write_all(b"\n").unwrap();
    let said = shell.wait_with_output().unwrap();
    let expected = mounted.path("d").canonicalize().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), expected.to_str().unwrap());
}

#[test]
fn holes_copies_reservations_and_files_without_names_come_through() {
    use rustix::fs::{FallocateFlags, Mode, copy_file_range, fallocate, linkat, open, seek};
    let Some(mounted) = Mounted::new(Duration::from_secs(1)) else { return };
    let name = mounted.path("f");
    fs::write(&name, [&[0; 9][..], b"data", &[0; 7]].concat()).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&name).unwrap();
    assert_eq!(seek(&file, rustix::fs::SeekFrom::Data(2)).unwrap(), 9);
    assert_eq!(seek(&file, rustix::fs::SeekFrom::Hole(10)).unwrap(), 13);
    fallocate(&file, FallocateFlags::empty(), 90, 10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100);
    let refused = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 10).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::OPNOTSUPP);
    fallocate(&file, FallocateFlags::empty(), 100, 1).expect("other modes still come through");

    let flags = OFlags::RDWR | OFlags::TMPFILE;
    let nameless = File::from(open(mounted.dir.path(), flags, Mode::from(0o600)).unwrap());
    assert_eq!(nameless.metadata().unwrap().nlink(), 0);
    let (mut from, mut to) = (8, 1);
    let copied = copy_file_range(&file, Some(&mut from), &nameless, Some(&mut to), 5).unwrap();
    assert_eq!((copied, from, to), (5, 13, 6));
    let way = format!("/proc/self/fd/{}", nameless.as_raw_fd());
    linkat(CWD, way, CWD, mounted.path("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(mounted.path("named")).unwrap(), b"\0\0data");
}

const LOCK: &str = "KILN_TEST_LOCK";

/// Not a test by itself: a process that locks a file, and fails when it cannot.
#[test]
fn locks_what_a_variable_says() {
    let Ok(what) = std::env::var(LOCK) else { return };
    let (how, path) = what.split_once(':').unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    match how {
        "flock" => flock(&file, FlockOperation::LockExclusive).unwrap(),
        "fcntl" => fcntl_lock(&file, FlockOperation::LockExclusive).unwrap(),
        "try-flock" => flock(&file, FlockOperation::NonBlockingLockShared).unwrap(),
        "try-fcntl" => fcntl_lock(&file, FlockOperation::NonBlockingLockShared).unwrap(),
        "ask" => {
            let asked = rustix::process::Flock::from(rustix::process::FlockType::ReadLock);
            let found = rustix::process::fcntl_getlk(&file, &asked).unwrap().unwrap();
            assert_eq!(found.pid, rustix::process::getppid());
            assert_eq!((found.start, found.length), (0, 0));
        }
        other => panic!("{other}"),
    }
}

fn locker(how: &str, path: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "locks_what_a_variable_says"]);
    command.env(LOCK, format!("{how}:{}", path.display()));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn locks_are_those_of_their_family_and_waits_for_them_end() {
    let Some(mounted) = Mounted::new(Duration::from_secs(1)) else { return };
    let name = mounted.path("f");
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name);
    let gets = |how: &str| locker(how, &name).wait().unwrap().success();
    let waits = || mounted.fs.locks.waits();
    for (family, other) in [("flock", "fcntl"), ("fcntl", "flock")] {
        let (_, ended_before) = waits();
        let file = open().unwrap();
        match family {
            "flock" => flock(&file, FlockOperation::LockExclusive).unwrap(),
            _ => fcntl_lock(&file, FlockOperation::LockExclusive).unwrap(),
        }
        let (same, other) = (format!("try-{family}"), format!("try-{other}"));
        assert!(!gets(&same) && gets(&other), "{family}");
        assert_eq!(gets("ask"), family == "fcntl");

        // A signal ends a wait, and the lock stays where it is.
        let mut waiter = locker(family, &name);
        until("a waiter", || waits().0 == 1);
        waiter.kill().unwrap();
        assert!(!waiter.wait().unwrap().success());
        assert_eq!(waits(), (0, ended_before + 1));
        assert!(!gets(&same), "{family}");

        // So does the lock's end: for fcntl, when any descriptor of the file is closed.
        let mut waiter = locker(family, &name);
        until("a waiter", || waits().0 == 1);
        match family {
            "flock" => drop(file),
            _ => drop(File::open(&name).unwrap()),
        }
        assert!(waiter.wait().unwrap().success(), "{family}");
        until("a lock that ends with its process", || gets(&same));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        runtime().block_on(Env::real().sleep(Duration::from_millis(10)));
    }
    panic!("waited too long: {what}");
}

const DAEMON: &str = "KILN_TEST_MOUNT_ON";

/// Not a test by itself: the process that other tests kill.
#[test]
fn serves_where_a_variable_says() {
    let Some(path) = std::env::var_os(DAEMON) else { return };
    runtime().block_on(async {
        let (env, link) = (Env::real(), KernelLink::new());
        let path = mount::prepare(Path::new(&path), &env, |_| {}).await.unwrap();
        let fs = Arc::new(Memory::new(env.clone(), Duration::ZERO));
        let mut session = Session::mount(fs, link, &path, &options(), &env).unwrap();
        fs::write(path.join("ready"), "").unwrap();
        session.ended().await;
    });
}

fn daemon_on(path: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "serves_where_a_variable_says"]).env(DAEMON, path);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    until("the daemon", || {
        assert_eq!(child.try_wait().unwrap(), None, "the daemon ended");
        path.join("ready").exists()
    });
    child
}

#[test]
fn a_dead_daemons_mount_is_taken_over_and_a_living_ones_is_not() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let env = Env::real();
    let runtime = runtime();
    let health = || {
        let mounts = table::read().unwrap();
        let mount = table::at(&mounts, &path).unwrap();
        runtime.block_on(mount::health(mount, &env)).unwrap()
    };
    let prepare = || {
        let mut told = String::new();
        let prepared = runtime.block_on(mount::prepare(&path, &env, |text| told += &text));
        (prepared, told)
    };
    fs::write(path.join("hidden"), "").unwrap();
    let mut daemon = daemon_on(&path);
    assert_eq!(health(), Health::Works);
    let refused = prepare().0.unwrap_err();
    assert_eq!(refused.code(), Code::Exists);
    assert!(refused.message().contains("memory:/ is already mounted"), "{refused}");

    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // One of its threads begins to stop the others.
    until("its halt", || {
        let state = fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap();
        state.contains(") T ")
    });
    assert_eq!(health(), Health::Silent);
    assert!(prepare().0.unwrap_err().message().contains("does not answer"));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(health(), Health::Dead);
    let (prepared, told) = prepare();
    assert_eq!(prepared.unwrap(), path);
    assert!(told.contains("took over") && told.contains("is not empty"), "{told}");

    let mut daemon = daemon_on(&path);
    assert_eq!(health(), Health::Works);
    // Busy: it stays, and its users are known.
    let file = File::open(path.join("ready")).unwrap();
    let mut user = Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap();
    let busy = unmount(&path, How::UnlessBusy).unwrap_err();
    assert_eq!(busy.code(), Code::Busy);
    let users = runtime.block_on(mount::users(&path, &env));
    assert_eq!((users.len(), users[0].pid, users[0].how), (1, user.id(), "open file"));
    // Detached, it ends with its last user.
    unmount(&path, How::Lazily).unwrap();
    assert!(table::at(&table::read().unwrap(), &path).is_none());
    assert_eq!(daemon.try_wait().unwrap(), None);
    user.kill().unwrap();
    user.wait().unwrap();
    until("the daemon's end", || daemon.try_wait().unwrap().is_some());
}

#[test]
fn a_path_where_nothing_can_be_mounted_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let refused =
        |path: &Path| runtime.block_on(mount::prepare(path, &Env::real(), |_| {})).unwrap_err();
    let missing = refused(&dir.path().join("missing"));
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.hint().unwrap().contains("mkdir"), "{missing}");
    fs::write(dir.path().join("f"), "").unwrap();
    assert_eq!(refused(&dir.path().join("f")).code(), Code::NotDirectory);
    let other = refused(Path::new("/proc"));
    assert_eq!(other.code(), Code::Exists);
    assert!(other.message().contains("another file system is mounted on /proc: proc (proc)"));
}
