//! Real programs on the mount, and what they rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::mount::{Mount, ended, possible, skip};
use cluster::program::{installed, refused, run, shell};
use cluster::{TestCluster, tree};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

/// No daemon may have more memory, whatever programs do.
const MEMORY_MIB: u64 = 512;

/// Runs `body` in a directory of a mount that everybody may use.
fn on_a_mount(body: impl FnOnce(&Path, &mut Mount)) {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    let dir = mount.make_dir("work");
    body(&dir, &mut mount);
    let peak = mount.memory_peak();
    assert!(peak < MEMORY_MIB, "the daemon had {peak} MiB");
    mount.unmount();
}

#[test]
fn git_works() {
    if !installed(&["git", "diff"]) {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let origin = local.path().join("origin");
    tree::make(&origin, 150, 21);
    run(&origin, "rmdir empty; git init -q -b main; git add .; git commit -qm one");
    run(&origin, "for i in 1 2 3; do echo $i >> d1/new; git add .; git commit -qm $i; done");
    on_a_mount(|dir, _| {
        let origin = origin.display();
        run(dir, &format!("git clone -q --no-local file://{origin} clone"));
        assert_eq!(run(&dir.join("clone"), "git status --porcelain"), "");
        run(
            dir,
            &format!("cd clone; git fsck --strict; diff -r --no-dereference -x .git . {origin}"),
        );
        run(
            dir,
            "cd clone; git checkout -qb topic HEAD~2; git mv d1/new d2/moved; git commit -qam topic",
        );
        run(
            dir,
            "cd clone; git merge -q --no-edit main || git diff --stat; git reset -q --hard topic",
        );
        run(dir, "cd clone; git worktree add -q ../tree main; git stash list; git gc -q; git fsck");
        assert_eq!(run(&dir.join("tree"), "git status --porcelain"), "");
        run(dir, "git clone -q clone again; cd again; git log --oneline | grep -q topic; git fsck");
    });
}

#[test]
fn archives_and_copies_agree_both_ways() {
    if !installed(&["tar", "diff"]) {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    tree::make(&source, 200, 22);
    run(&source, "ln 'd0/e0/file 0 ü' 'again'; touch -d '1999-12-31 23:59:59.123456789' d1 empty");
    on_a_mount(|dir, mount| {
        let (from, back) = (source.display(), local.path().join("back"));
        run(
            dir,
            &format!("mkdir tar; tar -C {from} -Hposix -c . | tar -C tar -xp; cp -a {from} cp"),
        );
        run(
            dir,
            "mkdir again; tar -C tar -Hposix -c . | tar -C again -xp; rm -r tar; mv again tar",
        );
        mount.unmount();
        mount.mount_again();
        for copy in ["tar", "cp"] {
            tree::assert_same(&source, &dir.join(copy));
            let links = fs::metadata(dir.join(copy).join("again")).unwrap().nlink();
            assert_eq!(links, 2, "{copy} keeps hard links");
        }
        run(
            local.path(),
            &format!("mkdir back; tar -C {}/tar -Hposix -c . | tar -C back -xp", dir.display()),
        );
        tree::assert_same(&source, &back);
        if installed(&["rsync"]) {
            run(dir, &format!("rsync -aHX {from}/ rsync; rsync -aHX rsync/ {}", back.display()));
            let differs = run(dir, &format!("rsync -aHXcni --delete {from}/ rsync/"));
            assert_eq!(differs, "", "rsync finds nothing to do");
            run(
                dir,
                &format!(
                    "echo more >> {from}/d2/e2/new; touch -d @1000 {from}/d2/e2; rsync -aHX --delete {from}/ rsync"
                ),
            );
            tree::assert_same(&source, &dir.join("rsync"));
        }
        run(dir, "rm -r tar cp");
    });
}

#[test]
fn two_processes_share_a_database() {
    if !installed(&["sqlite3"]) {
        return;
    }
    on_a_mount(|dir, mount| {
        for journal in ["delete", "wal"] {
            run(
                dir,
                &format!(
                    "sqlite3 {journal}.db 'PRAGMA journal_mode={journal}; CREATE TABLE t(writer, number); CREATE TABLE total(n); INSERT INTO total VALUES (0);'"
                ),
            );
            let add = |writer: &str| {
                let transaction = "BEGIN IMMEDIATE; INSERT INTO t SELECT $writer, count(*) FROM t; UPDATE total SET n = n + 1; COMMIT;";
                let script = format!(
                    "writer={writer}; for i in $(seq 25); do sqlite3 -cmd '.timeout 60000' {journal}.db \"{transaction}\"; done"
                );
                shell(dir, &script).spawn().unwrap()
            };
            for mut writer in [add("1"), add("2")] {
                let status = ended(&mut writer, Duration::from_secs(120));
                assert!(status.is_some_and(|status| status.success()), "{journal}: {status:?}");
            }
            let ask = format!(
                "sqlite3 {journal}.db 'PRAGMA integrity_check; SELECT count(DISTINCT number), max(number) FROM t; SELECT n FROM total;'"
            );
            assert_eq!(run(dir, &ask), "ok\n50|49\n50\n");
            mount.unmount();
            mount.mount_again();
            assert_eq!(run(dir, &ask), "ok\n50|49\n50\n");
        }
    });
}

#[test]
fn a_crate_is_built() {
    let Ok(cargo) = std::env::var("CARGO") else {
        skip("no cargo");
        return;
    };
    on_a_mount(|dir, _| {
        fs::create_dir_all(dir.join("hello/src")).unwrap();
        let manifest =
            "[package]\nname = 'hello'\nversion = '1.0.0'\nedition = '2021'\n[workspace]\n";
        fs::write(dir.join("hello/Cargo.toml"), manifest).unwrap();
        let main = "mod part;\nfn main() { println!(\"{}\", part::said()); }\n";
        fs::write(dir.join("hello/src/main.rs"), main).unwrap();
        let part = |said: &str| format!("pub fn said() -> &'static str {{ \"{said}\" }}\n");
        let build = format!(
            "cd hello; CARGO_TARGET_DIR=target HOME={} {cargo} build -q --offline; target/debug/hello",
            std::env::var("HOME").unwrap_or_default()
        );
        for said in ["one", "two"] {
            fs::write(dir.join("hello/src/part.rs"), part(said)).unwrap();
            assert_eq!(run(dir, &build), format!("{said}\n"));
        }
    });
}

#[test]
fn fio_reads_back_what_it_wrote() {
    if !installed(&["fio"]) {
        return;
    }
    on_a_mount(|dir, _| {
        let verify =
            "--size=12m --verify=crc32c --verify_fatal=1 --fallocate=none --output=/dev/null";
        for (name, how) in [
            ("buffered", "--rw=randwrite --bs=4k-64k"),
            ("direct", "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 --size=3m"),
            ("mapped", "--rw=randwrite --bs=4k --ioengine=mmap"),
            ("synced", "--rw=randwrite --bs=16k --fsync=32 --size=4m"),
            ("large", "--rw=write --bs=1m --numjobs=2"),
        ] {
            run(dir, &format!("fio --name={name} {verify} {how}"));
        }
    });
}

#[test]
fn names_are_any_bytes_and_directories_large_and_deep() {
    on_a_mount(|dir, _| {
        let long = "n".repeat(255);
        let odd = [b"\xff\xfe\x80".as_slice(), b"new\nline", b" ", b"-rf", "ü€𝄞".as_bytes()];
        for name in odd.iter().copied().chain([long.as_bytes()]) {
            let path = dir.join(OsStr::from_bytes(name));
            fs::write(&path, name).unwrap();
            assert_eq!(fs::read(&path).unwrap(), name);
        }
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let mut expected: Vec<_> = odd.iter().map(|name| OsStr::from_bytes(name)).collect();
        expected.push(OsStr::new(&long));
        expected.sort();
        assert_eq!(names, expected);
        let error = fs::write(dir.join("n".repeat(256)), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFilename, "{error}");
        deep(dir);
        loops(dir);
    });
}

/// As deep as a path can name.
fn deep(dir: &Path) {
    let mut path = dir.to_owned();
    while path.as_os_str().len() + 102 < 4090 {
        path.push("d".repeat(100));
    }
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("end"), "deep").unwrap();
    assert_eq!(fs::read(path.join("end")).unwrap(), b"deep");
    fs::remove_dir_all(dir.join("d".repeat(100))).unwrap();
}

fn loops(dir: &Path) {
    symlink("b", dir.join("a")).unwrap();
    symlink("a", dir.join("b")).unwrap();
    let error = fs::read(dir.join("a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()), "{error}");
    symlink(dir, dir.join("absolute")).unwrap();
    fs::write(dir.join("absolute/absolute/through"), "x").unwrap();
    assert_eq!(fs::read(dir.join("through")).unwrap(), b"x");
}

#[test]
fn a_large_directory_is_read_whole_also_while_it_shrinks() {
    const ENTRIES: usize = 5000;
    on_a_mount(|dir, mount| {
        let large = dir.join("large");
        fs::create_dir(&large).unwrap();
        std::thread::scope(|scope| {
            for part in 0..4 {
                let large = &large;
                scope.spawn(move || {
                    for number in (part..ENTRIES).step_by(4) {
                        File::create_new(large.join(format!("entry {number}"))).unwrap();
                    }
                });
            }
        });
        mount.unmount();
        mount.mount_again();
        let mut numbers = std::collections::HashSet::new();
        for entry in fs::read_dir(&large).unwrap().map(Result::unwrap) {
            assert!(numbers.insert(entry.ino()), "{:?} comes twice", entry.file_name());
            if numbers.len() % 100 == 0 {
                assert_eq!(entry.metadata().unwrap().ino(), entry.ino());
            }
        }
        assert_eq!(numbers.len(), ENTRIES);
        // As rm -r does it: what is behind the place of reading is removed.
        let mut removed = 0;
        for entry in fs::read_dir(&large).unwrap().map(Result::unwrap) {
            fs::remove_file(entry.path()).unwrap();
            removed += 1;
        }
        assert_eq!(removed, ENTRIES);
        fs::remove_dir(&large).unwrap();
    });
}

#[test]
fn permissions_hold_for_other_users() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can become another user");
        return;
    }
    if !installed(&["setpriv"]) {
        return;
    }
    on_a_mount(|dir, _| {
        run(
            dir,
            "echo secret > mine; chmod 600 mine; echo group > ours; chown 0:61001 ours; chmod 640 ours",
        );
        run(
            dir,
            "mkdir closed sticky; echo x > closed/x; chmod 700 closed; echo x > sticky/x; chmod 1777 sticky",
        );
        let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
        let member = "setpriv --reuid=65534 --regid=65534 --groups=4,61001,70000";
        for script in [
            "cat mine",
            "cat ours",
            "cat closed/x",
            "ls closed",
            "rm -f sticky/x",
            "chmod 777 mine",
        ] {
            let said = refused(dir, &format!("{nobody} {script}"));
            let denied = said.contains("ermission denied") || said.contains("not permitted");
            assert!(denied, "{script}: {said}");
        }
        assert_eq!(run(dir, &format!("{member} cat ours")), "group\n");
        refused(dir, &format!("{member} sh -c 'echo x >> ours'"));
        run(
            dir,
            &format!(
                "{nobody} sh -c 'echo theirs > theirs; mkdir sub; echo x > sub/x; mv sub/x sub/y'"
            ),
        );
        assert_eq!(run(dir, "stat -c %u:%g theirs sub sub/y"), "65534:65534\n".repeat(3));
        // A file that its owner may not write goes on through the descriptor that made it.
        run(dir, &format!("{nobody} sh -c 'umask 777; echo x > none'"));
        assert_eq!(run(dir, "cat none; stat -c %a none"), "x\n0\n");
        // Who writes into a program takes its rights away.
        run(dir, "cp /bin/true su; chown 65534 su; chmod 6777 su");
        run(dir, &format!("{member} sh -c 'echo x >> su'"));
        assert_eq!(run(dir, "stat -c %a su"), "777\n");
    });
}

#[test]
fn processes_append_and_lock() {
    if !installed(&["flock", "seq"]) {
        return;
    }
    on_a_mount(|dir, _| {
        let spawn = |script: &str| shell(dir, script).spawn().unwrap();
        let finish = |children: Vec<std::process::Child>| {
            for mut child in children {
                let status = ended(&mut child, Duration::from_secs(120));
                assert!(status.is_some_and(|status| status.success()), "{status:?}");
            }
        };
        let append =
            |who: &str| spawn(&format!("for i in $(seq 300); do echo {who} $i >> log; done"));
        finish(vec![append("one"), append("two"), append("three")]);
        for who in ["one", "two", "three"] {
            let wrote = run(dir, &format!("grep -ax '{who} [0-9]*' log"));
            let expected: Vec<_> = (1..=300).map(|number| format!("{who} {number}")).collect();
            assert_eq!(wrote.lines().collect::<Vec<_>>(), expected);
        }
        fs::write(dir.join("count"), "0\n").unwrap();
        let count = "for i in $(seq 60); do flock lock sh -c 'read n < count; echo $((n + 1)) > count'; done";
        finish(vec![spawn(count), spawn(count), spawn(count)]);
        assert_eq!(fs::read_to_string(dir.join("count")).unwrap(), "180\n");
    });
}

#[test]
fn open_files_need_no_name() {
    on_a_mount(|dir, _| {
        let path = dir.join("doomed");
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(&[1; 3000]).unwrap();
        let mut reader = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "another").unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(&[2; 2_000_000], 3000).unwrap();
        file.set_len(1_500_000).unwrap();
        file.sync_all().unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1_500_000);
        assert!(
            bytes[..3000].iter().all(|&byte| byte == 1)
                && bytes[3000..].iter().all(|&byte| byte == 2)
        );
        assert_eq!(fs::read(&path).unwrap(), b"another");
        // And a name can be replaced under those who read it.
        fs::write(dir.join("old"), "old").unwrap();
        let mut old = File::open(dir.join("old")).unwrap();
        fs::write(dir.join("new"), "new!").unwrap();
        fs::rename(dir.join("new"), dir.join("old")).unwrap();
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
        assert_eq!(fs::read(dir.join("old")).unwrap(), b"new!");
    });
}

