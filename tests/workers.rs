//! Programs that work on two mounts of one cluster while faults happen, and know what has come of it. Each is
//! a process of its own: servers that a test starts would inherit the open files of its threads.

use crate::cluster::mount::ended;
use crate::cluster::program::{run, shell};
use crate::model::{self, Pair, two};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// How long a program may take to see that it is to stop.
const STOP_WITHIN: Duration = Duration::from_secs(180);
/// Operations of one run beside a model, and of one through both mounts.
const STEPS: usize = 200;
const STEPS_OF_TWO: usize = 15;

/// Commits to a repository of its own, and clones it.
const GIT: &str = r#"
git init -q -b main git; cd git; count=0
while [ ! -e "$TOLD/stop" ]; do
    count=$((count + 1)); mkdir -p "d$((count % 5))"; echo "$count" >> log; echo "$count" > "d$((count % 5))/$count"
    git add .; git commit -qm "$count"
    if [ $((count % 10)) = 0 ]; then
        git gc -q; rm -rf ../clone; git clone -q --no-local . ../clone; git -C ../clone fsck --strict --no-progress
    fi
done
echo "$count" > "$TOLD/$NAME"
"#;

/// Adds to a database that both mounts use.
const SQLITE: &str = r#"
count=0
while [ ! -e "$TOLD/stop" ]; do
    count=$((count + 1))
    sqlite3 -bail -cmd '.timeout 150000' database \
        "BEGIN IMMEDIATE; INSERT INTO done VALUES ('$NAME', $count); UPDATE total SET n = n + 1; COMMIT"
done
echo "$count" > "$TOLD/$NAME"
"#;

/// Makes, moves and removes files of which each is there once.
const SHELL: &str = r#"
mkdir "$NAME"; cd "$NAME"; count=0
while [ ! -e "$TOLD/stop" ]; do
    count=$((count + 1))
    mkdir "new-$count"; (set -C; echo "$count" > "new-$count/file"); ln "new-$count/file" "link-$count"
    mv -T "new-$count" "old-$count"; rm "link-$count"; echo "$count" >> log
    if [ "$count" -gt 5 ]; then rm "old-$((count - 5))/file"; rmdir "old-$((count - 5))"; fi
done
echo "$count" > "$TOLD/$NAME"
"#;

/// The programs.
pub(crate) struct Workers {
    /// The same directory through both mounts.
    dirs: [PathBuf; 2],
    running: Vec<(String, Child)>,
    /// Where they say how far they are, and what they complain; `stop` there stops them.
    told: tempfile::TempDir,
}

impl Workers {
    pub(crate) fn start(dirs: [PathBuf; 2]) -> Self {
        let told = tempfile::tempdir().unwrap();
        model::open_dir(told.path(), "model");
        run(
            &dirs[0],
            "sqlite3 database 'CREATE TABLE done (who, n, UNIQUE (who, n)); \
            CREATE TABLE total (n); INSERT INTO total VALUES (0)'; mkdir -m 777 model",
        );
        let mut workers = Self { dirs, running: Vec::new(), told };
        workers.script("git", 0, GIT);
        for side in 0..2 {
            workers.script(&format!("sqlite-{side}"), side, SQLITE);
            workers.script(&format!("shell-{side}"), side, SHELL);
            workers.body(&format!("locks-{side}"));
            workers.body(&format!("model-{side}"));
        }
        workers.body("two");
        workers
    }

    fn script(&mut self, name: &str, side: usize, script: &str) {
        self.spawn(name, shell(&self.dirs[side], script));
    }

    /// One whose body is in this file.
    fn body(&mut self, name: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--nocapture", "--exact", "workers::works_when_another_test_asks"]);
        command.env("ONE", &self.dirs[0]).env("OTHER", &self.dirs[1]);
        self.spawn(name, command);
    }

    fn spawn(&mut self, name: &str, mut command: Command) {
        let said = File::create(self.said(name)).unwrap();
        command.stdout(said.try_clone().unwrap()).stderr(said);
        command.env("TOLD", self.told.path()).env("NAME", name);
        self.running.push((name.into(), command.spawn().unwrap()));
    }

    fn said(&self, name: &str) -> PathBuf {
        self.told.path().join(format!("{name}.said"))
    }

    /// Whether one has ended although nobody told it to.
    pub(crate) fn any_failed(&mut self) -> bool {
        self.running.iter_mut().any(|(_, child)| child.try_wait().unwrap().is_some())
    }

    /// Stops them; none of them has seen an error.
    pub(crate) fn finish(&mut self, logs: impl Fn() -> String) {
        fs::write(self.told.path().join("stop"), "").unwrap();
        for (name, mut child) in std::mem::take(&mut self.running) {
            let status = ended(&mut child, STOP_WITHIN);
            let said = fs::read_to_string(self.said(&name)).unwrap();
            assert!(status.is_some_and(|s| s.success()), "{name}: {status:?}\n{said}\n{}", logs());
            let done = fs::read_to_string(self.told.path().join(&name)).unwrap();
            println!("{name}: {}", done.trim().replace('\n', " "));
        }
    }

    /// How often a program did its work.
    fn count(&self, name: &str) -> u64 {
        fs::read_to_string(self.told.path().join(name)).unwrap().trim().parse().unwrap()
    }

    /// What is there is what they did, through either mount.
    pub(crate) fn check(&self) {
        for dir in &self.dirs {
            self.check_programs(dir);
            self.check_locks(dir);
            for side in 0..2 {
                let model = self.told.path().join("model");
                let runs =
                    fs::read_to_string(self.told.path().join(format!("model-{side}"))).unwrap();
                for run in runs.lines() {
                    model::compare(&Pair { model: &model, tried: &dir.join("model") }, run);
                }
            }
        }
    }

