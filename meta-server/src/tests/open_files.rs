//! Open files: who holds them, what lives through them, and how they end.

use crate::Keeper;
use crate::store::{CreateArgs, SetAttrArgs, SetTime, Settings, Who, Written};
use crate::tests::{CHUNK, READ, ROOT, WRITE, World, code, invariants, key, root, simulate};
use kiln_types::{ChainId, ClientId, Code, RequestId, Timestamp, TreeId};
use kiln_wire::Capability;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn keeper(world: &World) -> Keeper {
    Keeper::new(Arc::clone(&world.store))
}

#[test]
fn an_unlinked_file_lives_as_long_as_a_reader_holds_it() {
    simulate(1, false, |world| async move {
        let (mut a, mut b) = (world.client(1), world.client(2));
        let file = a.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        world.chunks.write(&file.attr, file.attr.epoch, 5, 7).expect("a write");
        a.close(&file, 6).await.expect("a close");
        let reader = b.open(file.attr.inode, READ).await.expect("an open");
        a.unlink(ROOT, "f").await.expect("an unlink");
        let mut keeper = keeper(&world);
        for _ in 0..20 {
            world.env.sleep(Duration::from_secs(10)).await;
            world.store.keep_alive(&root(), b.id, false).await.expect("a beat");
            keeper.round().await.expect("a round");
        }
        // Another server, which knows of nothing but kv, finds it as it is.
        let restarted = world.another().await;
        let attr = restarted.store.get_attr(&root(), file.attr.inode).await.expect("it");
        assert_eq!((attr.links, attr.length, world.chunks.read(&attr, 5)), (0, 6, 7));
        b.renew(&reader).await.expect("a renewal");
        invariants::check(&world).await;
        b.close(&reader, 0).await.expect("a close");
        assert_eq!(code(a.attr(file.attr.inode).await), Err(Code::StaleHandle));
        keeper.round().await.expect("a round");
        assert_eq!(world.chunks.stored(), []);
        invariants::check(&world).await;
    });
}

#[test]
fn many_open_files_end_at_once_and_again() {
    simulate(5, false, |world| async move {
        let (mut client, other) = (world.client(1), world.client(2));
        let mut sessions = Vec::new();
        for name in ["a", "b"] {
            let file = client.create(ROOT, name, 0o644, WRITE).await.expect("a file");
            sessions.extend(file.session);
        }
        let file = client.lookup(ROOT, "b").await.expect("a file").inode;
        client.unlink(ROOT, "b").await.expect("unlink");
        client.attr(file).await.expect("it is open");
        // Another client has no such sessions, and another credential not this client.
        world.store.end_sessions(&root(), other.id, &sessions).await.expect("nothing to do");
        client.attr(file).await.expect("it is open");
        let stranger = Who { credential: "stranger".into(), ..root() };
        let refused = world.store.end_sessions(&stranger, client.id, &sessions).await;
        assert_eq!(code(refused), Err(Code::NotAuthorized));
        for _ in 0..2 {
            world.store.end_sessions(&root(), client.id, &sessions).await.expect("an end");
        }
        assert_eq!(code(client.attr(file).await), Err(Code::StaleHandle));
        let many = vec![sessions[0]; 257];
        let refused = world.store.end_sessions(&root(), client.id, &many).await;
        assert_eq!(code(refused), Err(Code::Invalid));
        invariants::check(&world).await;
    });
}

#[test]
fn a_time_that_is_set_after_writing_stays() {
    simulate(4, false, |world| async move {
        let mut client = world.client(1);
        let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let then = Timestamp(1_000_000_000);
        let args = SetAttrArgs {
            mtime: Some(SetTime::At(then)),
            session: file.session,
            written: Written { end: 9, epoch: file.attr.epoch, ..Written::default() },
            ..SetAttrArgs::default()
        };
        let change = client.change();
        let attr = world.store.set_attr(&change, file.attr.inode, &args).await.expect("a change");
        assert_eq!((attr.length, attr.mtime), (9, then));
        let attr = client.close(&file, 0).await.expect("a close");
        assert_eq!((attr.length, attr.mtime), (9, then));
        let reader = client.open(file.attr.inode, READ).await.expect("an open");
        let args = SetAttrArgs { session: reader.session, ..args };
        let change = client.change();
        let refused = world.store.set_attr(&change, file.attr.inode, &args).await;
        assert_eq!(code(refused), Err(Code::BadHandle));
    });
}

