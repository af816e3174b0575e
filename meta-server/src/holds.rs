//! What a client may have in a cache when it was answered: the attributes that it was shown, and names in
//! directories in which it looked.

use kiln_rpc::v1;
use kiln_types::{FileKind, InodeId};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) attrs: Vec<InodeId>,
    pub(crate) names: Vec<InodeId>,
}

impl Shown {
    fn attr(&mut self, attr: Option<&v1::Attr>) {
        self.attrs.extend(attr.map(|attr| InodeId(attr.inode)));
    }

    fn names(&mut self, parent: u64) {
        self.names.push(InodeId(parent));
    }
}

/// A request or an answer.
pub(crate) trait Holds {
    /// A request that changes nothing: it may be answered twice.
    const READS: bool = false;

    /// Notes what a client knows by it.
    fn note(&self, _: &mut Shown) {}
}

impl Holds for v1::LookupRequest {
    const READS: bool = true;

    /// That a name is not there, too.
    fn note(&self, shown: &mut Shown) {
        shown.names(self.parent);
    }
}

impl Holds for v1::ReadDirRequest {
    const READS: bool = true;

    fn note(&self, shown: &mut Shown) {
        shown.names(self.inode);
    }
}

impl Holds for v1::XattrRequest {
    const READS: bool = true;

    /// A change of an extended attribute is one of the inode.
    fn note(&self, shown: &mut Shown) {
        shown.attrs.push(InodeId(self.inode));
    }
}

impl Holds for v1::StatManyRequest {
    const READS: bool = true;

    fn note(&self, shown: &mut Shown) {
        if !self.names.is_empty() {
            shown.names(self.parent);
        }
    }
}

impl Holds for v1::ResolveRequest {
    const READS: bool = true;
}

impl Holds for v1::GetAttrRequest {
    const READS: bool = true;
}

impl Holds for v1::Entry {
    /// Who made a directory knows what is in it.
    fn note(&self, shown: &mut Shown) {
        shown.attr(self.attr.as_ref());
        let directory = self.attr.as_ref().filter(|attr| attr.kind == FileKind::Directory as u32);
        directory.into_iter().for_each(|attr| shown.names(attr.inode));
    }
}

impl Holds for v1::Attr {
    fn note(&self, shown: &mut Shown) {
        shown.attr(Some(self));
    }
}

impl Holds for v1::OpenReply {
    fn note(&self, shown: &mut Shown) {
        shown.attr(self.attr.as_ref());
    }
}

impl Holds for v1::AttrResults {
    fn note(&self, shown: &mut Shown) {
        self.results.iter().for_each(|result| shown.attr(result.attr.as_ref()));
    }
}

impl Holds for v1::OpenResults {
    fn note(&self, shown: &mut Shown) {
        self.results.iter().flat_map(|result| &result.opened).for_each(|opened| opened.note(shown));
    }
}

impl Holds for v1::Moved {
    fn note(&self, shown: &mut Shown) {
        shown.attr(self.attr.as_ref());
    }
}

impl Holds for v1::SetLockReply {
    fn note(&self, shown: &mut Shown) {
        shown.attr(self.attr.as_ref());
    }
}

impl Holds for v1::ReadDirReply {
    fn note(&self, shown: &mut Shown) {
        self.entries.iter().for_each(|entry| shown.attr(entry.attr.as_ref()));
    }
}

macro_rules! nothing {
    ($($message:ident)*) => { $(impl Holds for v1::$message {})* };
}

nothing! {
    SetAttrRequest CreateRequest OpenRequest CloseRequest EndSessionsRequest SyncRequest RenewRequest
    KeepAliveRequest MakeDirRequest RemoveRequest RenameRequest SymlinkRequest MakeNodeRequest LinkRequest
    StatFsRequest SetXattrRequest RemoveXattrRequest SetQuotaRequest GetQuotaRequest ListQuotasRequest
    ReportRequest CreateManyRequest CloseManyRequest OpenPathRequest
    SetTrashRequest GetTrashRequest ListTrashRequest RestoreRequest EmptyTrashRequest Trash ListTrashReply
    BackupRequest BackupReply ClaimRequest SetLockRequest GetLockRequest ListInodesRequest PathRequest
    Empty LinkTarget StatFsReply XattrValue XattrNames Quota ListQuotasReply GetLockReply ListInodesReply
    PathReply
}
