//! A local directory as the model of a file system: the same random operations are done in both, and
//! whatever a program can see has to be the same.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod generate;
mod memory;
pub(crate) mod op;
pub(crate) mod snapshot;
mod sparse;
pub(crate) mod two;
pub(crate) mod user;
pub(crate) mod world;

use generate::{Generator, There};
use op::{Op, difference};
use rustix::io::Errno;
use snapshot::Snapshot;
use std::path::{Path, PathBuf};
use world::{Defect, World};

/// Operations that shrinking a failure may cost.
const SHRINKING: usize = 20_000;

/// What a run was told to do by KILN_SEED and KILN_STEPS, or else by chance and `steps`.
pub(crate) fn wanted(steps: usize) -> (u64, usize) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number in the environment"))
    };
    let seed = number("KILN_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    (seed, number("KILN_STEPS").map_or(steps, |steps| steps as usize))
}

/// The directories of a model and of what is compared with it; runs make numbered ones in them.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) model: &'a Path,
    pub(crate) tried: &'a Path,
}

/// A difference, and what led there.
struct Failure {
    ops: Vec<Op>,
    what: String,
}

impl Failure {
    fn tell(&self, seed: u64) -> ! {
        let ops: Vec<_> = self.ops.iter().map(|op| format!("  {op:?}")).collect();
        panic!("KILN_SEED={seed}: after\n{}\n{}", ops.join("\n"), self.what);
    }
}

/// Both worlds, and what was done in them.
struct Run {
    model: World,
    tried: World,
    ops: Vec<Op>,
}

impl Run {
    fn new(pair: &Pair<'_>, name: &str) -> Self {
        let (model, tried) =
            (World::new(&pair.model.join(name)), World::new(&pair.tried.join(name)));
        Self { model, tried, ops: Vec::new() }
    }

    /// Does it in both.
    fn step(&mut self, op: Op) -> Result<(), String> {
        let (expected, found) = (self.model.apply(&op), self.tried.apply(&op));
        self.ops.push(op);
        if let Err(error @ (Errno::NOTCONN | Errno::CONNABORTED)) = found {
            panic!("the mount is gone: {error}");
        }
        difference(&expected, &found).map_or(Ok(()), Err)
    }

    /// Compares both trees.
    fn compare(&self) -> Result<(), String> {
        let take = |world: &World| Snapshot::take(world.root());
        let model = take(&self.model).expect("the model can be read");
        let tried =
            take(&self.tried).map_err(|error| format!("the tree cannot be read: {error}"))?;
        model.difference(&tried).map_or(Ok(()), Err)
    }

    fn finish(&mut self) -> Result<(), String> {
        self.model.close_all();
        self.tried.close_all();
        self.compare()
    }

    fn random(&mut self, seed: u64, steps: usize) -> Result<(), String> {
        let mut generator = Generator::new(seed);
        for number in 0..steps {
            let names = snapshot::names(self.model.root());
            let op = generator.next(&There { names: &names, slots: self.model.slots() });
            self.step(op)?;
            if number % 250 == 249 {
                self.compare()?;
            }
        }
        self.finish()
    }
}

/// Does `steps` random operations in both and compares what came of each, and the trees at the end. A
/// difference is brought down to few operations and panics. Returns the name of the trees.
pub(crate) fn random_run(pair: &Pair<'_>, seed: u64, steps: usize) -> String {
    let name = format!("run-{seed}");
    if let Err(failure) = once(pair, &name, seed, steps) {
        shrink(pair, &name, failure).tell(seed);
    }
    name
}

/// The same where a difference hangs on more than the operations: it is told as it came.
pub(crate) fn random_run_once(pair: &Pair<'_>, seed: u64, steps: usize) -> String {
    let name = format!("run-{seed}");
    if let Err(failure) = once(pair, &name, seed, steps) {
        failure.tell(seed);
    }
    name
}

fn once(pair: &Pair<'_>, name: &str, seed: u64, steps: usize) -> Result<(), Failure> {
    println!("KILN_SEED={seed} KILN_STEPS={steps}");
    let mut run = Run::new(pair, name);
    run.random(seed, steps).map_err(|what| {
        run.model.close_all();
        run.tried.close_all();
        Failure { ops: std::mem::take(&mut run.ops), what }
    })
}

/// Whether random operations find a defect in what is beside the model.
pub(crate) fn finds(pair: &Pair<'_>, seed: u64, steps: usize, planted: Defect) -> bool {
    let mut run = Run::new(pair, &format!("planted-{seed}"));
    run.tried = run.tried.with(Some(planted));
    run.random(seed, steps).is_err()
}

/// Compares the trees of an earlier run.
pub(crate) fn compare(pair: &Pair<'_>, name: &str) {
    let at = |base: &Path| World::at(&base.join(name));
    let run = Run { model: at(pair.model), tried: at(pair.tried), ops: Vec::new() };
    run.compare().unwrap_or_else(|what| panic!("{name}: {what}"));
}

/// Leaves out what is not needed for a failure, as long as the budget lasts.
fn shrink(pair: &Pair<'_>, name: &str, mut failure: Failure) -> Failure {
    let mut spent = 0;
    let mut size = failure.ops.len() / 2;
    let mut tries = 0;
    while size > 0 && spent < SHRINKING {
        let mut at = 0;
        let mut smaller = false;
        while at < failure.ops.len() && spent < SHRINKING {
            let mut ops = failure.ops.clone();
            ops.drain(at..ops.len().min(at + size));
            spent += ops.len() + 50;
            tries += 1;
            match replay(pair, &format!("{name}-{tries}"), &ops) {
                Some(other) => (failure, smaller) = (other, true),
                None => at += size,
            }
        }
        if !smaller || size > 1 {
            size /= 2;
        }
    }
    failure
}

fn replay(pair: &Pair<'_>, name: &str, ops: &[Op]) -> Option<Failure> {
    let mut run = Run::new(pair, name);
    let failed = ops.iter().cloned().try_for_each(|op| run.step(op)).and_then(|()| run.finish());
    let failure = failed.err().map(|what| Failure { ops: std::mem::take(&mut run.ops), what });
    drop(run);
    for base in [pair.model, pair.tried] {
        let _ = std::fs::remove_dir_all(base.join(name));
    }
    failure
}

/// A directory below `parent` that everybody may pass.
pub(crate) fn open_dir(parent: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = parent.join(name);
    std::fs::create_dir(&path).expect("a new directory");
    for dir in [parent, &path] {
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir, everybody).expect("one's own directory");
    }
    path
}