#[test]
fn garbage_waits_for_storage_and_outlives_servers() {
    simulate(2, false, |world| async move {
        let mut client = world.client(1);
        let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        world.chunks.write(&file.attr, file.attr.epoch, 3 * CHUNK, 7).expect("a write");
        client.close(&file, 3 * CHUNK + 1).await.expect("a close");
        client.unlink(ROOT, "f").await.expect("an unlink");
        world.chunks.down.store(true, Ordering::Relaxed);
        let mut tries = keeper(&world);
        tries.round().await.expect("a round");
        let (listed, _) = world.store.list_inodes(ROOT, 0).await.expect("a list");
        assert!(listed.len() == 1 && listed[0].removed && listed[0].inode == file.attr.inode);
        world.chunks.down.store(false, Ordering::Relaxed);
        tries.round().await.expect("a round");
        assert_eq!(world.chunks.stored().len(), 1, "it waits before it tries again");
        let restarted = world.another().await;
        let mut keeper = keeper(&restarted);
        keeper.round().await.expect("a round");
        assert_eq!(world.chunks.stored(), []);
        // Its writer's capability has not ended: what comes late is removed too.
        world.chunks.write(&file.attr, file.attr.epoch, CHUNK, 8).expect("a late write");
        world.env.sleep(Duration::from_secs(30)).await;
        keeper.round().await.expect("a round");
        assert_eq!(world.chunks.stored().len(), 1);
        world.env.sleep(Duration::from_secs(50)).await;
        keeper.round().await.expect("a round");
        assert_eq!(world.chunks.stored(), []);
        assert_eq!(world.store.list_inodes(ROOT, 0).await.expect("a list"), (vec![], true));
    });
}

#[test]
fn files_that_nobody_wrote_for_long_are_collected_in_one_go() {
    simulate(8, false, |world| async move {
        let mut client = world.client(1);
        for n in 0..300 {
            let file = client.create(ROOT, &format!("{n}"), 0o644, WRITE).await.expect("a file");
            world.chunks.write(&file.attr, file.attr.epoch, n % 7 * CHUNK, 7).expect("a write");
            client.close(&file, n % 7 * CHUNK + 1).await.expect("a close");
        }
        world.env.sleep(Duration::from_secs(80)).await;
        let keeper = keeper(&world);
        let running = world.env.spawn("keeper", keeper.run());
        for n in 0..300 {
            client.unlink(ROOT, &format!("{n}")).await.expect("an unlink");
        }
        world.env.sleep(Duration::from_secs(1)).await;
        assert_eq!(world.chunks.stored(), []);
        assert_eq!(invariants::dump(&world).await.get(&b'G'), None);
        // Not one by one: few sweeps, each of many files, on each of 4 chains.
        let sweeps = world.chunks.sweeps.load(Ordering::Relaxed);
        assert!(sweeps <= 4 * 4, "{sweeps} sweeps");
        drop(running);
    });
}

