//! Who may do what, said by hand.

use crate::store::{SetAttrArgs, SetTime, Written};
use crate::tests::{Client, READ, ROOT, WRITE, World, code, simulate, user};
use kiln_types::{Code, InodeId, Result, Timestamp};

const DENIED: Result<(), Code> = Err(Code::PermissionDenied);
const NOT_OWNER: Result<(), Code> = Err(Code::NotPermitted);
const OK: Result<(), Code> = Ok(());

/// A tree of user 10 in group 100, and users around it.
struct Tree {
    client: Client,
    open: InodeId,
    sticky: InodeId,
    closed: InodeId,
    listed: InodeId,
    file: InodeId,
}

const OWNER: (u32, u32) = (10, 100);
const GROUP: (u32, u32) = (11, 100);
const OTHER: (u32, u32) = (12, 300);
const SUPER: (u32, u32) = (0, 0);

async fn tree(world: &World) -> Tree {
    let mut client = world.client(1);
    let change = client.change();
    let all = SetAttrArgs { mode: Some(0o777), ..SetAttrArgs::default() };
    world.store.set_attr(&change, ROOT, &all).await.expect("chmod");
    client.with(user(OWNER.0, OWNER.1, &[]));
    let open = client.mkdir(ROOT, "open", 0o777).await.expect("a directory").inode;
    let sticky = client.mkdir(ROOT, "sticky", 0o1777).await.expect("a directory").inode;
    let closed = client.mkdir(ROOT, "closed", 0o700).await.expect("a directory").inode;
    let listed = client.mkdir(ROOT, "listed", 0o744).await.expect("a directory").inode;
    for directory in [open, sticky, closed, listed] {
        client.touch(directory, "f", 0o640).await.expect("a file");
    }
    let file = client.lookup(open, "f").await.expect("it").inode;
    Tree { client, open, sticky, closed, listed, file }
}

impl Tree {
    fn by(&mut self, (uid, gid): (u32, u32)) -> &mut Client {
        self.client.with(user(uid, gid, &[]))
    }

    async fn set(
        &mut self,
        who: (u32, u32),
        inode: InodeId,
        args: SetAttrArgs,
    ) -> Result<(), Code> {
        let client = self.by(who);
        let change = client.change();
        code(client.world.store.set_attr(&change, inode, &args).await).map(|_| ())
    }
}

#[test]
fn directories_need_search_write_and_read() {
    simulate(1, false, |world| async move {
        let mut t = tree(&world).await;
        let (open, closed, listed) = (t.open, t.closed, t.listed);
        for (who, directory, look, make, list) in [
            (OWNER, closed, OK, OK, OK),
            (GROUP, closed, DENIED, DENIED, DENIED),
            (SUPER, closed, OK, OK, OK),
            (OTHER, listed, DENIED, DENIED, OK),
            (OTHER, open, OK, OK, OK),
        ] {
            let client = t.by(who);
            assert_eq!(code(client.lookup(directory, "f").await).map(|_| ()), look, "{who:?}");
            let name = format!("new{}", who.0);
            let made = code(client.mkdir(directory, &name, 0o755).await).map(|_| ());
            assert_eq!(made, make, "{who:?}");
            let listing = world.store.read_dir(&client.who, directory, 0, 0, true).await;
            if let Ok((entries, _)) = &listing {
                let shown = entries.iter().all(|entry| entry.attr.is_some() == look.is_ok());
                assert!(shown, "attributes take the right to search: {who:?}");
            }
            assert_eq!(code(listing).map(|_| ()), list, "{who:?}");
        }
        let moved = t.by(OTHER).rename((open, "f"), (closed, "g")).await;
        assert_eq!(code(moved), DENIED);
        // A directory's own bits count when its parent changes.
        let client = t.by(OWNER);
        client.mkdir(open, "sub", 0o755).await.expect("a directory");
        let moved = t.by(OTHER).rename((open, "sub"), (ROOT, "sub")).await;
        assert_eq!(code(moved), DENIED);
        t.by(OTHER).rename((open, "sub"), (open, "renamed")).await.expect("within its directory");
    });
}

#[test]
fn files_open_by_their_mode() {
    simulate(2, false, |world| async move {
        let mut t = tree(&world).await;
        let (file, open) = (t.file, t.open);
        for (who, read, write) in
            [(OWNER, OK, OK), (GROUP, OK, DENIED), (OTHER, DENIED, DENIED), (SUPER, OK, OK)]
        {
            let client = t.by(who);
            assert_eq!(code(client.open(file, READ).await).map(|_| ()), read, "{who:?}");
            assert_eq!(code(client.open(file, WRITE).await).map(|_| ()), write, "{who:?}");
            assert_eq!(code(client.truncate(file, 5).await).map(|_| ()), write, "{who:?}");
        }
        // Who makes a file may write it, whatever its mode, and goes on when the mode changes.
        let made = t.by(OTHER).create(open, "mine", 0o400, WRITE).await.expect("a file");
        t.by(OTHER).sync(&made, 9).await.expect("a sync");
        assert_eq!(code(t.by(OTHER).open(made.attr.inode, WRITE).await).map(|_| ()), DENIED);
        let session = made.session;
        let cut = SetAttrArgs { length: Some(3), session, ..SetAttrArgs::default() };
        assert_eq!(t.set(OTHER, made.attr.inode, cut).await, OK);
    });
}

