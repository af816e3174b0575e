//! The metadata calls, in one list for those who make them and those who answer them.
//!
//! A call is a request on a connection of frames: its number is the frame's operation, its body the client's id and
//! the message of the .proto file. Answers have to fit into a body, too ([`fitting`]).

use kiln_types::{ClientId, Error, Result};
use prost::Message;

/// The number of the call `Watch`, which answers late: see the .proto file.
pub const WATCH: u16 = 0x100;

/// The number of the call `Claim`, which goes to the server that it is meant for.
pub const CLAIM: u16 = 0x12c;

/// Calls `$with!` with the metadata calls: what each does, its number on the wire, its name and messages.
#[macro_export]
macro_rules! metadata_calls {
    ($with:ident) => {
        $with! {
            /// The entry of a name in a directory.
            0x101 lookup(LookupRequest) -> Entry;
            /// Walks a path from a directory on the server, in one round trip.
            0x102 resolve(ResolveRequest) -> Entry;
            /// An inode's attributes.
            0x103 get_attr(GetAttrRequest) -> Attr;
            /// Changes attributes.
            0x104 set_attr(SetAttrRequest) -> Attr;
            /// Makes a file, or opens it if it is there, and opens it.
            0x105 create(CreateRequest) -> OpenReply;
            /// Opens a file.
            0x106 open(OpenRequest) -> OpenReply;
            /// Closes a file.
            0x107 close(CloseRequest) -> Attr;
            /// Closes open files whose writers have nothing to report. Those that are closed already are no error.
            0x108 end_sessions(EndSessionsRequest) -> Empty;
            /// Makes the length (and times) that a writer knows durable and visible.
            0x109 sync(SyncRequest) -> Attr;
            /// A new capability for an open session, before the old one expires.
            0x10a renew(RenewRequest) -> OpenReply;
            /// Keeps all sessions of a client open.
            0x10b keep_alive(KeepAliveRequest) -> Empty;
            /// A page of a directory.
            0x10c read_dir(ReadDirRequest) -> ReadDirReply;
            /// Makes a directory.
            0x10d make_dir(MakeDirRequest) -> Entry;
            /// Removes a directory with everything in it: its name at once, the rest in the background.
            0x10e remove_tree(RemoveRequest) -> Empty;
            /// Removes an empty directory. This and the next two answer with what they took away or moved, as it is
            /// then, or with the directory that another one replaced. Without: a directory moved, two things changed
            /// places, nothing happened, or an earlier server answers.
            0x10f remove_dir(RemoveRequest) -> Moved;
            /// Removes a name of what is no directory.
            0x110 unlink(RemoveRequest) -> Moved;
            /// Moves a name.
            0x111 rename(RenameRequest) -> Moved;
            /// Makes a symlink.
            0x112 symlink(SymlinkRequest) -> Entry;
            /// Makes a fifo, a socket or a device.
            0x113 make_node(MakeNodeRequest) -> Entry;
            /// A symlink's target.
            0x114 read_link(GetAttrRequest) -> LinkTarget;
            /// Another name for a file.
            0x115 link(LinkRequest) -> Entry;
            /// Space and inodes of the file system.
            0x116 stat_fs(StatFsRequest) -> StatFsReply;
            /// An extended attribute.
            0x117 get_xattr(XattrRequest) -> XattrValue;
            /// Sets an extended attribute.
            0x118 set_xattr(SetXattrRequest) -> Empty;
            /// Names of extended attributes.
            0x119 list_xattrs(GetAttrRequest) -> XattrNames;
            /// Removes an extended attribute.
            0x11a remove_xattr(RemoveXattrRequest) -> Empty;
            /// Sets or takes away a quota.
            0x11b set_quota(SetQuotaRequest) -> Empty;
            /// The quota of an account, with its usage.
            0x11c get_quota(GetQuotaRequest) -> Quota;
            /// Pages through the quotas that the caller may see.
            0x11d list_quotas(ListQuotasRequest) -> ListQuotasReply;
            /// Locks a range of an open file, or unlocks it. The attributes come back with a lock that was taken;
            /// without them somebody else's lock excludes it, or the request was to unlock.
            0x11e set_lock(SetLockRequest) -> SetLockReply;
            /// Somebody else's lock that excludes one.
            0x11f get_lock(GetLockRequest) -> GetLockReply;
            /// Operator: pages through all inodes that have chunks, for the comparison with storage.
            0x120 list_inodes(ListInodesRequest) -> ListInodesReply;
            /// Operator: pages through all that an engine without backups of its own has stored, as it was when the
            /// first page was asked for.
            0x12d backup(BackupRequest) -> BackupReply;
            /// Operator: a path that leads to an inode.
            0x121 path_of(PathRequest) -> PathReply;
            /// Sync for many open files of one caller, in one change: what was acknowledged to their writers up to now.
            /// With TransactionTooLarge, QuotaExceeded or NoSpace nothing was done, as with the next ones: fewer at
            /// once may be possible.
            0x122 report(ReportRequest) -> AttrResults;
            /// Makes many files and opens them, in one change. Each is answered as a create that is exclusive would be,
            /// one after the other.
            0x123 create_many(CreateManyRequest) -> OpenResults;
            /// Of each of many open files: set_attr, link and close in one change, as far as they are asked for. What is
            /// refused ends there, with what was done before, and stays open.
            0x124 close_many(CloseManyRequest) -> AttrResults;
            /// get_attr of many inodes and lookup of many names, all at one moment.
            0x125 stat_many(StatManyRequest) -> AttrResults;
            /// Walks a path, following symlinks, and opens what is there.
            0x126 open_path(OpenPathRequest) -> OpenReply;
            /// Sets for how long the trash keeps what is removed.
            0x127 set_trash(SetTrashRequest) -> Empty;
            /// How the trash is set, and how much is in it.
            0x128 get_trash(GetTrashRequest) -> Trash;
            /// Pages through what is in the trash, as far as it concerns the caller, the oldest first.
            0x129 list_trash(ListTrashRequest) -> ListTrashReply;
            /// Gives what is in the trash a name again.
            0x12a restore(RestoreRequest) -> Entry;
            /// Lets go of what is in the trash for good.
            0x12b empty_trash(EmptyTrashRequest) -> Empty;
            /// Says what a client has open for reading, to a server that began after it was opened.
            0x12c claim(ClaimRequest) -> Empty;
        }
    };
}

