//! Changes that run at the same time, over several servers: whatever comes out could have come out
//! one after the other.

use crate::store::{CreateArgs, RenameArgs};
use crate::tests::model::{By, Model, Span};
use crate::tests::{Client, ROOT, WRITE, World, code, invariants, root, simulate};
use kiln_env::Executor;
use kiln_types::{Code, FileKind, InodeId, Result, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a client does.
#[derive(Clone, Debug)]
enum Op {
    MakeDir(InodeId, String),
    Create(InodeId, String),
    Unlink(InodeId, String),
    RemoveDir(InodeId, String),
    Link(InodeId, InodeId, String),
    Rename((InodeId, String), (InodeId, String), bool, bool),
}

impl Op {
    fn any(rng: &mut fastrand::Rng, dirs: &[InodeId], files: &[InodeId]) -> Self {
        let dir = |rng: &mut fastrand::Rng| *rng.choice(dirs).expect("a directory");
        let name = |rng: &mut fastrand::Rng| format!("n{}", rng.u8(..4));
        let place = |rng: &mut fastrand::Rng| (dir(rng), name(rng));
        let (parent, own_name) = place(rng);
        match rng.u8(..10) {
            0 => Self::MakeDir(parent, own_name),
            1 => Self::Create(parent, own_name),
            2 => Self::Unlink(parent, own_name),
            3..=4 => Self::RemoveDir(parent, own_name),
            5 if !files.is_empty() => {
                Self::Link(*rng.choice(files).expect("a file"), parent, own_name)
            }
            _ => {
                let flags = [(false, false), (false, false), (true, false), (false, true)];
                let (no_replace, exchange) = *rng.choice(&flags).expect("one");
                Self::Rename((parent, own_name), place(rng), no_replace, exchange)
            }
        }
    }

    async fn run(self, mut client: Client) -> Result<Option<InodeId>> {
        let change = client.change();
        let store = &client.world.store;
        match self {
            Self::MakeDir(parent, name) => {
                let made = store.make_dir(&change, parent, name.as_bytes(), 0o755).await;
                made.map(|attr| Some(attr.inode))
            }
            Self::Create(parent, name) => {
                let name = name.into_bytes();
                let args = CreateArgs { parent, name, exclusive: true, ..CreateArgs::default() };
                store.create(&change, &args).await.map(|opened| Some(opened.attr.inode))
            }
            Self::Unlink(parent, name) => {
                store.unlink(&change, parent, name.as_bytes()).await.map(|_| None)
            }
            Self::RemoveDir(parent, name) => {
                store.remove_dir(&change, parent, name.as_bytes()).await.map(|_| None)
            }
            Self::Link(inode, parent, name) => {
                store.link(&change, inode, parent, name.as_bytes()).await.map(|_| None)
            }
            Self::Rename((parent, name), (new_parent, new_name), no_replace, exchange) => {
                let (name, new_name) = (name.into_bytes(), new_name.into_bytes());
                let args = RenameArgs { parent, name, new_parent, new_name, no_replace, exchange };
                store.rename(&change, &args).await.map(|_| None)
            }
        }
    }

    fn apply(&self, model: &mut Model, made: InodeId) -> Result<(), Code> {
        let who = root();
        let span = Span(Timestamp(0), Timestamp(0));
        let by = &By { caller: &who.caller, now: span };
        match self {
            Self::MakeDir(parent, name) => {
                let (kind, name) = (FileKind::Directory, name.as_bytes());
                model.make(by, *parent, name, kind, 0o755, made).map(|_| ())
            }
            Self::Create(parent, name) => {
                let how = (true, false, false, false);
                model.create(by, *parent, name.as_bytes(), 0, how, made).map(|_| ())
            }
            Self::Unlink(parent, name) => model.unlink(by, *parent, name.as_bytes()),
            Self::RemoveDir(parent, name) => model.rmdir(by, *parent, name.as_bytes()),
            Self::Link(inode, parent, name) => {
                model.link(by, *inode, *parent, name.as_bytes()).map(|_| ())
            }
            Self::Rename((parent, name), (to, new_name), no_replace, exchange) => {
                let (from, to) = ((*parent, name.as_bytes()), (*to, new_name.as_bytes()));
                model.rename(by, from, to, *no_replace, *exchange)
            }
        }
    }
}

type Tree = BTreeMap<InodeId, BTreeMap<Vec<u8>, InodeId>>;

fn tree_of(model: &Model) -> Tree {
    model.nodes.iter().map(|(id, node)| (*id, node.names.clone())).collect()
}

async fn stored_tree(world: &World) -> Tree {
    let (mut tree, mut todo) = (Tree::new(), vec![ROOT]);
    while let Some(directory) = todo.pop() {
        let (entries, end) =
            world.store.read_dir(&root(), directory, 0, 0, false).await.expect("a listing");
        assert!(end);
        for entry in &entries {
            match entry.kind {
                FileKind::Directory => todo.push(entry.inode),
                _ => drop(tree.insert(entry.inode, BTreeMap::new())),
            }
        }
        tree.insert(directory, entries.into_iter().map(|e| (e.name, e.inode)).collect());
    }
    tree
}

/// Every order of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for order in orders(count - 1) {
        for at in 0..=order.len() {
            let mut order = order.clone();
            order.insert(at, count - 1);
            all.push(order);
        }
    }
    all
}