#[test]
fn files_are_large_and_have_holes() {
    const MIB: usize = 1 << 20;
    const LENGTH: usize = 200;
    on_a_mount(|dir, mount| {
        let block = |number: usize| tree::bytes(&mut fastrand::Rng::with_seed(number as u64), MIB);
        let mut file = File::create(dir.join("large")).unwrap();
        (0..LENGTH).for_each(|number| file.write_all(&block(number)).unwrap());
        file.sync_all().unwrap();
        drop(file);
        let sparse = File::create(dir.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        sparse.write_all_at(b"middle", 1 << 39).unwrap();
        sparse.write_all_at(b"end", (1 << 40) - 3).unwrap();
        drop(sparse);
        mount.unmount();
        mount.mount_again();
        let mut file = File::open(dir.join("large")).unwrap();
        let mut found = vec![0; MIB];
        for number in 0..LENGTH {
            file.read_exact(&mut found).unwrap();
            assert!(found == block(number), "MiB {number}");
        }
        assert_eq!(file.read(&mut found).unwrap(), 0);
        let mut sparse = File::open(dir.join("sparse")).unwrap();
        assert_eq!(sparse.metadata().unwrap().len(), 1 << 40);
        let mut around = [1; 16];
        sparse.read_exact_at(&mut around, (1 << 39) - 5).unwrap();
        assert_eq!(&around, b"\0\0\0\0\0middle\0\0\0\0\0");
        sparse.seek(SeekFrom::End(-5)).unwrap();
        let mut end = Vec::new();
        sparse.read_to_end(&mut end).unwrap();
        assert_eq!(end, b"\0\0end");
    });
}

#[test]
fn a_mount_can_be_read_only_or_a_part() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start(1, 1);
    let whole = cluster.mount();
    let part = whole.make_dir("part");
    fs::write(part.join("file"), "content").unwrap();
    let read_only = cluster.mount_with(&["--read-only"]);
    let file = read_only.path().join("part/file");
    assert_eq!(fs::read(&file).unwrap(), b"content");
    let permissions = fs::Permissions::from_mode(0o600);
    for refused in [
        fs::write(&file, "other"),
        fs::write(read_only.path().join("new"), ""),
        fs::remove_file(&file),
        fs::create_dir(read_only.path().join("dir")),
        fs::set_permissions(&file, permissions),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    let subtree = cluster.mount_with(&["--subtree", "/part"]);
    assert_eq!(fs::read(subtree.path().join("file")).unwrap(), b"content");
    assert!(!subtree.path().join("part").exists());
    assert!(!subtree.path().join("../part").exists(), "nothing is above a subtree");
    fs::rename(subtree.path().join("file"), subtree.path().join("moved")).unwrap();
    fs::create_dir(subtree.path().join("dir")).unwrap();
    fs::write(subtree.path().join("dir/new"), "new").unwrap();
    let seen = cluster::mount::wait_for(Duration::from_secs(5), || {
        fs::read(part.join("dir/new")).ok().filter(|_| !part.join("file").exists())
    });
    assert_eq!(seen.as_deref(), Some(b"new".as_slice()));
}
