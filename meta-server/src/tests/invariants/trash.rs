//! What is in the trash has an item, and the other way round.

use super::{Found, KEYS, Pairs};
use crate::keys::item_name;
use crate::records::{Body, Item, Record, Trash, number, time_mark};
use crate::store::trash::TRASHED;
use std::collections::BTreeMap;

impl Found {
    pub(super) fn check_trash(&self, pairs: Pairs) {
        let mut pairs: BTreeMap<_, _> = pairs.into_iter().collect();
        let items: Vec<_> = pairs
            .extract_if(.., |key, _| KEYS.items().contains(key))
            .map(|(key, value)| (item_name(&key).expect("a name"), value))
            .collect();
        let (mut bytes, mut inodes) = (0, 0);
        for ((at, inode), value) in &items {
            Item::decode(value).expect("an item");
            let mark = pairs.remove(&KEYS.item_of(*inode)).expect("the way from the inode");
            assert_eq!(number(Some(&mark)), Ok(time_mark(*at)));
            let inode = self.inodes.get(inode).expect("an inode in the trash");
            assert!(inode.parent == TRASHED && inode.links == 0, "{inode:?}");
            inodes += 1;
            bytes += if let Body::File(file) = &inode.body { file.length } else { 0 };
        }
        let marked = self.inodes.values().filter(|inode| inode.parent == TRASHED);
        assert_eq!(marked.count(), items.len());
        for (key, used) in KEYS.trash_usage().into_iter().zip([bytes, inodes]) {
            assert_eq!(number(pairs.remove(&key).as_deref()), Ok(used));
        }
        if let Some(setting) = pairs.remove(&KEYS.trash()) {
            Trash::decode(&setting).expect("a setting");
        }
        assert!(pairs.is_empty(), "{pairs:?}");
    }
}