/// What each operation was, and what it answered.
type History = Vec<(Op, Result<Option<InodeId>>)>;

/// The model after some order of the operations that explains every answer and the stored tree.
fn explain(before: &Model, history: &History, stored: &Tree) -> Option<Model> {
    orders(history.len()).into_iter().find_map(|order| {
        let mut model = before.clone();
        for at in order {
            let (op, answer) = &history[at];
            let made = answer.clone().ok().flatten().unwrap_or(InodeId(u64::MAX - at as u64));
            let expected = answer.as_ref().map(|_| ()).map_err(kiln_types::Error::code);
            if op.apply(&mut model, made) != expected {
                return None;
            }
        }
        (tree_of(&model) == *stored).then_some(model)
    })
}

async fn run(world: World, seed: u64, at_once: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let worlds = [world.clone().narrow(2).await, world.another().await.narrow(2).await];
    let mut model = Model::new(Span(Timestamp(0), Timestamp(0)));
    for round in 0..30 {
        let kind = |id: &InodeId| model.nodes[id].kind;
        let all = || model.nodes.keys().copied();
        let dirs: Vec<_> = all().filter(|id| kind(id) == FileKind::Directory).collect();
        let files: Vec<_> = all().filter(|id| kind(id) == FileKind::File).collect();
        let mut tasks = Vec::new();
        for n in 0..at_once {
            let op = Op::any(&mut rng, &dirs, &files);
            let client = worlds[n % 2].client((round * 10 + n) as u128 + 1);
            tasks.push((op.clone(), world.env.spawn("client", op.run(client))));
        }
        let mut history = History::new();
        for (op, task) in tasks {
            history.push((op, task.join().await.expect("a task")));
        }
        let stored = stored_tree(&worlds[0]).await;
        let before = tree_of(&model);
        model = explain(&model, &history, &stored).unwrap_or_else(|| {
            panic!(
                "seed {seed}: no order explains {history:#?}\nbefore {before:?}\nafter {stored:?}"
            )
        });
        invariants::check(&worlds[0]).await;
    }
}

#[test]
fn what_comes_out_could_have_come_out_one_after_the_other() {
    for seed in 0..150 {
        println!("seed {seed}");
        simulate(seed, seed % 2 == 1, move |world| run(world, seed, 2 + seed as usize % 3));
    }
}

