//! The whole tree against the model's.

use super::{Run, SPOTS, code_of};
use crate::store::Who;
use crate::tests::{abandon, root};
use kiln_types::{Code, FileKind, InodeId, Result};
use std::collections::BTreeSet;

impl Run {
    /// A whole directory, in small pages.
    pub(super) async fn list(
        &mut self,
        who: &Who,
        inode: InodeId,
    ) -> Result<BTreeSet<(Vec<u8>, InodeId)>> {
        let (mut names, mut after) = (BTreeSet::new(), 0);
        loop {
            let (page, end) =
                insist!(self, s => async { s.read_dir(who, inode, after, 2, true).await })?;
            for entry in page {
                assert!(entry.cookie > after, "cookies grow");
                assert!(entry.attr.is_none_or(|attr| attr.inode == entry.inode));
                after = entry.cookie;
                assert!(names.insert((entry.name, entry.inode)), "a name twice");
            }
            if end {
                return Ok(names);
            }
        }
    }

    pub(super) async fn compare(&mut self) {
        let ids: Vec<_> = self.model.nodes.keys().copied().collect();
        for id in ids {
            let attr =
                insist!(self, s => async { s.get_attr(&root(), id).await }).expect("an inode");
            let node = &self.model.nodes[&id];
            assert_eq!((attr.kind, attr.mode), (node.kind, node.mode), "inode {id}");
            assert_eq!((attr.uid, attr.gid), (node.uid, node.gid), "inode {id}");
            assert_eq!(attr.links, self.model.links(id), "links of {id}");
            for (name, span, time) in [
                ("atime", node.atime, attr.atime),
                ("mtime", node.mtime, attr.mtime),
                ("ctime", node.ctime, attr.ctime),
            ] {
                assert!(span.holds(time), "{name} of {id}: {time} is not in {span:?}");
            }
            match node.kind {
                FileKind::File => {
                    assert_eq!(attr.length, node.length, "length of {id}");
                    assert!(attr.dense_end <= attr.length, "inode {id}");
                    for offset in 0..attr.dense_end {
                        assert_ne!(self.world.chunks.read(&attr, offset), 0, "a hole in {id}");
                    }
                    for spot in SPOTS {
                        let byte = node.bytes.get(&spot).filter(|_| spot < node.length);
                        let read = self.world.chunks.read(&attr, spot);
                        assert_eq!(read, byte.copied().unwrap_or(0), "inode {id} at {spot}");
                    }
                }
                FileKind::Symlink => {
                    let target = node.target.clone();
                    assert_eq!(attr.length, target.len() as u64);
                    let read = insist!(self, s => async { s.read_link(&root(), id).await });
                    assert_eq!(read, Ok(target));
                }
                FileKind::Fifo | FileKind::Socket => assert_eq!((attr.length, attr.device), (0, 0)),
                FileKind::CharDevice | FileKind::BlockDevice => {
                    assert_eq!((attr.length, attr.device), (0, node.device));
                }
                FileKind::Directory => {
                    let names = self.list(&root(), id).await.expect("a listing");
                    assert_eq!(names, self.model.nodes[&id].names.clone().into_iter().collect());
                }
            }
        }
        assert_eq!(self.world.store.inode_count().await, Ok(self.model.nodes.len() as u64));
    }
}
