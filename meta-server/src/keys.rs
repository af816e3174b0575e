//! The keys of the schema. Every key begins with the tree id and one byte that says what it is.
//!
//! | byte | then | value |
//! | --- | --- | --- |
//! | `F` | | [`Format`](crate::records::Format): drawn once, when the tree is made |
//! | `M` | | [`Moving`](crate::records::Moving): it is on its way between two stores |
//! | `a` | inode | [`LostIds`](crate::records::LostIds): ids from there on that may have been given behind a backup |
//! | `A` | | the next inode id that no server has taken yet |
//! | `U` | | number of inodes, ADD |
//! | `I` | inode | [`Inode`](crate::records::Inode) |
//! | `L` | inode | subdirectories of a directory, ADD |
//! | `T` | inode | when a directory's entries changed last, MAX |
//! | `D` | directory, cookie | [`Slot`](crate::records::Slot): one directory entry |
//! | `N` | inode, name | length of an extended attribute |
//! | `X` | inode, name | an extended attribute |
//! | `S` | inode, 0 = may write or 1, client, session | an open file, by inode |
//! | `H` | client, session | [`Handle`](crate::records::Handle): an open file, by client |
//! | `C` | client | [`Client`](crate::records::Client) |
//! | `B` | client | signs of life of a client, ADD |
//! | `R` | client, slot | [`Reply`](crate::records::Reply): the last change in that slot |
//! | `K` | inode | [`Locks`](crate::locks::Locks): its advisory locks |
//! | `J` | client, inode | empty: the client holds locks there |
//! | `P` | directory | empty: it was removed with what is in it, which has yet to go |
//! | `Q` | account | [`QuotaLimits`](kiln_types::QuotaLimits): the quota of a directory, user or group |
//! | `W` | | counts changes of quotas and of how the trash is set, ADD |
//! | `V` | account, 0 = bytes, 1 = inodes | what counts for it, ADD |
//! | `O` | directory | directories that have yet to be counted for its quota, ADD |
//! | `Y` | directory | [`Recount`](crate::records::Recount): its entries have yet to be counted for its quota |
//! | `Z` | | up to which inode those are counted that were there before quotas, MAX |
//! | `G` | inode, epoch | [`Garbage`](crate::records::Garbage): chunks to remove |
//! | `E` | 0 | [`Trash`](crate::records::Trash): how long what is removed stays |
//! | `E` | 1, removed at, inode | [`Item`](crate::records::Item): what was removed, and is in the trash |
//! | `E` | 2, inode | when it went to the trash, the oldest being the lowest |
//! | `E` | 3, 0 = bytes, 1 = inodes | what is in the trash, but for what is in directories there, ADD |

use crate::SessionId;
use crate::records::{marked_time, time_mark};
use kiln_kv::{KeyRange, KeyReader, KeyWriter};
use kiln_types::{Account, ClientId, Error, InodeId, Result, Timestamp, TreeId, TruncateEpoch};

/// Builds the keys of one tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) tree: TreeId,
}

impl Keys {
    fn of(self, kind: u8) -> KeyWriter {
        KeyWriter::new().u32(self.tree.0).u8(kind)
    }

    pub(crate) fn format(self) -> Vec<u8> {
        self.of(b'F').finish()
    }

    /// Every key of the tree.
    pub(crate) fn all(self) -> KeyRange {
        KeyRange::prefix(&KeyWriter::new().u32(self.tree.0).finish())
    }

    pub(crate) fn lost_ids(self, first: InodeId) -> Vec<u8> {
        self.of(b'a').u64(first.0).finish()
    }