#[test]
fn of_many_who_make_or_take_one_name_one_wins() {
    for seed in 0..10 {
        simulate(seed, true, move |world| async move {
            let make = |n: u128| Op::Create(ROOT, "one".into()).run(world.client(n));
            let tasks: Vec<_> = (1..9).map(|n| world.env.spawn("maker", make(n))).collect();
            let mut won = 0;
            for task in tasks {
                match code(task.join().await.expect("a task")) {
                    Ok(_) => won += 1,
                    Err(error) => assert_eq!(error, Code::Exists),
                }
            }
            assert_eq!(won, 1, "seed {seed}");
            let take = |n: u128| {
                let (from, to) = ((ROOT, "one".into()), (ROOT, format!("of{n}")));
                Op::Rename(from, to, false, false).run(world.client(n))
            };
            let tasks: Vec<_> = (1..9).map(|n| world.env.spawn("taker", take(n + 10))).collect();
            let mut won = 0;
            for task in tasks {
                match code(task.join().await.expect("a task")) {
                    Ok(_) => won += 1,
                    Err(error) => assert_eq!(error, Code::NotFound),
                }
            }
            assert_eq!((won, stored_tree(&world).await.len()), (1, 2), "seed {seed}");
        });
    }
}

#[test]
fn of_two_moves_that_would_make_a_circle_one_fails() {
    for seed in 0..40 {
        simulate(seed, seed % 2 == 1, move |world| async move {
            let mut client = world.client(1);
            let mut dirs = Vec::new();
            for (name, below) in [("a", "d"), ("b", "c")] {
                let dir = client.mkdir(ROOT, name, 0o755).await.expect("a directory").inode;
                let middle = client.mkdir(dir, "m", 0o755).await.expect("a directory").inode;
                dirs.push(client.mkdir(middle, below, 0o755).await.expect("a directory").inode);
            }
            let move_to = |name: &str, to: InodeId, n: u128| {
                let (from, to) = ((ROOT, name.to_string()), (to, "x".to_string()));
                Op::Rename(from, to, false, false).run(world.client(n))
            };
            let first = world.env.spawn("mover", move_to("a", dirs[1], 2));
            let second = world.env.spawn("mover", move_to("b", dirs[0], 3));
            let outcomes = [first.join().await, second.join().await];
            let outcomes = outcomes.map(|outcome| code(outcome.expect("a task")).map(|_| ()));
            let one = [Ok(()), Err(Code::Invalid)];
            assert!(outcomes == one || [outcomes[1], outcomes[0]] == one, "{seed} {outcomes:?}");
            invariants::check(&world).await;
        });
    }
}

/// Clients take the later of two states for the newer one.
#[test]
fn a_change_is_later_than_one_by_a_server_whose_clock_is_ahead() {
    let executor = Executor::new(1);
    let (env, ahead) = (executor.env(), executor.host());
    ahead.jump_wall(Duration::from_secs(5).as_nanos() as i64);
    executor.run(async move {
        let one = World::new(env).await;
        let other = World { env: ahead.env(), ..one.clone() }.another().await;
        let (mut client, mut at_other) = (one.client(1), other.client(2));
        let file = at_other.touch(ROOT, "f", 0o600).await.expect("a file");
        let cut = client.truncate(file.inode, 7).await.expect("it is cut");
        let opened = client.open(file.inode, WRITE).await.expect("it is opened");
        let closed = client.close(&opened, 9).await.expect("it is closed");
        let renamed = at_other.rename((ROOT, "f"), (ROOT, "g")).await;
        assert_eq!(renamed, Ok(()));
        let last = client.attr(file.inode).await.expect("its attributes");
        let times = [&file, &cut, &closed, &last].map(|attr| attr.ctime);
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    });
}

#[test]
fn creates_in_one_directory_do_not_conflict() {
    simulate(1, false, |world| async move {
        let tasks: Vec<_> = (1..50u128)
            .map(|n| {
                let mut client = world.client(n);
                world.env.spawn("maker", async move {
                    client.mkdir(ROOT, &format!("d{n}"), 0o755).await.map(|_| ())
                })
            })
            .collect();
        let started = world.env.now();
        for task in tasks {
            task.join().await.expect("a task").expect("a directory");
        }
        // A conflict would have made someone pause.
        assert_eq!(world.env.now(), started);
        assert_eq!(world.client(99).attr(ROOT).await.expect("it").links, 2 + 49);
    });
}
