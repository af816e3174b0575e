//! The cache of a client that only watches: when a change is answered, nothing in it is out of date.

use super::{Run, code_of};
use crate::store::Store;
use crate::tests::watcher::Watcher;
use crate::tests::{abandon, root};
use crate::watch::Changes;
use kiln_env::Env;
use kiln_types::{Attr, ClientId, Code, InodeId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Makes no change itself.
pub(super) const WATCHING: ClientId = ClientId(99);
/// Long enough for a message about what nobody waits for.
const MOMENT: Duration = Duration::from_millis(3);

#[derive(Default)]
pub(super) struct Cache {
    watchers: Vec<Watcher>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    attrs: BTreeMap<InodeId, Attr>,
    names: BTreeMap<(InodeId, Vec<u8>), Option<InodeId>>,
    contents: BTreeMap<InodeId, (u64, BTreeMap<u64, u8>)>,
}

impl Cache {
    pub(super) async fn follow(&mut self, env: &Env, servers: &[Arc<Store>]) {
        self.watchers.clear();
        for server in servers {
            let kept = Arc::clone(&self.kept);
            let take = move |changes: &Changes| kept.lock().apply(changes);
            let wide = (false, false);
            self.watchers.push(Watcher::passing_on(env, server, WATCHING.0, wide, take));
        }
        for watcher in &self.watchers {
            watcher.first(env).await;
        }
    }
}

impl Kept {
    fn apply(&mut self, changes: &Changes) {
        if changes.is_lost() {
            *self = Self::default();
        }
        for (inode, content) in changes.inodes() {
            self.attrs.remove(&inode);
            if content {
                self.contents.remove(&inode);
            }
        }
        for (parent, name) in changes.names() {
            self.names.remove(&(parent, name.to_vec()));
        }
    }
}

impl Run {
    /// Takes in what nobody waits for: locks that ended, and what the keepers did.
    pub(super) async fn hear(&mut self) {
        self.world.env.sleep(MOMENT).await;
        for watcher in &self.cache.watchers {
            let changes = watcher.take();
            self.locks.heard_all |= changes.is_lost();
            self.locks.heard.extend(changes.unlocked_inodes());
        }
    }

    /// Compares what is left in the cache, and fills it again.
    pub(super) async fn check_cache(&mut self) {
        let Kept { attrs, names, contents } = std::mem::take(&mut *self.cache.kept.lock());
        for (id, attr) in attrs {
            let now = insist!(self, s => async { s.get_attr(&root(), id).await });
            assert_eq!(
                now.as_ref().ok(),
                Some(&attr),
                "an inode changed unheard of: {}",
                self.recent()
            );
        }
        for ((parent, name), cached) in names {
            // A directory without a name has no entries.
            let now = self.model.nodes.get(&parent).and_then(|node| node.names.get(&name));
            let name = name.escape_ascii();
            assert_eq!(now.copied(), cached, "'{name}' in {parent}: {}", self.recent());
        }
        for (id, content) in contents {
            // What was written is not told before it is reported.
            let is_written = self.open.iter().any(|file| file.inode == id && file.written.end > 0);
            let now = self.model.nodes.get(&id).map(|node| (node.length, node.bytes.clone()));
            let is_same = now.as_ref().is_none_or(|now| *now == content);
            assert!(is_same || is_written, "{id} from {content:?} to {now:?}: {}", self.recent());
        }
        for (id, node) in &self.model.nodes {
            let mut kept = self.cache.kept.lock();
            for name in (0..10).map(|number| format!("n{number}").into_bytes()) {
                kept.names.insert((*id, name.clone()), node.names.get(&name).copied());
            }
            kept.contents.insert(*id, (node.length, node.bytes.clone()));
        }
        for id in self.model.nodes.keys().copied().collect::<Vec<_>>() {
            let attr = insist!(self, s => async { s.get_attr(&root(), id).await });
            self.cache.kept.lock().attrs.insert(id, attr.expect("an inode"));
        }
    }

    pub(super) fn recent(&self) -> String {
        self.log[self.log.len().saturating_sub(12)..].join("\n")
    }
}