    pub(crate) fn all_lost_ids(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'a').finish())
    }

    pub(crate) fn moving(self) -> Vec<u8> {
        self.of(b'M').finish()
    }

    pub(crate) fn next_inode(self) -> Vec<u8> {
        self.of(b'A').finish()
    }

    pub(crate) fn inode_count(self) -> Vec<u8> {
        self.of(b'U').finish()
    }

    pub(crate) fn inode(self, inode: InodeId) -> Vec<u8> {
        self.of(b'I').u64(inode.0).finish()
    }

    pub(crate) fn inodes(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'I').finish())
    }

    pub(crate) fn links(self, inode: InodeId) -> Vec<u8> {
        self.of(b'L').u64(inode.0).finish()
    }

    pub(crate) fn changed(self, inode: InodeId) -> Vec<u8> {
        self.of(b'T').u64(inode.0).finish()
    }

    pub(crate) fn slot(self, directory: InodeId, cookie: u64) -> Vec<u8> {
        self.of(b'D').u64(directory.0).u64(cookie).finish()
    }

    pub(crate) fn slots(self, directory: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'D').u64(directory.0).finish())
    }

    pub(crate) fn xattr_name(self, inode: InodeId, name: &[u8]) -> Vec<u8> {
        self.of(b'N').u64(inode.0).rest(name).finish()
    }

    pub(crate) fn xattr_names(self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'N').u64(inode.0).finish())
    }

    pub(crate) fn xattr(self, inode: InodeId, name: &[u8]) -> Vec<u8> {
        self.of(b'X').u64(inode.0).rest(name).finish()
    }

    pub(crate) fn xattrs(self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'X').u64(inode.0).finish())
    }

    /// Writers sort first, so that they are found without reading past a crowd of readers.
    pub(crate) fn session(
        self,
        inode: InodeId,
        write: bool,
        client: ClientId,
        session: SessionId,
    ) -> Vec<u8> {
        let class = u8::from(!write);
        self.of(b'S').u64(inode.0).u8(class).u128(client.0).u128(session.0).finish()
    }

    pub(crate) fn sessions(self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'S').u64(inode.0).finish())
    }

    pub(crate) fn writers(self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'S').u64(inode.0).u8(0).finish())
    }

    pub(crate) fn sessions_of(self, inode: InodeId, write: bool, client: ClientId) -> KeyRange {
        let class = u8::from(!write);
        KeyRange::prefix(&self.of(b'S').u64(inode.0).u8(class).u128(client.0).finish())
    }

    pub(crate) fn handle(self, client: ClientId, session: SessionId) -> Vec<u8> {
        self.of(b'H').u128(client.0).u128(session.0).finish()
    }

    pub(crate) fn handles(self, client: ClientId) -> KeyRange {
        KeyRange::prefix(&self.of(b'H').u128(client.0).finish())
    }

    pub(crate) fn client(self, client: ClientId) -> Vec<u8> {
        self.of(b'C').u128(client.0).finish()
    }

    pub(crate) fn clients(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'C').finish())
    }

    pub(crate) fn beats(self, client: ClientId) -> Vec<u8> {
        self.of(b'B').u128(client.0).finish()
    }

    pub(crate) fn reply(self, client: ClientId, slot: u64) -> Vec<u8> {
        self.of(b'R').u128(client.0).u64(slot).finish()
    }

    pub(crate) fn replies(self, client: ClientId) -> KeyRange {
        KeyRange::prefix(&self.of(b'R').u128(client.0).finish())
    }

    pub(crate) fn locks(self, inode: InodeId) -> Vec<u8> {
        self.of(b'K').u64(inode.0).finish()
    }

    pub(crate) fn lock_of(self, client: ClientId, inode: InodeId) -> Vec<u8> {
        self.of(b'J').u128(client.0).u64(inode.0).finish()
    }

    pub(crate) fn locks_of(self, client: ClientId) -> KeyRange {
        KeyRange::prefix(&self.of(b'J').u128(client.0).finish())
    }

    pub(crate) fn detached(self, directory: InodeId) -> Vec<u8> {
        self.of(b'P').u64(directory.0).finish()
    }

    pub(crate) fn all_detached(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'P').finish())
    }

    pub(crate) fn quota(self, account: Account) -> Vec<u8> {
        let (kind, number) = account.to_parts();
        self.of(b'Q').u8(kind).u64(number).finish()
    }

    pub(crate) fn quotas(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'Q').finish())
    }

    pub(crate) fn quota_changes(self) -> Vec<u8> {
        self.of(b'W').finish()
    }

    /// Bytes, then inodes.
    pub(crate) fn usage(self, account: Account) -> [Vec<u8>; 2] {
        let (kind, number) = account.to_parts();
        [0, 1].map(|what| self.of(b'V').u8(kind).u64(number).u8(what).finish())
    }

    /// Both.
    pub(crate) fn whole_usage(self, account: Account) -> KeyRange {
        let (kind, number) = account.to_parts();
        KeyRange::prefix(&self.of(b'V').u8(kind).u64(number).finish())
    }

    pub(crate) fn uncounted(self, quota: InodeId) -> Vec<u8> {
        self.of(b'O').u64(quota.0).finish()
    }

    pub(crate) fn recount(self, directory: InodeId) -> Vec<u8> {
        self.of(b'Y').u64(directory.0).finish()
    }

    pub(crate) fn recounts(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'Y').finish())
    }

    pub(crate) fn counted_to(self) -> Vec<u8> {
        self.of(b'Z').finish()
    }

    pub(crate) fn garbage(self, inode: InodeId, epoch: TruncateEpoch) -> Vec<u8> {
        self.of(b'G').u64(inode.0).u64(epoch.0).finish()
    }

    pub(crate) fn garbage_of(self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.of(b'G').u64(inode.0).finish())
    }

    pub(crate) fn garbage_all(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'G').finish())
    }

    pub(crate) fn trash(self) -> Vec<u8> {
        self.of(b'E').u8(0).finish()
    }

    /// The oldest sort first.
    pub(crate) fn item(self, (at, inode): ItemName) -> Vec<u8> {
        self.of(b'E').u8(1).u64(time_mark(at)).u64(inode.0).finish()
    }

    pub(crate) fn items(self) -> KeyRange {
        KeyRange::prefix(&self.of(b'E').u8(1).finish())
    }

    pub(crate) fn item_of(self, inode: InodeId) -> Vec<u8> {
        self.of(b'E').u8(2).u64(inode.0).finish()
    }

    /// Bytes, then inodes.
    pub(crate) fn trash_usage(self) -> [Vec<u8>; 2] {
        [0, 1].map(|what| self.of(b'E').u8(3).u8(what).finish())
    }
}