    fn check_programs(&self, dir: &Path) {
        let commits = run(
            dir,
            "cd git; git fsck --strict --no-progress; git status --porcelain; git rev-list --count HEAD",
        );
        assert_eq!(commits.trim().parse(), Ok(self.count("git")));
        let query = "PRAGMA integrity_check; SELECT who, count(*), max(n) FROM done GROUP BY who \
            ORDER BY who; SELECT n FROM total";
        let found = run(dir, &format!("sqlite3 -separator ' ' database '{query}'"));
        let [one, other] = [0, 1].map(|side| self.count(&format!("sqlite-{side}")));
        let all = one + other;
        let expected = format!("ok\nsqlite-0 {one} {one}\nsqlite-1 {other} {other}\n{all}\n");
        assert_eq!(found, expected);
        for side in 0..2 {
            let name = format!("shell-{side}");
            let count = self.count(&name);
            let lines: Vec<_> = (1..=count).map(|n| format!("{n}\n")).collect();
            assert_eq!(fs::read_to_string(dir.join(&name).join("log")).unwrap(), lines.concat());
            let left: Vec<_> = (count.saturating_sub(4).max(1)..=count).collect();
            for number in &left {
                let file = dir.join(&name).join(format!("old-{number}/file"));
                assert_eq!(fs::read_to_string(file).unwrap(), format!("{number}\n"));
            }
            assert_eq!(fs::read_dir(dir.join(&name)).unwrap().count(), left.len() + 1);
        }
    }

    fn check_locks(&self, dir: &Path) {
        let counts = [0, 1].map(|side| self.count(&format!("locks-{side}")));
        let log = fs::read_to_string(dir.join("appended")).unwrap();
        for (side, count) in counts.iter().enumerate() {
            let own = log.lines().filter_map(|line| line.strip_prefix(&format!("locks-{side} ")));
            let own: Vec<u64> = own.map(|number| number.trim().parse().unwrap()).collect();
            assert!(
                own.iter().copied().eq(0..*count),
                "appended by locks-{side}: {own:?}, and it did {count}"
            );
        }
        for counter in ["flock", "fcntl"] {
            assert_eq!(
                number_in(&File::open(dir.join(counter)).unwrap()),
                counts.iter().sum::<u64>(),
                "{counter}"
            );
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.running.iter_mut().for_each(|(_, child)| drop(child.kill()));
    }
}

/// The body of [`Workers::body`]'s processes.
#[test]
fn works_when_another_test_asks() {
    let Some(told) = std::env::var_os("TOLD").map(PathBuf::from) else { return };
    let [one, other] = ["ONE", "OTHER"].map(|name| PathBuf::from(std::env::var_os(name).unwrap()));
    let name = std::env::var("NAME").unwrap();
    let stops = || told.join("stop").exists() || !told.exists();
    let dir = if name.ends_with("-1") { &other } else { &one };
    let done = match name.split('-').next() {
        Some("locks") => append_and_count(dir, &name, stops),
        Some("model") => beside_a_model(dir, &told, stops),
        _ => beside_a_model_on_both([&one, &other], &told, stops),
    };
    fs::write(told.join(name), done).unwrap();
}

fn number_in(file: &File) -> u64 {
    let mut bytes = [0; 8];
    let _ = file.read_at(&mut bytes, 0).unwrap();
    u64::from_le_bytes(bytes)
}

/// Appends to a log and counts under locks, as the same on the other mount does.
fn append_and_count(dir: &Path, name: &str, stops: impl Fn() -> bool) -> String {
    let open = |name| {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(name))
            .unwrap()
    };
    let (by_flock, by_fcntl) = (open("flock"), open("fcntl"));
    let mut log = File::options().append(true).create(true).open(dir.join("appended")).unwrap();
    let add = |file: &File| file.write_all_at(&(number_in(file) + 1).to_le_bytes(), 0).unwrap();
    let mut count = 0;
    while !stops() {
        // Nearly as long as a block, so that borders are met.
        let line = format!("{name} {count:<3000}\n");
        assert_eq!(log.write(line.as_bytes()).unwrap(), line.len());
        flock(&by_flock, FlockOperation::LockExclusive).unwrap();
        add(&by_flock);
        flock(&by_flock, FlockOperation::Unlock).unwrap();
        fcntl_lock(&by_fcntl, FlockOperation::LockExclusive).unwrap();
        add(&by_fcntl);
        fcntl_lock(&by_fcntl, FlockOperation::Unlock).unwrap();
        count += 1;
    }
    format!("{count}")
}

/// Does random operations on this mount and in a local directory; the names of the trees that it leaves.
fn beside_a_model(dir: &Path, told: &Path, stops: impl Fn() -> bool) -> String {
    let (model, tried) = (told.join("model"), dir.join("model"));
    let pair = Pair { model: &model, tried: &tried };
    let mut names = Vec::new();
    while !stops() {
        names.push(model::random_run_once(&pair, fastrand::u64(..), STEPS));
    }
    names.join("\n")
}

/// The same through two mounts that look at what the other one did.
fn beside_a_model_on_both(dirs: [&Path; 2], told: &Path, stops: impl Fn() -> bool) -> String {
    let dirs = dirs.map(|dir| dir.join("model"));
    let mut count = 0;
    while !stops() {
        two::random_run(&told.join("model"), [&dirs[0], &dirs[1]], fastrand::u64(..), STEPS_OF_TWO);
        count += 1;
    }
    format!("{count}")
}
