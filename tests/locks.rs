//! Locks and appends through two mounts of one cluster, by real programs and by threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use cluster::mount::{Mount, find, pause, possible, skip, wait_for};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LATE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn two() -> Option<(TestCluster, Mount, Mount)> {
    if !possible() {
        return None;
    }
    let cluster = TestCluster::start(3, 3);
    let (one, other) = (cluster.mount(), cluster.mount());
    Some((cluster, one, other))
}

#[test]
fn flock_excludes_other_mounts_and_shows_what_was_written_before() {
    let Some((_cluster, one, other)) = two() else { return };
    let (first, second) = (open(&one.path().join("f")), open(&other.path().join("f")));
    flock(&first, FlockOperation::LockExclusive).unwrap();
    let refused = flock(&second, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    flock(&first, FlockOperation::LockShared).unwrap();
    flock(&second, FlockOperation::NonBlockingLockShared).unwrap();
    // Two that hold it shared and want it alone: the lock that cannot be converted goes.
    std::thread::scope(|scope| {
        for file in [&first, &second] {
            scope.spawn(move || {
                flock(file, FlockOperation::LockExclusive).unwrap();
                flock(file, FlockOperation::Unlock).unwrap();
            });
        }
    });
    flock(&first, FlockOperation::LockExclusive).unwrap();
    // The last descriptor's end is the lock's.
    let again = first.try_clone().unwrap();
    drop(first);
    assert_eq!(flock(&second, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    drop(again);
    let got = || flock(&second, FlockOperation::NonBlockingLockShared).ok();
    assert!(wait_for(LATE, got).is_some());

    let count = |file: &File| {
        flock(file, FlockOperation::LockExclusive).unwrap();
        let mut bytes = [0; 8];
        let _ = file.read_at(&mut bytes, 0).unwrap();
        let next = u64::from_le_bytes(bytes) + 1;
        file.write_all_at(&next.to_le_bytes(), 0).unwrap();
    };
    let unlocked = |path: &Path| {
        let file = open(path);
        for _ in 0..25 {
            count(&file);
            flock(&file, FlockOperation::Unlock).unwrap();
        }
    };
    // The next file that is opened may have the address of the one whose lock is about to end.
    let closed = |path: &Path| (0..50).for_each(|_| count(&open(path)));
    std::thread::scope(|scope| {
        for path in [one.path(), other.path()].map(|path| path.join("counter")) {
            for _ in 0..2 {
                let (path, again) = (path.clone(), path.clone());
                scope.spawn(move || unlocked(&path));
                scope.spawn(move || closed(&again));
            }
        }
    });
    let mut bytes = [0; 8];
    open(&one.path().join("counter")).read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 2 * 2 * (25 + 50));
}

/// A Python process that does as it is told, a line at a time: `lock START LENGTH`, `try START LENGTH`,
/// `unlock START LENGTH`, `look START LENGTH` (F_GETLK), `touch` (opens and closes the file), `ofd START LENGTH`
/// and `ofd-end` (a lock of another open file description).
const LOCKER: &str = r#"
import fcntl, struct, sys
file = open(sys.argv[1], "r+b")
print("ready", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    start, length = (list(map(int, numbers)) + [0, 0])[:2]
    answer = "yes"
    try:
        if what == "lock": fcntl.lockf(file, fcntl.LOCK_EX, length, start)
        elif what == "try": fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        elif what == "unlock": fcntl.lockf(file, fcntl.LOCK_UN, length, start)
        elif what == "touch": open(sys.argv[1]).close()
        elif what == "ofd":
            other = open(sys.argv[1], "r+b")
            # F_OFD_SETLK, for which Python has no name.
            fcntl.fcntl(other, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, length, 0))
        elif what == "ofd-end": other.close()
        elif what == "look":
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, length, 0)
            kind, _, at, bytes, _ = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
            answer = "free" if kind == fcntl.F_UNLCK else f"{at} {bytes}"
    except OSError as error:
        answer = f"errno {error.errno}"
    print(answer, flush=True)
"#;

struct Locker {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Locker {
    fn on(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", LOCKER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut locker = Self { child, answers };
        assert_eq!(locker.answer(), "ready");
        locker
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fcntl_locks_are_ranges_of_processes_on_any_mount() {
    if find("python3").is_none() {
        skip("no python3");
        return;
    }
    let Some((_cluster, one, other)) = two() else { return };
    let (path, seen) = (one.path().join("f"), other.path().join("f"));
    let file = open(&path);
    let (mut a, mut b, mut c) = (Locker::on(&path), Locker::on(&path), Locker::on(&seen));
    assert_eq!(a.ask("lock 10 10"), "yes");
    for locker in [&mut b, &mut c] {
        assert_eq!(locker.ask("try 15 100"), "errno 11");
        assert_eq!(locker.ask("look 0 0"), "10 10");
        assert_eq!(locker.ask("look 20 0"), "free");
    }
    // The other family is none of their business.
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    // A part is let go; the rest stays.
    assert_eq!(a.ask("unlock 12 3"), "yes");
    assert_eq!(c.ask("try 12 3"), "yes");
    assert_eq!(c.ask("look 0 12"), "10 2");
    assert_eq!(b.ask("look 15 0"), "15 5");
    // It waits until the holder lets go, on the same mount or another one.
    c.tell("lock 18 1");
    pause(Duration::from_millis(300));
    assert_eq!(a.ask("unlock 0 0"), "yes");
    assert_eq!(c.answer(), "yes");
    b.tell("lock 18 1");
    pause(Duration::from_millis(300));
    // Closing any descriptor of the file ends the process's locks.
    assert_eq!(c.ask("touch"), "yes");
    assert_eq!(b.answer(), "yes");
    // A lock of an open file description outlives other descriptors, and ends with its own.
    assert_eq!(b.ask("unlock 0 0"), "yes");
    assert_eq!(c.ask("ofd 30 5"), "yes");
    assert_eq!(c.ask("touch"), "yes");
    assert_eq!(b.ask("look 0 0"), "30 5");
    assert_eq!(c.ask("ofd-end"), "yes");
    let free = || (b.ask("look 0 0") == "free").then_some(());
    assert!(wait_for(LATE, free).is_some());
    assert_eq!(b.ask("lock 18 1"), "yes");
    // Who waits and is killed is gone at once, and leaves nothing; so is who holds and is killed.
    a.tell("lock 0 0");
    pause(Duration::from_millis(300));
    a.child.kill().unwrap();
    let gone = || a.child.try_wait().unwrap();
    assert!(wait_for(Duration::from_secs(10), gone).is_some(), "a signal ends the wait");
    drop(b);
    assert_eq!(c.ask("lock 0 0"), "yes");
    assert_eq!(c.ask("unlock 0 0"), "yes");
    assert_eq!(Locker::on(&path).ask("try 0 0"), "yes");
}

#[test]
fn appends_of_two_mounts_land_one_behind_the_other() {
    let Some((_cluster, one, other)) = two() else { return };
    const LINES: usize = 150;
    let append = |mount: &Path, name: usize| {
        let path = mount.join("log");
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        for number in 0..LINES {
            // Of lengths that lie across pages.
            let line = format!("{name} {number} {}\n", "x".repeat(number * 37 % 900));
            file.write_all(line.as_bytes()).unwrap();
            if number % 10 == 0 {
                pause(Duration::from_millis(5));
            }
        }
    };
    std::thread::scope(|scope| {
        for name in 0..4 {
            let mount = if name % 2 == 0 { one.path() } else { other.path() };
            scope.spawn(move || append(mount, name));
        }
    });
    for mount in [&one, &other] {
        let log = std::fs::read_to_string(mount.path().join("log")).unwrap();
        let mut next = [0; 4];
        for line in log.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let (name, number): (usize, usize) =
                (fields[0].parse().unwrap(), fields[1].parse().unwrap());
            assert_eq!(number, next[name], "of {name}: {line}");
            assert_eq!(fields[2].len(), number * 37 % 900, "of {name}");
            next[name] += 1;
        }
        assert_eq!(next, [LINES; 4]);
    }
    // Who has the right and is done gives it back: nobody waits for a lease.
    let mut last = OpenOptions::new().append(true).open(other.path().join("log")).unwrap();
    last.write_all(b"end\n").unwrap();
    drop(last);
    assert!(std::fs::read_to_string(one.path().join("log")).unwrap().ends_with("\nend\n"));
}