#[test]
fn a_chain_that_is_away_keeps_only_its_own_chunks() {
    simulate(9, false, |world| async move {
        let mut client = world.client(1);
        let running = world.env.spawn("keeper", keeper(&world).run());
        let away = ChainId(2);
        world.chunks.away.lock().insert(away);
        for n in 0..50 {
            let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
            for index in 0..4 {
                let (attr, offset) = (&file.attr, index * CHUNK);
                world.chunks.write(attr, attr.epoch, offset, 7).expect("a write");
            }
            client.close(&file, 3 * CHUNK + 1).await.expect("a close");
            client.unlink(ROOT, "f").await.expect("an unlink");
            world.env.sleep(Duration::from_secs(7)).await;
            world.store.keep_alive(&root(), client.id, false).await.expect("a beat");
            // Chunk 2 of each file is on that chain.
            let stored = world.chunks.stored();
            assert!(stored.len() == n + 1 && stored.iter().all(|(_, index)| *index == 2));
        }
        world.chunks.away.lock().clear();
        world.env.sleep(Duration::from_secs(10)).await;
        assert_eq!(world.chunks.stored(), []);
        world.env.sleep(Duration::from_secs(100)).await;
        assert_eq!(invariants::dump(&world).await.get(&b'G'), None);
        drop(running);
    });
}

#[test]
fn a_dead_writers_file_ends_where_storage_says() {
    simulate(3, false, |world| async move {
        let (mut dead, mut other) = (world.client(1), world.client(2));
        let file = dead.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let orphan = dead.create(ROOT, "o", 0o644, WRITE).await.expect("a file");
        for file in [&file, &orphan] {
            world.chunks.write(&file.attr, file.attr.epoch, CHUNK + 9, 7).expect("a write");
        }
        other.unlink(ROOT, "o").await.expect("an unlink");
        let mut keeper = keeper(&world);
        let (started, mut evicted) = (world.env.now(), None);
        let Settings { lease, capability, .. } = Settings::default();
        // Silent for its lease, it is retired; its files end when its capabilities surely have.
        while other.attr(file.attr.inode).await.expect("it").length == 0 {
            world.env.sleep(Duration::from_secs(3)).await;
            keeper.round().await.expect("a round");
            world.store.keep_alive(&root(), other.id, false).await.expect("a beat");
            if evicted.is_none() && dead.renew(&file).await.is_err() {
                evicted = Some(world.env.now());
                assert_eq!(code(dead.renew(&file).await), Err(Code::ClientEvicted));
                assert_eq!(code(dead.touch(ROOT, "x", 0o600).await), Err(Code::ClientEvicted));
                let beat = world.store.keep_alive(&root(), dead.id, false).await;
                assert_eq!(code(beat), Err(Code::ClientEvicted));
            }
        }
        let evicted = evicted.expect("evicted before");
        assert!(evicted.since(started) > lease);
        assert!(world.env.now().since(evicted) > capability + Duration::from_secs(10));
        let attr = other.attr(file.attr.inode).await.expect("it");
        assert_eq!((attr.length, world.chunks.read(&attr, CHUNK + 9)), (CHUNK + 10, 7));
        keeper.round().await.expect("a round");
        world.env.sleep(Duration::from_secs(80)).await;
        keeper.round().await.expect("a round");
        invariants::check(&world).await;
        invariants::check_chunks(&world).await;
        assert_eq!(invariants::dump(&world).await.get(&b'H'), None);
        // In the end nothing is kept for it.
        world.env.sleep(Duration::from_secs(25 * 3600)).await;
        for _ in 0..3 {
            world.env.sleep(Duration::from_secs(10)).await;
            keeper.round().await.expect("a round");
        }
        let clients = invariants::dump(&world).await.remove(&b'C').unwrap_or_default();
        assert!(clients.iter().all(|(key, _)| crate::keys::client_of(key) != Ok(dead.id)));
    });
}

#[test]
fn storage_that_is_down_keeps_a_dead_writers_file_open_but_not_others() {
    simulate(4, false, |world| async move {
        let mut dead = world.client(1);
        let file = dead.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let reader = dead.open(file.attr.inode, READ).await.expect("an open");
        world.store.keep_alive(&root(), dead.id, true).await.expect("a goodbye");
        world.store.keep_alive(&root(), dead.id, true).await.expect("a repeated goodbye");
        world.chunks.down.store(true, Ordering::Relaxed);
        let mut keeper = keeper(&world);
        keeper.round().await.expect("a round");
        let handles = invariants::dump(&world).await.remove(&b'H').unwrap_or_default();
        assert_eq!(handles.len(), 1, "only the reader's is closed");
        let reader = reader.session.expect("a session");
        assert_ne!(crate::keys::session_of(&handles[0].0), Ok(reader));
        world.chunks.down.store(false, Ordering::Relaxed);
        world.env.sleep(Duration::from_secs(6)).await;
        keeper.round().await.expect("a round");
        assert_eq!(invariants::dump(&world).await.get(&b'H'), None);
    });
}