#[test]
fn a_sticky_directory_keeps_others_entries() {
    simulate(3, false, |world| async move {
        let mut t = tree(&world).await;
        let (sticky, open) = (t.sticky, t.open);
        t.by(GROUP).touch(sticky, "g", 0o666).await.expect("a file");
        assert_eq!(code(t.by(OTHER).unlink(sticky, "f").await), NOT_OWNER);
        assert_eq!(code(t.by(OTHER).rename((sticky, "f"), (open, "x")).await), NOT_OWNER);
        t.by(OTHER).touch(sticky, "o", 0o666).await.expect("a file");
        let over = t.by(OTHER).rename((sticky, "o"), (sticky, "f")).await;
        assert_eq!(code(over), NOT_OWNER, "over another's");
        t.by(GROUP).unlink(sticky, "g").await.expect("one's own");
        t.by(OWNER).unlink(sticky, "o").await.expect("in one's own directory");
        t.by(SUPER).unlink(sticky, "f").await.expect("root");
    });
}

#[test]
fn only_owners_change_attributes() {
    simulate(4, false, |world| async move {
        let mut t = tree(&world).await;
        let file = t.file;
        let mode = |mode| SetAttrArgs { mode: Some(mode), ..SetAttrArgs::default() };
        let uid = |uid| SetAttrArgs { uid: Some(uid), ..SetAttrArgs::default() };
        let gid = |gid| SetAttrArgs { gid: Some(gid), ..SetAttrArgs::default() };
        let now = SetAttrArgs { mtime: Some(SetTime::Now), ..SetAttrArgs::default() };
        let then = SetTime::At(Timestamp(5));
        let then = SetAttrArgs { mtime: Some(then), ..SetAttrArgs::default() };
        for (who, args, expected) in [
            (GROUP, mode(0o777), NOT_OWNER),
            (OWNER, mode(0o660), OK),
            (GROUP, now.clone(), OK),
            (OTHER, now.clone(), DENIED),
            (GROUP, then.clone(), NOT_OWNER),
            (OWNER, then, OK),
            (OWNER, uid(11), NOT_OWNER),
            (OWNER, uid(10), OK),
            (OWNER, gid(300), NOT_OWNER),
            (OWNER, gid(100), OK),
            (OTHER, gid(300), NOT_OWNER),
            (SUPER, uid(12), OK),
            (OTHER, gid(300), OK),
        ] {
            assert_eq!(t.set(who, file, args.clone()).await, expected, "{who:?} {args:?}");
        }
        let attr = t.by(SUPER).attr(file).await.expect("it");
        assert_eq!((attr.uid, attr.gid, attr.mode), (12, 300, 0o660));
        // All or nothing.
        let both = SetAttrArgs { mode: Some(0o600), uid: Some(99), ..SetAttrArgs::default() };
        assert_eq!(t.set(OTHER, file, both).await, NOT_OWNER);
        assert_eq!(t.by(SUPER).attr(file).await.expect("it").mode, 0o660);
    });
}

#[test]
fn a_programs_set_id_bits_do_not_survive_others_writes() {
    simulate(5, false, |world| async move {
        let mut t = tree(&world).await;
        let open = t.open;
        let program = t.by(OWNER).touch(open, "p", 0o6777).await.expect("a file").inode;
        let opened = t.by(OTHER).open(program, WRITE).await.expect("an open");
        assert_eq!(t.by(OTHER).sync(&opened, 0).await.expect("nothing").mode, 0o6777);
        assert_eq!(t.by(OTHER).sync(&opened, 1).await.expect("a write").mode, 0o777);
        let set = SetAttrArgs { mode: Some(0o6777), ..SetAttrArgs::default() };
        assert_eq!(t.set(OWNER, program, set).await, OK);
        let (change, session) = (t.by(OTHER).change(), opened.session.expect("an open file"));
        let seen_to = Written { end: 2, keeps_set_ids: true, ..Written::default() };
        let synced = world.store.sync(&change, program, session, &seen_to).await;
        assert_eq!(synced.expect("a write").mode, 0o6777, "the kernel sees to it");
        assert_eq!(t.by(OTHER).truncate(program, 0).await.expect("a cut").mode, 0o777);
    });
}