/// The fields of a key after the tree and the kind.
fn fields(key: &[u8]) -> Result<KeyReader<'_>> {
    let mut fields = KeyReader::new(key);
    fields.u32()?;
    fields.u8()?;
    Ok(fields)
}

/// The cookie in a directory entry's key.
pub(crate) fn cookie_of(key: &[u8]) -> Result<u64> {
    let mut fields = fields(key)?;
    fields.u64()?;
    fields.u64()
}

/// The name in an extended attribute's key.
pub(crate) fn xattr_name_of(key: &[u8]) -> Result<&[u8]> {
    let mut fields = fields(key)?;
    fields.u64()?;
    Ok(fields.rest())
}

/// The client in a client's key, and in an open file's key by client.
pub(crate) fn client_of(key: &[u8]) -> Result<ClientId> {
    Ok(ClientId(fields(key)?.u128()?))
}

/// The session in an open file's key by client.
pub(crate) fn session_of(key: &[u8]) -> Result<SessionId> {
    let mut fields = fields(key)?;
    fields.u128()?;
    Ok(SessionId(fields.u128()?))
}

/// The inode in the key of a client's mark of locks.
pub(crate) fn inode_of_lock(key: &[u8]) -> Result<InodeId> {
    let mut fields = fields(key)?;
    fields.u128()?;
    Ok(InodeId(fields.u64()?))
}