/// Bytes of a page's items: leaves room for what stands beside them in a body.
const PAGE_BYTES_MAX: usize = 192 << 10;

/// The body of a client's request.
pub fn request<T: Message>(client: ClientId, message: &T) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + message.encoded_len());
    body.extend_from_slice(&client.0.to_be_bytes());
    message.encode_raw(&mut body);
    body
}

/// Whose request a body is, and its message.
///
/// # Errors
/// `Invalid` when it is too short.
pub fn asked(body: &[u8]) -> Result<(ClientId, &[u8])> {
    let (client, message) =
        body.split_first_chunk().ok_or_else(|| Error::invalid("a request without a client"))?;
    Ok((ClientId(u128::from_be_bytes(*client)), message))
}

/// The body of an answer.
pub fn encode<T: Message>(message: &T) -> Vec<u8> {
    message.encode_to_vec()
}

/// Reads a message.
///
/// # Errors
/// `Invalid` when it is none.
pub fn decode<T: Message + Default>(body: &[u8]) -> Result<T> {
    T::decode(body).map_err(|error| Error::invalid(format!("a message is malformed: {error}")))
}

/// As many of a page's items as an answer takes, at least one, and whether those are all.
pub fn fitting<T: Message>(items: impl IntoIterator<Item = T>) -> (Vec<T>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len() + 8;
        if bytes > PAGE_BYTES_MAX && !page.is_empty() {
            return (page, false);
        }
        page.push(item);
    }
    (page, true)
}
