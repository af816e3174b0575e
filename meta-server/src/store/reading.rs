//! Opens for reading that are no commits; see [`readers`](super::readers).

use crate::SessionId;
use crate::access::{self, READ};
use crate::records::Handle;
use crate::store::lookup::reach;
use crate::store::open::{OpenArgs, Opened};
use crate::store::readers::{Ended, session_of};
use crate::store::{Change, Store, Who};
use crate::tx::Tx;
use kiln_types::{Attr, ClientId, Code, Error, InodeId, Result, Timestamp};
use kiln_wire::Capability;

/// Files in one claim.
const CLAIMS_MAX: usize = 256;

/// A file that a client says it has open for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The file.
    pub inode: InodeId,
    /// The client's session.
    pub session: SessionId,
    /// The last capability that it got for it, which shows that it was opened.
    pub capability: Vec<u8>,
}

impl Store {
    /// Whether an open is kept in memory: no other server decides what goes, and the client will say what it has
    /// open when this one starts again.
    pub(crate) fn opens_in_memory(&self, change: &Change, args: OpenArgs) -> bool {
        let reads = args.read && !args.write && !args.truncate;
        let client = change.client;
        reads && self.is_alone && self.notes(client) && self.readers.tells(client)
    }

    /// Opens a file for reading without a commit. `None`: it has to be stored.
    pub(crate) async fn open_to_read(
        &self,
        change: &Change,
        inode: InodeId,
        args: OpenArgs,
    ) -> Result<Option<Opened>> {
        let session = session_of(change.request);
        if !self.opens_in_memory(change, args) || !self.readers.begin(change.client, session, inode)
        {
            return Ok(None);
        }
        self.readers.settled(inode).await;
        let looked = self
            .transact("open", &|tx| {
                Box::pin(async move {
                    if !tx.check_client(change.client, &change.who.credential).await? {
                        return Ok(None);
                    }
                    let found = reach(tx, &change.who, inode).await?;
                    // One without a name is stored where its other opens are.
                    if found.id != inode || found.file().is_err() || found.links == 0 {
                        return Ok(None);
                    }
                    access::require(&found, &change.who.caller, READ)?;
                    Ok(Some(tx.attr(&found).await?))
                })
            })
            .await;
        match looked {
            Ok(Some(attr)) => {
                let (client, from) = (change.client, self.now());
                Ok(Some(self.grant(client, attr, Some(session), args, from, None)))
            }
            other => {
                self.forget(change.client, session).await;
                other.map(|_: Option<Attr>| None)
            }
        }
    }

    /// An open that was not made.
    async fn forget(&self, client: ClientId, session: SessionId) {
        if self.readers.end(client, session).await == Ended::Stored {
            let sessions = [session];
            let ended = self
                .transact("end of an open file", &|tx| {
                    Box::pin(crate::store::clients::end_stored(tx, client, &sessions))
                })
                .await;
            if let Err(error) = ended {
                tracing::debug!(%client, %session, %error, "it ends with its client");
            }
        }
    }

    /// Ends an open that is in memory alone.
    pub(crate) async fn end_in_memory(
        &self,
        client: ClientId,
        session: SessionId,
        inode: InodeId,
    ) -> bool {
        self.readers.inode(client, session) == Some(inode)
            && self.readers.end(client, session).await == Ended::Here
    }

    /// Ends those of a client's open files that are in memory alone; the others are left.
    pub(crate) async fn end_readers(
        &self,
        who: &Who,
        client: ClientId,
        sessions: &[SessionId],
    ) -> Result<Vec<SessionId>> {
        if sessions.iter().any(|session| self.readers.inode(client, *session).is_some()) {
            self.transact("end of open files", &|tx| {
                Box::pin(async move { tx.check_client(client, &who.credential).await })
            })
            .await?;
        }
        let mut left = Vec::new();
        for session in sessions {
            if self.readers.end(client, *session).await == Ended::Stored {
                left.push(*session);
            }
        }
        Ok(left)
    }

    /// Takes in what a client has open for reading; what is gone is left out. `all`: it has nothing else open.
    ///
    /// # Errors
    /// `Invalid` for more than 256, `ClientEvicted`, `NotAuthorized`, or what kv reports.
    pub(crate) async fn claim(
        &self,
        who: &Who,
        client: ClientId,
        claims: &[Claim],
        all: bool,
    ) -> Result<()> {
        if claims.len() > CLAIMS_MAX {
            return Err(Error::invalid(format!("more than {CLAIMS_MAX} open files at once")));
        }
        let proven: Vec<_> = claims.iter().filter(|claim| self.is_proven(client, claim)).collect();
        if self.is_alone {
            for claim in &proven {
                if !self.readers.begin(client, claim.session, claim.inode) {
                    let text = format!("session {} is not taken in", claim.session);
                    return Err(Error::new(Code::Busy, text).with_hint(
                        "too many files are open for reading, or the client uses it twice",
                    ));
                }
                self.readers.settled(claim.inode).await;
            }
        }
        let proven = &proven;
        let others = self
            .transact("claim of open files", &|tx| {
                Box::pin(async move {
                    tx.check_client(client, &who.credential).await?;
                    let mut others = Vec::new();
                    for claim in proven {
                        if !take_in(tx, client, claim, self.is_alone).await? {
                            others.push(claim.session);
                        }
                    }
                    Ok(others)
                })
            })
            .await?;
        for session in others {
            self.readers.ended(client, session);
        }
        if all {
            self.readers.heard(client);
        }
        Ok(())
    }

    /// Whether a capability shows that its client has the file open for reading, or had.
    fn is_proven(&self, client: ClientId, claim: &Claim) -> bool {
        self.was_given(client, claim.inode, &claim.capability)
            .is_some_and(|held| held.read && !held.write)
    }

    /// A capability that this client was given for an inode, also when it has expired.
    pub(crate) fn was_given(
        &self,
        client: ClientId,
        inode: InodeId,
        held: &[u8],
    ) -> Option<Capability> {
        let key = |id| (id == self.key.id()).then_some(&self.key);
        let held = Capability::verify(held, key, Timestamp(0)).ok()?;
        let whose = (held.client, held.tree, held.inode);
        (whose == (client, self.settings.tree, inode)).then_some(held)
    }

    /// Takes in an open of which this server does not know, if the capability shows that it was made: it was in the
    /// memory of an earlier run.
    pub(crate) async fn claim_unknown(
        &self,
        who: &Who,
        client: ClientId,
        inode: InodeId,
        session: SessionId,
        capability: &[u8],
    ) -> Result<()> {
        let is_known = self.readers.inode(client, session).is_some();
        if is_known || !self.readers.awaits(client) {
            return Ok(());
        }
        let claim = Claim { inode, session, capability: capability.to_vec() };
        let is_stored =
            self.transact("open file", &|tx| Box::pin(tx.find_session(client, session))).await?;
        match is_stored {
            None if self.is_proven(client, &claim) => {
                self.claim(who, client, &[claim], false).await
            }
            _ => Ok(()),
        }
    }
}

/// Stores what is open unless memory is enough. Whether it is to stay in memory: the inode may be gone, and the
/// session may be stored already.
async fn take_in(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    claim: &Claim,
    is_alone: bool,
) -> Result<bool> {
    let Some(inode) = tx.find_inode(claim.inode).await? else { return Ok(false) };
    if tx.find_session(client, claim.session).await?.is_some() {
        return Ok(false);
    }
    if !is_alone {
        tx.put_session(client, claim.session, &Handle::to_read(inode.id));
    } else if inode.links == 0 {
        tx.store_readers(inode.id, Some(client));
    }
    Ok(is_alone)
}
