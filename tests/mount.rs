//! The mount beside a local directory: the same random operations in both, and two mounts that see what
//! the other one did.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod model;

use cluster::TestCluster;
use cluster::mount::{pause, possible, wait_for};
use model::op::{Fill, Op};
use model::user::{as_user, may_switch};
use model::world::Defect;
use model::{Pair, random_run, two, wanted};
use rustix::fs::{RenameFlags, XattrFlags, getxattr, setxattr};
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::Duration;

#[test]
fn two_local_directories_are_the_same() {
    let local = tempfile::tempdir().unwrap();
    let (model, tried) = (model::open_dir(local.path(), "a"), model::open_dir(local.path(), "b"));
    let pair = Pair { model: &model, tried: &tried };
    let (seed, steps) = wanted(600);
    let name = random_run(&pair, seed, steps);
    model::compare(&pair, &name);
    two::random_run(&model, [&tried, &tried], seed + 1, steps / 6);
}

#[test]
fn defects_are_found() {
    let local = tempfile::tempdir().unwrap();
    let (model, tried) = (model::open_dir(local.path(), "a"), model::open_dir(local.path(), "b"));
    let pair = Pair { model: &model, tried: &tried };
    let defects: [(&str, Defect); 6] = [
        ("long writes lose their last byte", |op| match *op {
            Op::WriteAt { slot, at, fill } if fill.length > 70_000 => {
                let fill = Fill { length: fill.length - 1, ..fill };
                Some(Op::WriteAt { slot, at, fill })
            }
            _ => None,
        }),
        ("lengths are not cut across a chunk", |op| match *op {
            Op::SetLength { slot, length: 0x10_0000.. } => Some(Op::Attr { slot }),
            _ => None,
        }),
        ("a rename replaces what is there", |op| match op {
            Op::Rename { from, to, flags } if flags.contains(RenameFlags::NOREPLACE) => {
                let (from, to) = (from.clone(), to.clone());
                Some(Op::Rename { from, to, flags: RenameFlags::empty() })
            }
            _ => None,
        }),
        ("groups do not count", |op| match op {
            Op::Become(2) => Some(Op::Become(3)),
            _ => None,
        }),
        ("a hole is not punched through its last block", |op| match *op {
            Op::Allocate { slot, how, at, length } if length > 4096 => {
                Some(Op::Allocate { slot, how, at, length: length - 4096 })
            }
            _ => None,
        }),
        ("a mapping is not written back", |op| match *op {
            Op::MapWrite { slot, at, fill } => Some(Op::MapRead { slot, at, length: fill.length }),
            _ => None,
        }),
    ];
    for (number, (what, defect)) in defects.into_iter().enumerate() {
        if what.starts_with("groups") && !rustix::process::geteuid().is_root() {
            continue;
        }
        let seed = 1000 * number as u64;
        let found = (seed..seed + 5).find(|&seed| model::finds(&pair, seed, 3000, defect));
        assert!(found.is_some(), "{what}: not found");
    }
}

