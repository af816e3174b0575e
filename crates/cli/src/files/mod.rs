//! Commands on files in the cluster: ls, cat, mkdir, mv, rm, stat, df, find, layout.

mod cat;
mod df;
mod find;
mod layout;
mod ls;
mod mkdir;
mod mv;
mod rm;
pub(crate) mod show;
mod stat;

pub(crate) use cat::{Args as CatArgs, run as cat};
pub(crate) use df::{Args as DfArgs, run as df};
pub(crate) use find::{Args as FindArgs, run as find};
pub(crate) use layout::{Args as LayoutArgs, run as layout};
pub(crate) use ls::{Args as LsArgs, run as ls};
pub(crate) use mkdir::{Args as MkdirArgs, run as mkdir};
pub(crate) use mv::{Args as MvArgs, run as mv};
pub(crate) use rm::{Args as RmArgs, run as rm};
pub(crate) use stat::{Args as StatArgs, run as stat};

use crate::path::KilnPath;
use crate::remote::Remote;
use kiln_types::{Attr, Code, Context, FileKind, InodeId, Result};
use std::collections::BTreeMap;

impl Remote {
    /// The attributes of what is at `path`; `follow`: also through a symlink in the last place.
    pub(crate) async fn look(&self, path: &KilnPath, follow: bool) -> Result<Attr> {
        let follow = follow || path.slash;
        self.client.resolve(&self.caller, path.as_bytes(), follow).await.context(path)
    }

    /// The same for many paths: those in one directory are asked for at once.
    pub(crate) async fn look_all(&self, paths: &[KilnPath], follow: bool) -> Vec<Result<Attr>> {
        let mut directories: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        for (at, path) in paths.iter().enumerate() {
            if let Some((parent, _)) = path.split().filter(|_| !path.slash) {
                directories.entry(parent.as_bytes().to_vec()).or_default().push(at);
            }
        }
        let mut found: Vec<Option<Attr>> = vec![None; paths.len()];
        for together in directories.into_values().filter(|together| together.len() > 1) {
            let split = together.iter().filter_map(|at| paths[*at].split());
            let (parents, names): (Vec<_>, Vec<_>) = split.unzip();
            // What has gone wrong with one is told of that one, below.
            let Ok(parent) = self.look(&parents[0], true).await else { continue };
            let entries = self.client.lookup_many(&self.caller, parent.inode, &names).await;
            for (at, attr) in together.into_iter().zip(entries) {
                found[at] = attr.ok().filter(|attr| !follow || attr.kind != FileKind::Symlink);
            }
        }
        let mut all = Vec::with_capacity(paths.len());
        for (path, found) in paths.iter().zip(found) {
            all.push(match found {
                Some(attr) => Ok(attr),
                None => self.look(path, follow).await,
            });
        }
        all
    }

    /// The directory at `path`, if there is one.
    pub(crate) async fn directory(&self, path: &KilnPath) -> Result<Option<InodeId>> {
        match self.look(path, true).await {
            Ok(attr) => Ok((attr.kind == FileKind::Directory).then_some(attr.inode)),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