/// The account in a quota's key.
pub(crate) fn account_of(key: &[u8]) -> Result<Account> {
    let mut fields = fields(key)?;
    let (kind, number) = (fields.u8()?, fields.u64()?);
    Account::from_parts(kind, number)
        .ok_or_else(|| Error::corrupt(format!("a quota of kind {kind} for {number}")))
}

/// The directory in the key of one that was removed with what is in it, or whose entries are to be counted.
pub(crate) fn directory_of(key: &[u8]) -> Result<InodeId> {
    Ok(InodeId(fields(key)?.u64()?))
}

/// Names an item of the trash: when it was removed, and the inode.
pub(crate) type ItemName = (Timestamp, InodeId);

/// The name in the key of an item of the trash.
pub(crate) fn item_name(key: &[u8]) -> Result<ItemName> {
    let mut fields = fields(key)?;
    fields.u8()?;
    Ok((marked_time(fields.u64()?), InodeId(fields.u64()?)))
}

/// Inode and epoch in a garbage record's key.
pub(crate) fn garbage_name(key: &[u8]) -> Result<(InodeId, TruncateEpoch)> {
    let mut fields = fields(key)?;
    Ok((InodeId(fields.u64()?), TruncateEpoch(fields.u64()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys { tree: TreeId(3) };

    #[test]
    fn fields_come_back_from_keys() {
        let (inode, client, session) = (InodeId(7), ClientId(8), SessionId(9));
        assert_eq!(cookie_of(&KEYS.slot(inode, 300)), Ok(300));
        assert_eq!(xattr_name_of(&KEYS.xattr_name(inode, b"user.a\xff")), Ok(&b"user.a\xff"[..]));
        assert_eq!(client_of(&KEYS.client(client)), Ok(client));
        let handle = KEYS.handle(client, session);
        assert_eq!((client_of(&handle), session_of(&handle)), (Ok(client), Ok(session)));
        assert_eq!(inode_of_lock(&KEYS.lock_of(client, inode)), Ok(inode));
        for account in [Account::Directory(inode), Account::User(7), Account::Group(0)] {
            assert_eq!(account_of(&KEYS.quota(account)), Ok(account));
        }
        let garbage = KEYS.garbage(inode, TruncateEpoch(2));
        assert_eq!(garbage_name(&garbage), Ok((inode, TruncateEpoch(2))));
        assert!(garbage_name(&garbage[..12]).is_err());
        for at in [i64::MIN, -1, 0, i64::MAX].map(Timestamp) {
            assert_eq!(item_name(&KEYS.item((at, inode))), Ok((at, inode)));
        }
    }

    #[test]
    fn ranges_hold_their_keys_and_no_neighbours() {
        let (inode, client, session) = (InodeId(255), ClientId(u128::MAX), SessionId(9));
        let writer = KEYS.session(inode, true, client, session);
        let reader = KEYS.session(inode, false, client, session);
        assert!(writer < reader);
        assert!(KEYS.writers(inode).contains(&writer) && !KEYS.writers(inode).contains(&reader));
        assert!(KEYS.sessions_of(inode, true, client).contains(&writer));
        assert!(!KEYS.sessions_of(inode, true, client).contains(&reader));
        assert!(KEYS.sessions(inode).contains(&reader));
        assert!(!KEYS.sessions(InodeId(256)).contains(&reader));
        assert!(!KEYS.slots(InodeId(254)).contains(&KEYS.slot(inode, 0)));
        assert!(KEYS.slots(inode).contains(&KEYS.slot(inode, u64::MAX)));
        let item = |at, inode| KEYS.item((Timestamp(at), InodeId(inode)));
        assert!(item(-1, 9) < item(1, 7) && item(1, 7) < item(1, 8));
        assert!(KEYS.items().contains(&item(i64::MAX, u64::MAX)));
        assert!([KEYS.trash(), KEYS.item_of(inode)].iter().all(|key| !KEYS.items().contains(key)));
    }
}