#[test]
fn a_mount_does_what_a_local_directory_does() {
    if !possible() {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let model = model::open_dir(local.path(), "model");
    let cluster = TestCluster::start(3, 3);
    let mut mount = cluster.mount();
    let tried = mount.make_dir("tried");
    let (seed, steps) = wanted(900);
    let pair = Pair { model: &model, tried: &tried };
    random_run(&pair, seed, steps);
    // Several at a time, each in its own directory.
    std::thread::scope(|scope| {
        for number in 1..=3 {
            scope.spawn(move || random_run(&pair, seed + number, steps / 3));
        }
    });
    mount.unmount();
    mount.mount_again();
    for number in 0..=3 {
        model::compare(&pair, &format!("run-{}", seed + number));
    }
    mount.unmount();
}

#[test]
fn what_one_mount_has_closed_another_one_sees() {
    if !possible() {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let model = model::open_dir(local.path(), "model");
    let cluster = TestCluster::start(3, 3);
    let (one, other) = (cluster.mount(), cluster.mount());
    let tried = [&one.make_dir("tried"), &other.path().join("tried")];
    let (seed, steps) = wanted(150);
    two::random_run(&model, tried.map(|path| path.as_path()), seed, steps);
}

#[test]
fn what_one_mount_appends_another_one_sees_before_it_is_closed() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start(3, 3);
    let (one, other) = (cluster.mount(), cluster.mount());
    let (path, seen) = (one.path().join("log"), other.path().join("log"));
    let file = File::create(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let mut model = Vec::new();
    for _ in 0..3 {
        let bytes = cluster::tree::bytes(&mut random, 1_500_000);
        file.write_all_at(&bytes, model.len() as u64).unwrap();
        model.extend(bytes);
        let grown = || {
            let read = std::fs::read(&seen).unwrap();
            assert!(model.starts_with(&read), "bytes that nobody wrote");
            let length = std::fs::metadata(&seen).unwrap().len();
            (length == model.len() as u64 && read.len() == model.len()).then_some(())
        };
        assert!(wait_for(Duration::from_secs(20), grown).is_some(), "it does not grow");
        assert!(std::fs::read(&path).unwrap() == model);
    }
}

/// The kernel asks for capabilities before a write; that there are none is remembered.
#[test]
fn capabilities_that_another_mount_gives_go_with_the_next_write() {
    if !possible() || !rustix::process::geteuid().is_root() {
        return;
    }
    let cluster = TestCluster::start(1, 1);
    let (one, other) = (cluster.mount(), cluster.mount());
    let (path, seen) = (one.path().join("f"), other.path().join("f"));
    let file = File::create(&path).unwrap();
    let write = || {
        file.metadata().unwrap();
        file.write_at(b"program", 0).unwrap();
    };
    // Version 2, effective: CAP_NET_BIND_SERVICE.
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let has_it = || getxattr(&seen, "security.capability", &mut [0_u8; 20]) == Ok(20);
    for path in [&seen, &path] {
        write();
        write();
        setxattr(path, "security.capability", &value, XattrFlags::empty()).unwrap();
        assert!(has_it());
        let gone = || {
            write();
            (!has_it()).then_some(())
        };
        assert!(wait_for(Duration::from_secs(20), gone).is_some(), "it stays");
    }
}

#[test]
fn set_id_bits_that_another_mount_gives_go_with_a_users_next_write_and_with_none_before() {
    if !possible() || !may_switch() {
        return;
    }
    let cluster = TestCluster::start(1, 1);
    let (one, other) = (cluster.mount(), cluster.mount());
    let (path, seen) = (one.path().join("f"), other.path().join("f"));
    let file = File::create(&path).unwrap();
    let write = |user| as_user(user, || file.write_at(b"program", 0)).unwrap();
    let mode = || std::fs::metadata(&seen).unwrap().mode() & 0o7777;
    for path in [&seen, &path, &seen] {
        write(1);
        std::fs::set_permissions(path, Permissions::from_mode(0o6755)).unwrap();
        file.sync_all().unwrap();
        assert_eq!(mode(), 0o6755, "it was written before");
        write(0);
        file.sync_all().unwrap();
        assert_eq!(mode(), 0o6755, "root may keep them");
        write(1);
        assert_eq!(mode(), 0o755, "at once");
    }
}

/// That a file is open for reading is in the metadata server's memory only.
#[test]
fn what_is_read_outlives_its_name_and_the_memory_of_the_metadata_server() {
    if !possible() {
        return;
    }
    let mut cluster = TestCluster::start(3, 3);
    let (one, other) = (cluster.mount(), cluster.mount());
    let content = cluster::tree::bytes(&mut fastrand::Rng::with_seed(3), 300_000);
    let names: Vec<String> = (0..8).map(|number| format!("f{number}")).collect();
    for name in &names {
        std::fs::write(other.path().join(name), &content).unwrap();
    }
    let open = |name: &String| File::open(one.path().join(name)).unwrap();
    let files: Vec<File> = names.iter().skip(2).map(open).collect();
    cluster.kill("meta");
    cluster.restart("meta");
    // Before all is told what is open.
    std::fs::remove_file(other.path().join(&names[2])).unwrap();
    pause(Duration::from_secs(4));
    for name in names.iter().filter(|name| **name != names[2]) {
        std::fs::remove_file(other.path().join(name)).unwrap();
    }
    let chunks = |count: &str| cluster.check().contains(count).then_some(());
    // It is known that the others are not open, long before whoever may have had them open counts as dead.
    let others_went = wait_for(Duration::from_secs(40), || chunks(" 6 chunks"));
    assert!(others_went.is_some(), "{}", cluster.check());
    for file in files {
        let mut read = vec![0; content.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == content && file.metadata().unwrap().nlink() == 0);
    }
    let all_went = wait_for(Duration::from_secs(60), || chunks(" 0 chunks"));
    assert!(all_went.is_some(), "{}", cluster.check());
}
