//! Files that are open for reading in memory: random opens, closes, removals, restarts and deaths. Whoever has a file
//! open keeps it, and nothing is left when nobody does.

use crate::keeper::Keeper;
use crate::records::{Client as Record, Record as _};
use crate::store::{Claim, LockArgs};
use crate::tests::watcher::Watcher;
use crate::tests::{Client, READ, ROOT, WRITE, World, code, invariants, root, simulate};
use kiln_types::{Code, InodeId, Lock, LockFamily, LockMode, LockOwner, LockRange, Result};
use std::time::Duration;

const CLIENTS: u128 = 3;
const NAMES: u64 = 4;
const STEPS: usize = 250;

/// A client with what it has open.
struct User {
    client: Client,
    open: Vec<Claim>,
    watcher: Option<Watcher>,
    /// It has yet to say to the server what it has open.
    owes: bool,
}

impl User {
    async fn new(world: &World, id: u128) -> Self {
        let mut user =
            Self { client: world.client(id), open: Vec::new(), watcher: None, owes: false };
        user.watch(world).await;
        user.claim().await;
        user
    }

    async fn watch(&mut self, world: &World) {
        self.client.world = world.clone();
        self.watcher = None;
        let id = self.client.id.0;
        self.watcher = Some(Watcher::new(&world.env, &world.store, id, true).await);
    }

    /// Opens what is there, and has it.
    async fn open(&mut self, inode: InodeId) -> Result<()> {
        let opened = self.client.open(inode, READ).await?;
        let session = opened.session.expect("an open file");
        self.open.push(Claim { inode, session, capability: opened.capability });
        Ok(())
    }

    async fn claim(&mut self) {
        for (at, claim) in self.open.iter().enumerate() {
            let (claims, all) = (std::slice::from_ref(claim), at + 1 == self.open.len());
            let store = &self.client.world.store;
            store.claim(&root(), self.client.id, claims, all).await.expect("a claim");
        }
        if self.open.is_empty() {
            let store = &self.client.world.store;
            store.claim(&root(), self.client.id, &[], true).await.expect("a claim");
        }
        self.owes = false;
    }

    async fn check(&self) {
        for claim in &self.open {
            let attr = self.client.attr(claim.inode).await;
            assert!(attr.is_ok(), "{claim:?} of {}: {attr:?}", self.client.id);
        }
    }

    /// A right anew, also from a server that has not been told yet.
    async fn renew(&self, at: usize) {
        let Some(claim) = self.open.get(at) else { return };
        let wanted =
            crate::store::Renewal { capability: claim.capability.clone(), ..Default::default() };
        let store = &self.client.world.store;
        let renewed =
            store.renew(&root(), self.client.id, claim.inode, claim.session, &wanted).await;
        renewed.unwrap_or_else(|error| panic!("{claim:?} of {}: {error}", self.client.id));
    }

    async fn close(&mut self, at: usize) {
        if at >= self.open.len() {
            return;
        }
        let claim = self.open.swap_remove(at);
        let (store, id) = (&self.client.world.store, self.client.id);
        store.end_sessions(&root(), id, &[claim.session]).await.expect("an end");
    }

    async fn lock(&mut self, at: usize) {
        let Some(claim) = self.open.get(at) else { return };
        let range = LockRange { start: 0, last: u64::MAX };
        let lock = Lock { family: LockFamily::Flock, mode: LockMode::Shared, range, pid: 1 };
        let (inode, session) = (claim.inode, claim.session);
        let args = LockArgs { inode, session, owner: LockOwner(claim.session.0 as u64), lock };
        let change = self.client.change();
        let locked = self.client.world.store.lock(&change, &args, false).await;
        assert!(locked.expect("a lock").is_some(), "shared locks are free");
    }
}

struct Play {
    world: World,
    keeper: Keeper,
    users: Vec<User>,
    random: fastrand::Rng,
    made: u128,
}

impl Play {
    async fn new(world: World, seed: u64) -> Self {
        let mut users = Vec::new();
        for id in 1..=CLIENTS {
            users.push(User::new(&world, id).await);
        }
        let keeper = Keeper::new(world.store.clone());
        Self { world, keeper, users, random: fastrand::Rng::with_seed(seed), made: CLIENTS }
    }

    fn name(&mut self) -> String {
        format!("f{}", self.random.u64(..NAMES))
    }

    async fn step(&mut self) {
        let (by, at) = (self.random.usize(..self.users.len()), self.random.usize(..4));
        let name = self.name();
        match self.random.u32(..100) {
            0..15 => drop(self.users[by].client.touch(ROOT, &name, 0o644).await),
            15..40 => {
                if let Ok(attr) = self.users[by].client.lookup(ROOT, &name).await {
                    self.users[by].open(attr.inode).await.expect("it is there");
                }
            }
            40..58 => self.users[by].close(at).await,
            58..68 => drop(self.users[by].client.unlink(ROOT, &name).await),
            68..78 => self.race(by, &name).await,
            78..83 => self.users[by].renew(at).await,
            83..87 if !self.users[by].owes => self.users[by].lock(at).await,
            87..91 => {
                if let Ok(file) = self.users[by].client.create(ROOT, &name, 0o644, WRITE).await {
                    drop(self.users[by].client.unlink(ROOT, &name).await);
                    self.users[by].open(file.attr.inode).await.expect("it is open");
                    drop(self.users[by].client.close(&file, 0).await);
                }
            }
            91..94 => self.keeper.round().await.expect("a round"),
            94..97 => self.restart().await,
            97 => self.die(by).await,
            _ => self.world.env.sleep(Duration::from_secs(at as u64)).await,
        }
        for user in &self.users {
            user.check().await;
        }
    }

