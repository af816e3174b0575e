//! The cache of a client that only watches: with what it is told, nothing in it is ever out of
//! date.

use super::{Run, code_of};
use crate::store::Store;
use crate::tests::{abandon, root};
use crate::watch::{Changes, Watcher};
use kiln_types::{Attr, ClientId, Code, InodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Makes no change itself.
const WATCHING: ClientId = ClientId(99);
/// Longer than a watcher pauses, shorter than it is silent.
const MOMENT: Duration = Duration::from_millis(3);

#[derive(Default)]
pub(super) struct Cache {
    watchers: Vec<Watcher>,
    attrs: BTreeMap<InodeId, Attr>,
    names: BTreeMap<(InodeId, Vec<u8>), Option<InodeId>>,
    contents: BTreeMap<InodeId, (u64, BTreeMap<u64, u8>)>,
}

impl Cache {
    pub(super) fn follow(&mut self, servers: &[Arc<Store>]) {
        let watcher = |server: &Arc<Store>| server.watch(WATCHING, false).expect("a watcher");
        self.watchers = servers.iter().map(watcher).collect();
    }

    fn apply(&mut self, changes: &Changes) {
        if changes.is_lost() {
            self.attrs.clear();
            self.names.clear();
            self.contents.clear();
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
    /// Takes in what has been told.
    pub(super) async fn hear(&mut self) {
        let env = self.world.env.clone();
        let mut watchers = std::mem::take(&mut self.cache.watchers);
        for watcher in &mut watchers {
            while let Ok(Some(changes)) = env.timeout(MOMENT, "changes", watcher.next()).await {
                self.cache.apply(&changes);
                self.locks.heard_all |= changes.is_lost();
                self.locks.heard.extend(changes.unlocked_inodes());
            }
        }
        self.cache.watchers = watchers;
    }

    /// Compares what is left in the cache, and fills it again.
    pub(super) async fn check_cache(&mut self) {
        self.hear().await;
        for (id, attr) in std::mem::take(&mut self.cache.attrs) {
            let now = insist!(self, s => async { s.get_attr(&root(), id).await });
            assert_eq!(
                now.as_ref().ok(),
                Some(&attr),
                "an inode changed unheard of: {}",
                self.recent()
            );
        }
        for ((parent, name), cached) in std::mem::take(&mut self.cache.names) {
            // A directory without a name has no entries.
            let now = self.model.nodes.get(&parent).and_then(|node| node.names.get(&name));
            let name = name.escape_ascii();
            assert_eq!(now.copied(), cached, "'{name}' in {parent}: {}", self.recent());
        }
        for (id, content) in std::mem::take(&mut self.cache.contents) {
            // What was written is not told before it is reported.
            let is_written = self.open.iter().any(|file| file.inode == id && file.written.end > 0);
            let now = self.model.nodes.get(&id).map(|node| (node.length, node.bytes.clone()));
            let is_same = now.as_ref().is_none_or(|now| *now == content);
            assert!(is_same || is_written, "{id} from {content:?} to {now:?}: {}", self.recent());
        }
        for (id, node) in &self.model.nodes {
            let id = *id;
            for name in (0..10).map(|number| format!("n{number}").into_bytes()) {
                let found = node.names.get(&name).copied();
                self.cache.names.insert((id, name), found);
            }
            self.cache.contents.insert(id, (node.length, node.bytes.clone()));
        }
        for id in self.model.nodes.keys().copied().collect::<Vec<_>>() {
            let attr = insist!(self, s => async { s.get_attr(&root(), id).await });
            self.cache.attrs.insert(id, attr.expect("an inode"));
        }
    }

    pub(super) fn recent(&self) -> String {
        self.log[self.log.len().saturating_sub(12)..].join("\n")
    }
}
