//! What other clients change: the kernel is made to forget it.

use crate::tree::{Tree, append};
use kiln_client::Change;
use kiln_types::InodeId;
use std::sync::Arc;

/// Passes on what other clients change, for as long as the mount lives.
pub(crate) async fn follow(tree: Arc<Tree>) {
    let mut changes = tree.client.watch();
    let mut connected = changes.connected();
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Ok(change) => apply(&tree, change),
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
                    everything(&tree);
                }
            }
        }
    }
}

/// First no answer under way may be kept, then what was kept goes: the other way round one could slip in
/// between.
fn apply(tree: &Arc<Tree>, change: Change) {
    match change {
        Change::Inode { inode, content } => {
            tree.fresh.lock().change(inode);
            if content {
                tree.nodes.changed_elsewhere(inode);
                drop_content(tree, inode);
            } else {
                tree.kernel.drop_attributes(tree.shown(inode));
            }
        }
        Change::Name { parent, name } => {
            tree.fresh.lock().name_changed(parent, &name);
            tree.kernel.drop_name(tree.shown(parent), &name);
        }
        Change::Unlocked { inode } => {
            if let Some(open) = tree.nodes.open(inode) {
                open.locks.wake();
            }
        }
        Change::Append { inode } => append::give_back(tree, inode),
        Change::Everything => {
            tree.fresh.lock().miss();
            everything(tree);
        }
    }
}

fn everything(tree: &Arc<Tree>) {
    for inode in tree.nodes.everything_changed() {
        drop_content(tree, inode);
    }
    for open in tree.nodes.all_open() {
        // What others wait for may have been missed.
        open.locks.wake();
        append::give_back(tree, open.inode());
    }
    tree.kernel.drop_all_names();
}

fn drop_content(tree: &Tree, inode: InodeId) {
    if let Some(open) = tree.nodes.open(inode) {
        open.content().invalidate();
    }
    tree.kernel.drop_content(tree.shown(inode));
}
