//! What is in the trash, as it is shown.

use super::{PAGE, concerns, expires, is_own};
use crate::keys::{ItemName, item_name};
use crate::records::{Item, Record, Trash};
use crate::store::lookup::{check_confined, components, root_of};
use crate::store::{Store, Who};
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{Code, Error, InodeId, Result, TrashItem};
use std::collections::HashMap;
use std::time::Duration;

/// A page that has taken so long is answered as far as it is.
const TIME_MAX: Duration = Duration::from_secs(1);

impl Store {
    /// A page of what is in the trash behind an item, the oldest first, and the item behind which to go on; `None`
    /// at the end. A page may be empty before that. Users see what they removed or own; with `all` root sees
    /// everything.
    ///
    /// # Errors
    /// `NotPermitted` for `all` unless root asks, `NotAuthorized`, or what kv reports.
    pub async fn trash_items(
        &self,
        who: &Who,
        all: bool,
        after: Option<ItemName>,
    ) -> Result<(Vec<TrashItem>, Option<ItemName>)> {
        if all && who.caller.uid != 0 {
            let text = "only root sees what other users removed";
            return Err(Error::new(Code::NotPermitted, text));
        }
        let begin = self.env.now();
        let (seen, mut next) =
            self.transact("trash", &|tx| Box::pin(page(tx, who, all, after))).await?;
        let (mut items, mut paths) = (Vec::with_capacity(seen.len()), HashMap::new());
        for mut item in seen {
            item.directory = match paths.get(&item.parent) {
                Some(path) => Option::clone(path),
                None => {
                    let path = self.path_for(who, item.parent).await?;
                    paths.entry(item.parent).or_insert(path).clone()
                }
            };
            let name = (item.removed, item.attr.inode);
            items.push(item);
            if self.env.now().since(begin) > TIME_MAX {
                next = Some(name);
                break;
            }
        }
        Ok((items, next))
    }

    /// The path of a directory as a caller sees it, who may be confined to one above it.
    async fn path_for(&self, who: &Who, directory: InodeId) -> Result<Option<Vec<u8>>> {
        let path = self.path_of(directory).await?;
        Ok(path.and_then(|path| below(&path, who.subtree.as_deref().unwrap_or("/"))))
    }
}

/// `path` as it is called below `top`; `None` when it is not there.
fn below(path: &[u8], top: &str) -> Option<Vec<u8>> {
    let mut rest = path;
    for name in components(top.as_bytes()) {
        rest = rest.strip_prefix(b"/")?.strip_prefix(name)?;
    }
    match rest.first() {
        None => Some(b"/".to_vec()),
        Some(b'/') => Some(rest.to_vec()),
        Some(_) => None,
    }
}

async fn page(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    all: bool,
    after: Option<ItemName>,
) -> Result<(Vec<TrashItem>, Option<ItemName>)> {
    let Trash { keep, .. } = tx.get(&tx.keys.trash()).await?.unwrap_or_default();
    let root = root_of(tx, who).await?;
    let mut range = tx.keys.items();
    if let Some(after) = after {
        range = range.after(&tx.keys.item(after));
    }
    let page = tx.kv.range(range, RangeOptions::limit(PAGE).snapshot()).await?;
    let mut seen = Vec::new();
    for (key, value) in &page {
        let (name, item) = (item_name(key)?, Item::decode(value)?);
        let Some(inode) = tx.find_inode(name.1).await? else { continue };
        let concerns = if all { concerns } else { is_own };
        if !concerns(who, &item, &inode) {
            continue;
        }
        if root != InodeId::ROOT {
            match check_confined(tx, root, &inode).await {
                Err(error) if error.code() == Code::NotAuthorized => continue,
                checked => checked?,
            }
        }
        let (removed, expires) = (name.0, expires(name.0, keep));
        let (attr, by) = (tx.attr(&inode).await?, item.by);
        let (parent, name) = (item.directory, item.name);
        seen.push(TrashItem { attr, removed, expires, by, name, parent, directory: None });
    }
    let last = page.last().filter(|_| page.len() == PAGE);
    Ok((seen, last.map(|(key, _)| item_name(key)).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn a_path_begins_at_the_directory_that_a_caller_may_not_leave() {
        let below = |path: &str, top| below(path.as_bytes(), top).map(String::from_utf8);
        for (path, top, expected) in [
            ("/", "/", Some("/")),
            ("/a/b", "/", Some("/a/b")),
            ("/a/b", "/a", Some("/b")),
            ("/a/b", "/a/b/", Some("/")),
            ("/ab", "/a", None),
            ("/", "/a", None),
        ] {
            assert_eq!(below(path, top), expected.map(|path| Ok(path.into())), "{path} in {top}");
        }
    }
}