    /// An open beside a removal: it is refused, or it keeps the file.
    async fn race(&mut self, by: usize, name: &str) {
        let Ok(attr) = self.users[by].client.lookup(ROOT, name).await else { return };
        let other = (by + 1) % self.users.len();
        let (mut remover, name) = (self.users[other].client.clone(), name.to_owned());
        let removal = self.world.env.spawn("removal", async move {
            drop(remover.unlink(ROOT, &name).await);
            remover
        });
        for _ in 0..self.random.u32(..8) {
            tokio::task::yield_now().await;
        }
        let opened = self.users[by].open(attr.inode).await;
        self.users[other].client = removal.join().await.expect("a removal");
        assert!(matches!(code(opened), Ok(()) | Err(Code::StaleHandle)));
    }

    async fn restart(&mut self) {
        self.world = self.world.another().await;
        self.keeper = Keeper::new(self.world.store.clone());
        for user in &mut self.users {
            user.owes = true;
            user.watch(&self.world).await;
        }
        for at in 0..self.users.len() {
            // Others go on before they have said what they have open.
            if self.random.bool() {
                let name = self.name();
                let by = self.random.usize(..self.users.len());
                drop(self.users[by].client.unlink(ROOT, &name).await);
                self.users[at].renew(self.random.usize(..3)).await;
            }
            if self.random.u32(..8) > 0 {
                self.users[at].claim().await;
            }
        }
        for user in self.users.iter_mut().filter(|user| user.owes) {
            user.claim().await;
        }
    }

    /// A client is gone without a word, and another one comes.
    async fn die(&mut self, by: usize) {
        self.made += 1;
        self.users[by] = User::new(&self.world, self.made).await;
    }

    /// Nobody has anything open any more.
    async fn end(mut self) {
        for user in &mut self.users {
            while !user.open.is_empty() {
                user.close(0).await;
            }
        }
        for name in 0..NAMES {
            drop(self.users[0].client.unlink(ROOT, &format!("f{name}")).await);
        }
        for _ in 0..40 {
            for user in &self.users {
                let alive = self.world.store.keep_alive(&root(), user.client.id, false).await;
                alive.expect("a sign of life");
            }
            self.keeper.round().await.expect("a round");
            self.world.env.sleep(Duration::from_secs(10)).await;
        }
        invariants::check(&self.world).await;
        let dump = invariants::dump(&self.world).await;
        let count = |kind: u8| dump.get(&kind).map_or(0, Vec::len);
        assert_eq!([b'H', b'S', b'K', b'J', b'G'].map(count), [0; 5], "something is held");
        assert_eq!(count(b'I'), 1, "the root alone is left");
        let clients = dump.get(&b'C').into_iter().flatten();
        let active = clients.filter(|(_, value)| {
            matches!(Record::decode(value).expect("a client"), Record::Active { .. })
        });
        assert_eq!(active.count(), self.users.len());
    }
}

fn play(seed: u64, faults: bool) {
    simulate(seed, faults, move |world| async move {
        let mut play = Play::new(world, seed).await;
        for _ in 0..STEPS {
            play.step().await;
        }
        play.end().await;
    });
}

#[test]
fn who_reads_a_file_keeps_it_and_nothing_is_left_of_it() {
    for seed in 0..40 {
        play(seed, false);
    }
}

#[test]
fn the_same_with_conflicts_and_lost_answers() {
    for seed in 0..40 {
        play(seed, true);
    }
}

#[test]
fn an_open_to_read_is_no_commit_and_a_stranger_claims_nothing() {
    simulate(1, false, async |world| {
        let mut user = User::new(&world, 1).await;
        let file = user.client.touch(ROOT, "f", 0o600).await.expect("a file").inode;
        let before = invariants::dump(&world).await;
        user.open(file).await.expect("an open");
        user.renew(0).await;
        assert_eq!(invariants::dump(&world).await, before);
        let other = user.client.touch(ROOT, "g", 0o600).await.expect("a file").inode;
        assert!(!world.store.readers.begin(user.client.id, user.open[0].session, other));
        // What another client's capability shows is nothing of this one's.
        let stranger = User::new(&world, 2).await;
        let restarted = world.another().await;
        let claims = &user.open;
        restarted.store.claim(&root(), stranger.client.id, claims, true).await.expect("heard");
        assert_eq!(restarted.store.readers.inode(stranger.client.id, claims[0].session), None);
        restarted.store.claim(&root(), user.client.id, claims, true).await.expect("heard");
        assert!(restarted.store.readers.inode(user.client.id, claims[0].session).is_some());
    });
}
