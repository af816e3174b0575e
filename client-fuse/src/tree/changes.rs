//! What other clients change: the kernel is made to forget it, and then they are answered.

use crate::filesystem::Dropped;
use crate::tree::{Tree, append};
use kiln_client::{Change, Heard};
use kiln_types::InodeId;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether this mount itself is what a name waits for.
const LOOK: Duration = Duration::from_millis(2);
/// Who asked has given this mount up by then.
const PATIENCE: Duration = Duration::from_secs(5);

/// Passes on what other clients change, for as long as the mount lives.
pub(crate) async fn follow(tree: Arc<Tree>) {
    let mut changes = tree.client.watch();
    let mut connected = changes.connected();
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Ok(heard) => hear(&tree, heard),
                Err(_) => return,
            },
            up = connected.changed() => {
                if up.is_err() {
                    return;
                }
                let is_up = *connected.borrow_and_update();
                tree.fresh.lock().set_connected(is_up);
                if !is_up {
                    // From here on changes are missed.
                    everything(&tree, &mut Dropping::default());
                }
            }
        }
    }
}

/// What the kernel is still to forget.
#[derive(Default)]
struct Dropping {
    pages: Vec<Dropped>,
    /// By directory; `None`: in any.
    names: Vec<(Option<InodeId>, Dropped)>,
}

fn hear(tree: &Arc<Tree>, mut heard: Heard) {
    let mut dropping = Dropping::default();
    for change in std::mem::take(&mut heard.changes) {
        apply(tree, change, &mut dropping);
    }
    if dropping.pages.is_empty() && dropping.names.is_empty() {
        return heard.done();
    }
    let tree = Arc::clone(tree);
    let env = tree.env.clone();
    let rest = async move {
        let settled = settle(&tree, dropping);
        if tree.env.timeout(PATIENCE, "the kernel", settled).await.is_ok() {
            heard.done();
        }
    };
    env.spawn("kernel forgets", rest).detach();
}

/// Waits until the kernel has forgotten it. Without an answer there is no kernel (any more).
///
/// A name is not waited for while this mount changes its directory: the kernel lets go of that with the answer, which
/// may wait for other mounts that wait for this one.
async fn settle(tree: &Tree, dropping: Dropping) {
    for dropped in dropping.pages {
        let _ = dropped.await;
    }
    for (parent, mut dropped) in dropping.names {
        while !tree.fresh.lock().is_changing(parent)
            && tree.env.timeout(LOOK, "a name", &mut dropped).await.is_err()
        {}
    }
}

/// First no answer under way may be kept, then what was kept goes: the other way round one could slip in
/// between.
fn apply(tree: &Arc<Tree>, change: Change, dropping: &mut Dropping) {
    match change {
        Change::Inode { inode, content } => {
            tree.fresh.lock().change(inode);
            if let Some(open) = tree.nodes.open(inode) {
                open.note_change();
            }
            if content {
                tree.nodes.changed_elsewhere(inode);
                dropping.pages.push(drop_content(tree, inode));
            } else {
                tree.kernel.drop_attributes(tree.shown(inode));
            }
        }
        Change::Name { parent, name } => {
            tree.fresh.lock().name_changed(parent, &name);
            let dropped = tree.kernel.drop_name(tree.shown(parent), &name);
            dropping.names.push((Some(parent), dropped));
        }
        Change::Unlocked { inode } => {
            if let Some(open) = tree.nodes.open(inode) {
                open.locks.wake();
            }
        }
        Change::Append { inode } => append::give_back(tree, inode),
        Change::Everything => {
            tree.fresh.lock().miss();
            everything(tree, dropping);
        }
    }
}

fn everything(tree: &Arc<Tree>, dropping: &mut Dropping) {
    for inode in tree.nodes.everything_changed() {
        dropping.pages.push(drop_content(tree, inode));
    }
    for open in tree.nodes.all_open() {
        open.note_change();
        // What others wait for may have been missed.
        open.locks.wake();
        append::give_back(tree, open.inode());
    }
    dropping.names.push((None, tree.kernel.drop_all_names()));
}

fn drop_content(tree: &Tree, inode: InodeId) -> Dropped {
    if let Some(open) = tree.nodes.open(inode) {
        open.content().invalidate();
    }
    tree.kernel.drop_content(tree.shown(inode))
}
