//! Commands on files in the cluster: ls, cat, mkdir, mv, rm, stat, df, find, layout.

mod cat;
mod df;
mod find;
mod layout;
mod ls;
mod mkdir;
mod mv;
mod rm;
mod show;
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
use kiln_types::{Attr, Context, Result};

impl Remote {
    /// The attributes of what is at `path`; `follow`: also through a symlink in the last place.
    pub(crate) async fn look(&self, path: &KilnPath, follow: bool) -> Result<Attr> {
        let follow = follow || path.slash;
        self.client.resolve(&self.caller, path.as_bytes(), follow).await.context(path)
    }
}