#[test]
fn capabilities_say_what_was_granted() {
    simulate(5, false, |world| async move {
        let mut client = world.client(1);
        let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        client.close(&file, 0).await.expect("a close");
        let opened = client.open(file.attr.inode, READ).await.expect("an open");
        let (key, now) = (key(), world.env.wall());
        let verify = |bytes: &[u8]| Capability::verify(bytes, |_| Some(&key), now).expect("valid");
        let read = verify(&opened.capability);
        assert_eq!((read.client, read.tree, read.inode), (client.id, TreeId(0), file.attr.inode));
        assert_eq!((read.read, read.write), (true, false));
        assert_eq!(read.expires, Timestamp(now.0 + opened.lifetime.as_nanos() as i64));
        assert!(verify(&file.capability).write);
        world.env.sleep(Duration::from_secs(30)).await;
        let renewed = verify(&client.renew(&opened).await.expect("a renewal").capability);
        assert_eq!(renewed.expires.0 - read.expires.0, 30_000_000_000);
        let made = client.touch(ROOT, "g", 0o600).await.expect("a file");
        let closed =
            client.open(made.inode, Default::default()).await.expect("no right, no session");
        assert_eq!((closed.session, closed.capability), (None, vec![]));
        let directory = client.open(ROOT, READ).await.expect("a directory");
        assert_eq!(directory.session, None);
    });
}

#[test]
fn sessions_belong_to_their_client_and_clients_to_their_credential() {
    simulate(6, false, |world| async move {
        let (mut a, mut b) = (world.client(1), world.client(2));
        let file = a.create(ROOT, "f", 0o644, READ).await.expect("a file");
        assert_eq!(code(b.close(&file, 0).await), Err(Code::StaleHandle));
        assert_eq!(code(b.renew(&file).await), Err(Code::StaleHandle));
        assert_eq!(code(a.sync(&file, 5).await), Err(Code::BadHandle));
        b.id = ClientId(1);
        b.who.credential = "another".into();
        assert_eq!(code(b.touch(ROOT, "x", 0o600).await), Err(Code::NotAuthorized));
        assert_eq!(code(b.renew(&file).await), Err(Code::NotAuthorized));
        let beat = world.store.keep_alive(&b.who, b.id, true).await;
        assert_eq!(code(beat), Err(Code::NotAuthorized));
        a.close(&file, 0).await.expect("a close");
        assert_eq!(code(a.close(&file, 0).await), Err(Code::StaleHandle));
    });
}

#[test]
fn a_repeated_request_gets_its_answer_and_a_late_one_is_refused() {
    simulate(7, false, |world| async move {
        let mut client = world.client(1);
        let args = CreateArgs {
            parent: ROOT,
            name: b"f".to_vec(),
            mode: 0o644,
            exclusive: true,
            open: WRITE,
            ..CreateArgs::default()
        };
        let change = client.change();
        let first = world.store.create(&change, &args).await.expect("a file");
        // Another server answers the repetition, after the file got another name.
        client.rename((ROOT, "f"), (ROOT, "g")).await.expect("a rename");
        let late = world.store.create(&change, &args).await;
        assert_eq!(code(late), Err(Code::DuplicateRequest));
        let mut other_slot = client.change();
        other_slot.request = RequestId::in_slot(1, 1);
        let made = world.store.create(&other_slot, &args).await.expect("a file");
        let again = world.another().await.store.create(&other_slot, &args).await.expect("again");
        assert_eq!((made.session, &made.attr), (again.session, &again.attr));
        assert_ne!(made.attr.inode, first.attr.inode);
    });
}
