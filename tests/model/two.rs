//! Two mounts of one file system: what one has closed, the other one sees when it opens.

use super::generate::{Generator, There};
use super::op::{Op, Outcome, Seen, difference};
use super::snapshot::{Snapshot, names};
use super::world::{World, attr};
use rustix::fs as sys;
use std::io::Read;
use std::path::Path;

/// Does `steps` random episodes, each in the model and through one of two mounts of the same tree, and
/// looks at the tree through the other one after each.
pub(crate) fn random_run(model: &Path, mounts: [&Path; 2], seed: u64, steps: usize) {
    println!("KILN_SEED={seed} KILN_STEPS={steps}");
    let name = format!("two-{seed}");
    let mut model = World::new(&model.join(&name));
    let mut worlds = [World::new(&mounts[0].join(&name)), World::at(&mounts[1].join(&name))];
    let mut generator = Generator::new(seed);
    let mut sides = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    for _ in 0..steps {
        let side = sides.usize(..2);
        let there = names(model.root());
        let ops = generator.episode(&There { names: &there, slots: model.slots() });
        let content = ops.first().and_then(content_of).filter(|path| is_file(&model, path));
        let failed = ops.iter().find_map(|op| {
            done.push(format!("  {side} {op:?}"));
            if matches!(op, Op::Become(_)) {
                let _ = worlds[1 - side].apply(op);
            }
            difference(&model.apply(op), &worlds[side].apply(op))
        });
        let other = &worlds[1 - side];
        let seen = || content.and_then(|path| opened(&model, other, path));
        if let Some(what) = failed.or_else(seen).or_else(|| shown(&model, other)) {
            let done = done.join("\n");
            panic!("KILN_SEED={seed}: after (mount, operation)\n{done}\n{what}");
        }
    }
}

/// The file whose content or attributes an operation changes, and no name.
fn content_of(op: &Op) -> Option<&str> {
    match op {
        Op::Open { path, .. }
        | Op::Truncate { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::Times { path, .. } => Some(path),
        _ => None,
    }
}

fn is_file(world: &World, path: &str) -> bool {
    std::fs::symlink_metadata(world.root().join(path)).is_ok_and(|meta| meta.is_file())
}

/// What an open shows at once.
fn opened(model: &World, other: &World, path: &str) -> Option<String> {
    let look = |world: &World| {
        let look = || -> std::io::Result<_> {
            let mut file = std::fs::File::open(world.root().join(path))?;
            let mut bytes = Vec::new();
            let attr = attr(&sys::fstat(&file)?);
            file.read_to_end(&mut bytes)?;
            Ok((Ok(Seen::Attr(attr)), Ok(Seen::Bytes(bytes))))
        };
        look().unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (expected, found): ((Outcome, Outcome), _) = (look(model), look(other));
    let differs = difference(&expected.0, &found.0).or_else(|| difference(&expected.1, &found.1));
    differs.map(|what| format!("{path} opened through the other mount: {what}"))
}

/// How the tree differs that the other mount shows, now that the change is done.
fn shown(model: &World, other: &World) -> Option<String> {
    let expected = Snapshot::take(model.root()).expect("the model can be read");
    match Snapshot::take(other.root()) {
        Ok(found) => expected.difference(&found),
        Err(error) => Some(error.to_string()),
    }
    .map(|what| format!("the other mount still shows something else: {what}"))
}
