//! Random operations on the store and on the model beside it: the same answers, the same errors,
//! the same tree; through two servers, with conflicts, commits of unknown outcome, servers that stop in the middle, lost
//! and repeated requests, and storage that fails.

use crate::Keeper;
use crate::SessionId;
use crate::store::{
    Change, CreateArgs, OpenArgs, Opened, RenameArgs, Renewal, SetAttrArgs, SetTime, Store, Who,
    Written, XattrMode,
};
use crate::tests::model::{By, Model, Span};
use crate::tests::{CHUNK, Client, ROOT, World, abandon, code, invariants, root, simulate, user};
use kiln_types::{Acknowledged, Attr, ByteRange, Code, FileKind, InodeId, Result, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Where files are written: around the edges of the first chunks.
const SPOTS: [u64; 9] = [0, 1, 2, 100, CHUNK - 1, CHUNK, CHUNK + 7, 3 * CHUNK - 1, 3 * CHUNK + 5];
/// Of so many seeds, one compares the whole tree after each step.
const EACH_STEP: u64 = 4;
const NO_INODE: InodeId = InodeId(u64::MAX);

/// Repeats a request until it is answered; sometimes once more.
macro_rules! insist {
    ($run:expr, $server:ident => $request:expr) => {
        loop {
            let ($server, polls) = ($run.any_server(), $run.any_polls());
            let Some(outcome) = abandon($request, polls).await else { continue };
            match code_of(&outcome) {
                Some(Code::Unreachable | Code::Conflict | Code::MaybeCommitted) => continue,
                None if $run.repeats() => {
                    let again = $request.await;
                    let lost = matches!(code_of(&again), Some(Code::Unreachable));
                    assert!(lost || again.is_ok(), "a repetition: {:?}", again.err());
                    break outcome;
                }
                _ => break outcome,
            }
        }
    };
}

mod batch;
mod cache;
mod compare;
mod late;
mod locks;
mod nameless;
mod quota;
mod shrink;
mod trash;
mod trees;
mod xattrs;

struct OpenFile {
    number: u64,
    client: usize,
    session: SessionId,
    inode: InodeId,
    write: bool,
    attr: Attr,
    written: Written,
    acknowledged: Acknowledged,
}

struct Run {
    world: World,
    /// Two servers over the same kv, and who keeps house there.
    servers: Vec<Arc<Store>>,
    keepers: [Keeper; 2],
    lossy: bool,
    model: Model,
    rng: fastrand::Rng,
    clients: Vec<Client>,
    users: Vec<Who>,
    open: Vec<OpenFile>,
    /// What writers that are gone were given, and when they went.
    gone: Vec<(Attr, Timestamp)>,
    numbers: u64,
    started: Timestamp,
    log: Vec<String>,
    cache: cache::Cache,
    locks: locks::Locks,
}

impl Run {
    async fn new(world: World, seed: u64, lossy: bool) -> Self {
        let world = world.narrow(3).await;
        let other = world.another().await.narrow(3).await;
        let span = Span(Timestamp(i64::MIN), world.env.wall());
        let users = vec![
            root(),
            user(10, 100, &[]),
            user(11, 100, &[200]),
            user(12, 300, &[200, 100]),
            user(13, 400, &[]),
        ];
        let mut run = Self {
            keepers: [&world.store, &other.store].map(|store| Keeper::new(Arc::clone(store))),
            servers: vec![Arc::clone(&world.store), other.store],
            lossy,
            model: Model::new(span),
            rng: fastrand::Rng::with_seed(seed),
            clients: (1..4).map(|id| world.client(id)).collect(),
            users,
            open: Vec::new(),
            gone: Vec::new(),
            numbers: 0,
            started: world.env.wall(),
            log: Vec::new(),
            cache: cache::Cache::default(),
            locks: locks::Locks::default(),
            world,
        };
        run.cache.follow(&run.world.env, &run.servers).await;
        let open_to_all = SetAttrArgs { mode: Some(0o777), ..SetAttrArgs::default() };
        let change = run.clients[0].change();
        run.begin();
        insist!(run, s => async { s.set_attr(&change, ROOT, &open_to_all).await }).expect("chmod");
        let by = By { caller: &root().caller, now: run.span() };
        run.model.chmod(&by, ROOT, 0o777).expect("chmod");
        run
    }

    fn begin(&mut self) {
        self.started = self.world.env.wall();
    }

    fn span(&self) -> Span {
        Span(self.started, self.world.env.wall())
    }

    fn any_server(&mut self) -> Arc<Store> {
        Arc::clone(self.rng.choice(&self.servers).expect("a server"))
    }

    /// How far a server gets with a request before it stops.
    fn any_polls(&mut self) -> u64 {
        if self.lossy && self.rng.bool() { self.rng.u64(0..60) } else { u64::MAX }
    }

    fn repeats(&mut self) -> bool {
        self.lossy && self.rng.u8(..8) == 0
    }

    fn any_inode(&mut self) -> InodeId {
        let nodes: Vec<_> = self.model.nodes.keys().copied().collect();
        if self.rng.u8(..40) == 0 { InodeId(77) } else { *self.rng.choice(&nodes).expect("one") }
    }

    /// Mostly a directory.
    fn any_parent(&mut self) -> InodeId {
        let is_dir = |model: &Model, id: &InodeId| {
            model.nodes.get(id).is_some_and(|node| node.kind == FileKind::Directory)
        };
        let dirs: Vec<_> =
            self.model.nodes.keys().copied().filter(|id| is_dir(&self.model, id)).collect();
        if self.rng.u8(..12) == 0 { self.any_inode() } else { *self.rng.choice(&dirs).expect("/") }
    }

    fn any_name(&mut self) -> Vec<u8> {
        format!("n{}", self.rng.u8(..10)).into_bytes()
    }

    fn any_mode(&mut self) -> u32 {
        let modes = [0o777, 0o755, 0o700, 0o1777, 0o2775, 0o4755, 0o6771, 0o666, 0o640, 0o070, 0];
        *self.rng.choice(&modes).expect("one")
    }

    fn any_length(&mut self) -> u64 {
        *self.rng.choice(&SPOTS).expect("one") + self.rng.u64(..2)
    }

    fn any_time(&mut self) -> Option<Timestamp> {
        // Before 1970, long ago, and in the future.
        let times = [-5_000_000_000, 1_000, 4_000_000_000_000_000_000];
        self.rng.bool().then(|| Timestamp(*self.rng.choice(&times).expect("one")))
    }

    fn any_client(&mut self) -> usize {
        self.rng.usize(..self.clients.len())
    }

    fn change(&mut self, client: usize, who: &Who) -> Change {
        self.clients[client].with(who.clone()).change()
    }

    fn any_change(&mut self, who: &Who) -> Change {
        let client = self.any_client();
        self.change(client, who)
    }

    /// Takes note of an opened file on both sides.
    fn note_open(&mut self, client: usize, opened: &Opened, write: bool) {
        let Some(session) = opened.session else { return };
        let (number, attr) = (self.numbers, opened.attr.clone());
        self.numbers += 1;
        let inode = attr.inode;
        self.model.open.insert(number, inode);
        let (written, acknowledged) = Default::default();
        let file = OpenFile { number, client, session, inode, write, attr, written, acknowledged };
        self.open.push(file);
    }

    /// An open file knows what the client learned of its inode.
    fn learn(&mut self, client: usize, attr: &Attr) {
        let same = |file: &&mut OpenFile| file.client == client && file.inode == attr.inode;
        for file in self.open.iter_mut().filter(same) {
            file.attr = attr.clone();
        }
    }

    fn expect<T>(&mut self, what: String, store: &Result<T>, model: Result<(), Code>) {
        let store = store.as_ref().map(|_| ()).map_err(|error| error.clone());
        self.log.push(format!("{what} -> {model:?}"));
        if store.as_ref().map_err(|e| e.code()).copied() != model.as_ref().copied().map_err(|c| *c)
        {
            let recent = self.log.len().saturating_sub(12);
            panic!("{}\nstore: {store:?}", self.log[recent..].join("\n"));
        }
    }

    async fn make(&mut self, who: &Who) {
        let (parent, name, mode) = (self.any_parent(), self.any_name(), self.any_mode());
        let kind = [FileKind::Directory, FileKind::Symlink, FileKind::Fifo, FileKind::BlockDevice]
            [self.rng.usize(..4)];
        let change = self.any_change(who);
        let (target, device) = (self.any_target(), self.rng.u32(..));
        let made = insist!(self, s => async { match kind {
                FileKind::Directory => s.make_dir(&change, parent, &name, mode).await,
                FileKind::Symlink => s.symlink(&change, parent, &name, &target).await,
                _ => s.make_node(&change, (parent, &name), mode, kind, device).await,
            } });
        let id = made.as_ref().map_or(NO_INODE, |attr| attr.inode);
        let by = By { caller: &who.caller, now: self.span() };
        let mode = if kind == FileKind::Symlink { 0o777 } else { mode };
        let expected =
            self.model.within(|m| m.make(&by, parent, &name, kind, mode, id)).map(|id| {
                let node = self.model.nodes.get_mut(&id).expect("made");
                match kind {
                    FileKind::Symlink => node.target = target,
                    FileKind::BlockDevice => node.device = device,
                    _ => {}
                }
            });
        self.expect(format!("make {kind:?} {parent} {name:?} by {who:?}"), &made, expected);
    }

    fn any_target(&mut self) -> Vec<u8> {
        let target = match self.rng.u8(..4) {
            0 => format!("/n{}/", self.rng.u8(..10)),
            1 => format!("../n{}", self.rng.u8(..10)),
            2 => format!("n{}//./n{}", self.rng.u8(..10), self.rng.u8(..10)),
            _ => format!("n{}", self.rng.u8(..10)),
        };
        target.into_bytes()
    }

    async fn create(&mut self, who: &Who) {
        let (parent, name, mode) = (self.any_parent(), self.any_name(), self.any_mode());
        let (read, write, truncate) = (self.rng.bool(), self.rng.bool(), self.rng.u8(..3) == 0);
        let client = self.any_client();
        let open = OpenArgs { read, write, truncate };
        let exclusive = self.rng.bool();
        let args = CreateArgs { parent, name, mode, exclusive, open, wish: Default::default() };
        self.report_all(client).await;
        let change = self.change(client, who);
        self.begin();
        let made = insist!(self, s => async { s.create(&change, &args).await });
        let id = made.as_ref().map_or(NO_INODE, |opened| opened.attr.inode);
        let by = By { caller: &who.caller, now: self.span() };
        let how = (exclusive, read, write, truncate);
        let create = |m: &mut Model| m.create(&by, parent, &args.name, mode, how, id).map(drop);
        let expected = self.model.within(create);
        self.expect(format!("create {args:?} by {who:?}"), &made, expected);
        if let Ok(opened) = made {
            self.learn(client, &opened.attr);
            self.note_open(client, &opened, write);
        }
    }

    async fn open_one(&mut self, who: &Who) {
        let inode = self.any_inode();
        let (read, write, truncate) = (self.rng.bool(), self.rng.bool(), self.rng.u8(..4) == 0);
        let client = self.any_client();
        let args = OpenArgs { read, write, truncate };
        self.report_all(client).await;
        let change = self.change(client, who);
        self.begin();
        let opened = insist!(self, s => async { s.open_file(&change, inode, args).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.open(&by, inode, read, write, truncate);
        self.expect(format!("open {inode} {args:?} by {who:?}"), &opened, expected);
        if let Ok(opened) = opened {
            self.learn(client, &opened.attr);
            self.note_open(client, &opened, write);
        }
    }

    /// A client reports what it wrote before it cuts: that is what it promises.
    async fn report_all(&mut self, client: usize) {
        for at in 0..self.open.len() {
            if self.open[at].client == client && self.open[at].written.end > 0 {
                self.report(at, false).await;
            }
        }
    }

    async fn report(&mut self, at: usize, closes: bool) {
        let file = &self.open[at];
        let (client, inode, session) = (file.client, file.inode, file.session);
        let (number, written) = (file.number, file.written);
        let who = root();
        let change = self.clients[client].with(who.clone()).change();
        self.begin();
        let attr = insist!(self, s => async { match closes {
                true => s.close(&change, inode, session, &written).await,
                false => s.sync(&change, inode, session, &written).await,
            } });
        let by = By { caller: &who.caller, now: self.span() };
        if written.end > 0 {
            // What a truncation has cut off since does not count.
            let counts = attr.as_ref().is_ok_and(|attr| attr.epoch == written.epoch);
            self.model.written(&by, inode, if counts { written.end } else { 0 });
        }
        self.expect(format!("report {inode} {written:?} {closes}"), &attr, Ok(()));
        if closes {
            self.model.close(number);
            let file = self.open.swap_remove(at);
            self.end_closed();
            if file.write {
                self.gone.push((file.attr, self.world.env.wall()));
            }
        } else {
            self.open[at].written = Written::default();
        }
        self.learn(client, &attr.expect("checked"));
    }

    /// Writes a byte through an open file, as a client does: under the epoch of its capability,
    /// again with a new one when storage says that it is old.
    async fn write(&mut self) {
        let Some(at) = self.any_open(true) else { return };
        let offset = *self.rng.choice(&SPOTS).expect("one");
        let byte = self.rng.u8(1..);
        let file = &self.open[at];
        let (client, inode, session) = (file.client, file.inode, file.session);
        // The model has no stale capabilities: `truncation.rs` looks at those.
        let (id, end) = (self.clients[client].id, offset + 1);
        let wanted = Renewal { end, ..Renewal::default() };
        let opened =
            insist!(self, s => async { s.renew(&root(), id, inode, session, &wanted).await });
        self.expect(format!("renew {inode} to {end}"), &opened, self.model.may_reach(inode, end));
        let Ok(Opened { attr, .. }) = opened else { return };
        self.learn(client, &attr);
        self.world.chunks.write(&attr, attr.epoch, offset, byte).expect("a write");
        self.log.push(format!("write {inode} at {offset} under {:?}", attr.epoch));
        self.model.nodes.get_mut(&inode).expect("open").bytes.insert(offset, byte);
        let OpenFile { written, acknowledged, .. } = &mut self.open[at];
        if written.epoch != attr.epoch {
            *written = Written { end: 0, epoch: attr.epoch, ..Written::default() };
        }
        written.end = written.end.max(offset + 1);
        acknowledged.learn(attr.epoch, attr.dense_end);
        acknowledged.add(attr.epoch, ByteRange { start: offset, end: offset + 1 });
        written.acknowledged = acknowledged.lowest().1.unwrap_or_default();
        if self.lossy && self.rng.u8(..4) == 0 {
            self.world.chunks.repeat_cuts(|inode| self.model.nodes.contains_key(&inode));
        }
    }

    fn any_open(&mut self, write: bool) -> Option<usize> {
        let fits = |at: &usize| !write || self.open[*at].write;
        let all: Vec<usize> = (0..self.open.len()).filter(fits).collect();
        self.rng.choice(&all).copied()
    }

    async fn rename(&mut self, who: &Who) {
        let args = RenameArgs {
            parent: self.any_parent(),
            name: self.any_name(),
            new_parent: self.any_parent(),
            new_name: self.any_name(),
            no_replace: self.rng.u8(..4) == 0,
            exchange: self.rng.u8(..3) == 0,
        };
        let change = self.any_change(who);
        let renamed = insist!(self, s => async { s.rename(&change, &args).await });
        let by = By { caller: &who.caller, now: self.span() };
        let (from, to) = ((args.parent, &args.name[..]), (args.new_parent, &args.new_name[..]));
        let expected =
            self.model.within(|m| m.rename(&by, from, to, args.no_replace, args.exchange));
        self.expect(format!("rename {args:?} by {who:?}"), &renamed, expected);
    }

    async fn set_attr(&mut self, who: &Who) {
        let inode = self.any_inode();
        let (mut args, which) = (SetAttrArgs::default(), self.rng.u8(..3));
        let (atime, mtime) = (self.any_time(), self.any_time());
        match which {
            0 => args.mode = Some(self.any_mode()),
            1 => {
                args.uid = self.rng.bool().then(|| *self.rng.choice(&[10, 11]).expect("one"));
                args.gid = Some(*self.rng.choice(&[100, 200, 400]).expect("one"));
            }
            _ => {
                args.atime = Some(atime.map_or(SetTime::Now, SetTime::At));
                args.mtime = Some(mtime.map_or(SetTime::Now, SetTime::At));
            }
        }
        let change = self.any_change(who);
        let set = insist!(self, s => async { s.set_attr(&change, inode, &args).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = match which {
            0 => self.model.chmod(&by, inode, args.mode.expect("a mode")),
            1 => self.model.within(|m| m.chown(&by, inode, args.uid, args.gid)),
            _ => self.model.utimens(&by, inode, atime, mtime),
        };
        self.expect(format!("setattr {inode} {args:?} by {who:?}"), &set, expected);
    }

    async fn truncate(&mut self, who: &Who) {
        let (mut inode, length) = (self.any_inode(), self.any_length());
        let mut client = self.any_client();
        let mut holds = None;
        let mut args = SetAttrArgs { length: Some(length), ..SetAttrArgs::default() };
        if let (Some(at), true) = (self.any_open(false), self.rng.bool()) {
            let file = &self.open[at];
            (inode, client, holds) = (file.inode, file.client, Some(file.write));
            args.session = Some(file.session);
        }
        self.report_all(client).await;
        let change = self.change(client, who);
        self.begin();
        let set = insist!(self, s => async { s.set_attr(&change, inode, &args).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.within(|m| m.truncate(&by, inode, length, holds));
        self.expect(format!("truncate {inode} {args:?} by {who:?}"), &set, expected);
        if let Ok(attr) = set {
            self.learn(client, &attr);
        }
    }

    async fn look(&mut self, who: &Who) {
        let by = By { caller: &who.caller, now: self.span() };
        let parent = self.any_parent();
        let name = match self.rng.u8(..6) {
            0 => b".".to_vec(),
            1 => b"..".to_vec(),
            _ => self.any_name(),
        };
        let found = insist!(self, s => async { s.lookup(who, parent, &name).await });
        let expected = self.model.lookup(&by, parent, &name);
        assert_eq!(code(found).map(|attr| attr.inode), expected, "lookup {parent} {name:?}");
        let mut path = self.any_target();
        if self.rng.bool() {
            path.extend_from_slice(b"/");
            path.extend(self.any_target());
        }
        let follow = self.rng.bool();
        let found = insist!(self, s => async { s.resolve(who, parent, &path, follow).await });
        let expected = self.model.resolve(&by, parent, &path, follow);
        let path = path.escape_ascii();
        assert_eq!(code(found).map(|attr| attr.inode), expected, "resolve {parent} {path}");
        let found = self.list(who, parent).await;
        assert_eq!(
            code(found),
            self.model.list(&by, parent).map(|names| names.into_iter().collect())
        );
    }

    async fn step(&mut self) {
        let who = self.rng.choice(&self.users).expect("a user").clone();
        self.world.env.sleep(Duration::from_micros(50)).await;
        if self.lossy && self.rng.u8(..30) == 0 {
            let restarted = self.world.another().await.narrow(3).await.store;
            self.keepers[1] = Keeper::new(Arc::clone(&restarted));
            self.servers[1] = restarted;
            self.cache.follow(&self.world.env, &self.servers).await;
        }
        self.begin();
        match self.rng.u8(..34) {
            0..=2 => self.make(&who).await,
            3 => self.create_nameless(&who).await,
            4..=6 => self.create(&who).await,
            7..=8 => self.open_one(&who).await,
            9..=10 => self.remove(&who).await,
            11..=13 => self.rename(&who).await,
            14 => self.link(&who).await,
            15 => self.set_attr(&who).await,
            16 => self.truncate(&who).await,
            17 => self.xattr(&who).await,
            18..=19 => self.look(&who).await,
            20..=21 => self.write().await,
            22..=24 => self.lock().await,
            25 => self.remove_tree(&who).await,
            28..=29 => self.set_quota(&who).await,
            27 => self.batch(&who).await,
            30..=33 => self.trash(&who).await,
            26 => {
                self.write_late();
                self.write().await;
            }
            _ => {
                if let Some(at) = self.any_open(false) {
                    let closes = self.rng.bool();
                    self.report(at, closes).await;
                }
            }
        }
    }
}

fn code_of<T>(outcome: &Result<T>) -> Option<Code> {
    outcome.as_ref().err().map(kiln_types::Error::code)
}

async fn run(world: World, seed: u64, lossy: bool, steps: Vec<u64>) {
    let mut run = Run::new(world, seed, lossy).await;
    for step in steps {
        run.rng = shrink::random(seed, step);
        run.step().await;
        run.check_quotas().await;
        run.check_trash(step).await;
        if step % 4 == 0 {
            run.check_cache().await;
        }
        if step % 40 == 0 {
            run.world.env.sleep(Duration::from_secs(run.rng.u64(..20))).await;
            run.keepers_round().await;
            run.beat().await;
            run.hear().await;
            invariants::check(&run.world).await;
        }
        if step % 40 == 0 || seed.is_multiple_of(EACH_STEP) {
            run.compare().await;
        }
    }
    while !run.open.is_empty() {
        run.report(0, true).await;
    }
    run.check_cache().await;
    run.compare().await;
    for _ in 0..20 {
        run.world.env.sleep(Duration::from_secs(30)).await;
        run.beat().await;
        run.keepers_round().await;
        run.hear().await;
        run.check_cache().await;
    }
    run.compare().await;
    invariants::check(&run.world).await;
    invariants::check_chunks(&run.world).await;
}

impl Run {
    /// Both servers do what is due, at the same time.
    async fn keepers_round(&mut self) {
        self.begin();
        let [one, other] = &mut self.keepers;
        let (one, other) = tokio::join!(one.round(), other.round());
        for error in [&one, &other].into_iter().filter_map(|round| round.as_ref().err()) {
            assert_eq!(error.code(), Code::Unreachable, "{error}");
        }
        self.follow_expiry(one.is_ok() || other.is_ok()).await;
    }

    /// Every client gives a sign of life.
    async fn beat(&mut self) {
        let ids = self.clients.iter().map(|client| client.id).chain([cache::WATCHING]);
        for id in ids.collect::<Vec<_>>() {
            insist!(self, s => async { s.keep_alive(&root(), id, false).await }).expect("a beat");
        }
    }
}

#[test]
fn the_store_does_what_the_model_does() {
    for seed in 0..60 {
        let all = |steps| simulate(seed, false, move |world| run(world, seed, false, steps));
        shrink::check(&format!("seed {seed}"), 400, all);
    }
}

#[test]
fn the_same_with_conflicts_lost_answers_and_restarts() {
    for seed in 100..200 {
        let all = |steps| simulate(seed, true, move |world| run(world, seed, true, steps));
        shrink::check(&format!("seed {seed}"), 200, all);
    }
}
