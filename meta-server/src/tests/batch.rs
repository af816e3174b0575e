//! Several operations as one change: bounds, repetitions, confinement. What each of them does is in `random`.

use super::{CHUNK, READ, ROOT, WRITE, code, root, simulate};
use crate::Keeper;
use crate::store::{CloseArgs, CreateArgs, Report, SetAttrArgs, Who, Written};
use kiln_types::{Code, InodeId, Result};
use std::sync::Arc;

fn codes<T>(results: Vec<Result<T>>) -> Vec<Option<Code>> {
    results.into_iter().map(|result| code(result).err()).collect()
}

fn new(parent: InodeId, name: &str) -> CreateArgs {
    let name = name.as_bytes().to_vec();
    CreateArgs { parent, name, mode: 0o644, exclusive: true, open: WRITE, ..CreateArgs::default() }
}

#[test]
fn a_batch_is_bounded_and_repeated_as_a_whole() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let many: Vec<_> = (0..257).map(|number| new(ROOT, &number.to_string())).collect();
        let change = client.change();
        let refused = world.store.create_many(&change, &many, false).await;
        assert_eq!(code(refused).err(), Some(Code::Invalid));
        let ids = vec![ROOT; 1025];
        let refused = world.store.stat_many(&root(), &ids, (ROOT, &[])).await;
        assert_eq!(code(refused).err(), Some(Code::Invalid));

        let change = client.change();
        let some = [new(ROOT, "a"), new(ROOT, "a"), new(ROOT, &"x".repeat(256)), new(ROOT, "b")];
        let made = world.store.create_many(&change, &some, false).await.expect("an answer");
        let other = world.another().await.store;
        let again = other.create_many(&change, &some, false).await.expect("the same answer");
        let known = |all: &[Result<crate::store::Opened>]| -> Vec<_> {
            all.iter().map(|one| one.clone().map(|opened| (opened.attr, opened.session))).collect()
        };
        assert_eq!(known(&made), known(&again));
        let expected = [None, Some(Code::Exists), Some(Code::NameTooLong), None];
        assert_eq!(codes(made.clone()), expected);
        let change = client.change();
        let close = |opened: &crate::store::Opened| {
            let written = Written { end: CHUNK, epoch: opened.attr.epoch, ..Written::default() };
            let session = opened.session.expect("an open file");
            CloseArgs {
                report: Report { inode: opened.attr.inode, session, written },
                set: SetAttrArgs { mode: Some(0o600), ..SetAttrArgs::default() },
                link: Some((ROOT, b"b".to_vec())),
            }
        };
        let files: Vec<_> = made.iter().flatten().map(close).collect();
        let closed = world.store.close_many(&change, &files).await.expect("an answer");
        assert_eq!(codes(closed), [Some(Code::Exists); 2]);
        // What came before the refusal is done, and the files are still open.
        let a = client.lookup(ROOT, "a").await.expect("it");
        assert_eq!((a.length, a.mode), (CHUNK, 0o600));
        let opened = made[0].as_ref().expect("checked");
        client.close(opened, CHUNK).await.expect("a close");
    });
}

#[test]
fn in_a_batch_nobody_leaves_their_directory() {
    simulate(2, false, |world| async move {
        let mut client = world.client(1);
        let home = client.mkdir(ROOT, "home", 0o777).await.expect("a directory").inode;
        let secret = client.create(ROOT, "secret", 0o644, READ).await.expect("a file").attr.inode;
        let inside = client.create(home, "file", 0o644, READ).await.expect("a file").attr.inode;
        let mut guest = world.client(2);
        guest.who = Who { subtree: Some("/home".into()), credential: "guest".into(), ..root() };
        let names = [b"file".to_vec(), b"secret".to_vec()];
        let stats = world.store.stat_many(&guest.who, &[inside, secret], (ROOT, &names)).await;
        let expected = [None, Some(Code::NotAuthorized), None, Some(Code::NotFound)];
        assert_eq!(codes(stats.expect("an answer")), expected);
        let change = guest.change();
        let other = client.mkdir(ROOT, "other", 0o777).await.expect("a directory").inode;
        let files = [new(ROOT, "new"), new(other, "new"), new(home, "more")];
        let made = world.store.create_many(&change, &files, false).await.expect("an answer");
        assert_eq!(codes(made), [None, Some(Code::NotAuthorized), None]);
        client.lookup(home, "new").await.expect("it is in their root");
        let change = guest.change();
        let opened = world.store.open_path(&change, (ROOT, b"/../secret"), READ).await;
        assert_eq!(code(opened).err(), Some(Code::NotFound));
        let change = guest.change();
        let opened = world.store.open_path(&change, (ROOT, b"/file"), READ).await;
        assert_eq!(opened.expect("a file").attr.inode, inside);
    });
}

#[test]
fn a_file_whose_writer_told_a_part_and_died_ends_where_storage_says() {
    simulate(3, false, |world| async move {
        let (mut dead, other) = (world.client(1), world.client(2));
        let file = dead.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let (inode, epoch) = (file.attr.inode, file.attr.epoch);
        for at in 0..3 {
            world.chunks.write(&file.attr, epoch, at * CHUNK, 7).expect("a write");
        }
        let session = file.session.expect("an open file");
        let report =
            |end| Report { inode, session, written: Written { end, epoch, ..Written::default() } };
        let told = world.store.report(&dead.change(), &[report(CHUNK + 1)]).await;
        assert_eq!(codes(told.expect("an answer")), [None]);
        assert_eq!(other.attr(inode).await.expect("it").length, CHUNK + 1);
        world.store.keep_alive(&root(), dead.id, true).await.expect("a goodbye");
        let late = world.store.report(&dead.change(), &[report(9 * CHUNK)]).await;
        assert_eq!(code(late).err(), Some(Code::ClientEvicted));
        Keeper::new(Arc::clone(&world.store)).round().await.expect("a round");
        assert_eq!(other.attr(inode).await.expect("it").length, 2 * CHUNK + 1);
    });
}
