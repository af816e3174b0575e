//! Clients: signs of life, retirement, the end of their open files.

use crate::SessionId;
use crate::keys::{Keys, client_of, session_of};
use crate::records::{Body, Client, File, Handle, Inode, Record};
use crate::store::{Store, Who};
use crate::tx::Tx;
use kiln_env::Env;
use kiln_kv::{Kv, RangeOptions, transact};
use kiln_types::{ClientId, Code, Error, InodeId, Result, TruncateEpoch};
use std::collections::BTreeSet;

/// Clients or open files in one page.
const PAGE: usize = 256;
/// How often the end of a dead writer's file is asked for anew because it was truncated meanwhile.
const ENDS_MAX: u32 = 8;

/// A client as the keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) client: ClientId,
    pub(crate) state: Client,
    pub(crate) beats: u64,
}

impl Store {
    /// A sign of life, which keeps the client's files open. With `goodbye` the client ends: it has
    /// finished everything, and what it left open is closed.
    ///
    /// # Errors
    /// `ClientEvicted` when it was retired, `NotAuthorized`, or what kv reports.
    pub async fn keep_alive(&self, who: &Who, client: ClientId, goodbye: bool) -> Result<()> {
        let credential = &who.credential;
        self.transact("sign of life", &|tx| {
            Box::pin(async move {
                match tx.admit(client, credential).await {
                    Err(error) if goodbye && error.code() == Code::ClientEvicted => return Ok(()),
                    outcome => outcome?,
                }
                tx.kv.add(&tx.keys.beats(client), 1);
                if goodbye {
                    tx.put(&tx.keys.client(client), &Client::Retired { at: tx.now, goodbye });
                }
                Ok(())
            })
        })
        .await
    }

    /// Ends open files of a client, whose writers have reported everything. What is not open any
    /// more is no error.
    ///
    /// # Errors
    /// `Invalid` for more than 256, `ClientEvicted`, `NotAuthorized`, or what kv reports.
    pub async fn end_sessions(
        &self,
        who: &Who,
        client: ClientId,
        sessions: &[SessionId],
    ) -> Result<()> {
        if sessions.len() > PAGE {
            return Err(Error::invalid(format!("more than {PAGE} sessions at once")));
        }
        let sessions = &self.end_readers(who, client, sessions).await?;
        if sessions.is_empty() {
            return Ok(());
        }
        self.transact("end of open files", &|tx| {
            Box::pin(end_sessions(tx, client, &who.credential, sessions))
        })
        .await
    }

    /// The clients behind `after`, a page of them.
    pub(crate) async fn clients(&self, after: Option<ClientId>) -> Result<Vec<Seen>> {
        self.transact("clients", &|tx| {
            Box::pin(async move {
                let mut range = tx.keys.clients();
                if let Some(after) = after {
                    range = range.after(&tx.keys.client(after));
                }
                let page = tx.kv.range(range, RangeOptions::limit(PAGE).snapshot()).await?;
                let mut clients = Vec::with_capacity(page.len());
                for (key, value) in page {
                    let (client, state) = (client_of(&key)?, Client::decode(&value)?);
                    let beats = tx.kv.snapshot_get(&tx.keys.beats(client)).await?;
                    let beats = crate::records::number(beats.as_deref())?;
                    clients.push(Seen { client, state, beats });
                }
                Ok(clients)
            })
        })
        .await
    }

    /// Retires a client that has given no sign of life since `beats`. Afterwards it changes
    /// nothing, and gets no capability, any more.
    pub(crate) async fn retire(&self, client: ClientId, beats: u64) -> Result<bool> {
        self.transact("retirement of a client", &|tx| {
            Box::pin(async move {
                let key = tx.keys.client(client);
                let is_active = matches!(tx.get(&key).await?, Some(Client::Active { .. }));
                if !is_active || tx.number(&tx.keys.beats(client)).await? != beats {
                    return Ok(false);
                }
                tx.put(&key, &Client::Retired { at: tx.now, goodbye: false });
                Ok(true)
            })
        })
        .await
    }

    /// Ends the locks and open files of a retired client whose capabilities have ended, and drops what else
    /// is kept for it but the note that it is retired. Whether there was anything.
    ///
    /// # Errors
    /// What storage or kv report; what is left is left for the next try.
    pub(crate) async fn end_client(&self, client: ClientId) -> Result<bool> {
        self.readers.end_client(client);
        let mut any = self.end_locks(client).await?;
        let mut failure = Ok(());
        let mut after = None;
        loop {
            let page = self.open_files(client, after).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            any = true;
            for (session, handle) in page {
                // One file whose chains do not answer keeps none of the others open.
                if let Err(error) = self.end_dead_session(client, session, handle).await {
                    failure = Err(error);
                }
            }
        }
        failure?;
        let dropped = self
            .transact("end of a client", &|tx| {
                Box::pin(async move {
                    let replies = tx.keys.replies(client);
                    let beats = tx.keys.beats(client);
                    let any = !tx.range(replies.clone(), 1).await?.is_empty()
                        || tx.kv.get(&beats).await?.is_some();
                    if any {
                        tx.kv.clear_range(replies);
                        tx.kv.clear(&beats);
                    }
                    Ok(any)
                })
            })
            .await?;
        Ok(any || dropped)
    }

    /// Lets go of what was held for clients that had not said yet what they have open, when it need not be held any
    /// more.
    pub(crate) async fn relieve(&self, lives: impl Fn(ClientId) -> bool) -> Result<()> {
        self.readers.retain(lives);
        let Some(stand_in) = self.readers.relieved() else { return Ok(()) };
        let retired = self
            .transact("retirement of a client", &|tx| {
                Box::pin(async move {
                    let retired = Client::Retired { at: tx.now, goodbye: true };
                    tx.put(&tx.keys.client(stand_in), &retired);
                    Ok(())
                })
            })
            .await;
        retired.inspect_err(|_| self.readers.still_stands_in())
    }

    /// Drops the note that a client was retired.
    pub(crate) async fn forget_client(&self, client: ClientId) -> Result<()> {
        self.transact("end of a client", &|tx| {
            Box::pin(async move {
                tx.kv.clear(&tx.keys.client(client));
                Ok(())
            })
        })
        .await
    }

    async fn open_files(
        &self,
        client: ClientId,
        after: Option<SessionId>,
    ) -> Result<Vec<(SessionId, Handle)>> {
        self.transact("open files", &|tx| {
            Box::pin(async move {
                let mut range = tx.keys.handles(client);
                if let Some(after) = after {
                    range = range.after(&tx.keys.handle(client, after));
                }
                let page = tx.range(range, PAGE).await?;
                page.iter()
                    .map(|(key, value)| Ok((session_of(key)?, Handle::decode(value)?)))
                    .collect()
            })
        })
        .await
    }

    /// Ends an open file of a client that is gone. A writer's file first gets the length that
    /// storage knows of: the writer may have died before it reported.
    async fn end_dead_session(
        &self,
        client: ClientId,
        session: SessionId,
        handle: Handle,
    ) -> Result<()> {
        for _ in 0..ENDS_MAX {
            let end = if handle.write { self.end_in_storage(handle.inode).await? } else { None };
            let end = &end;
            let is_done = self
                .transact("end of an open file", &|tx| {
                    Box::pin(end_session(tx, client, session, handle, *end))
                })
                .await?;
            if is_done {
                return Ok(());
            }
        }
        Err(Error::new(Code::Busy, format!("inode {} is truncated again and again", handle.inode)))
    }

    /// Where storage says that a file ends, and under which epoch; `None` for one that goes with
    /// its last session.
    async fn end_in_storage(&self, id: InodeId) -> Result<Option<(u64, TruncateEpoch)>> {
        self.finish_cut(id).await?;
        let file: Option<File> = self
            .transact("dead writer", &|tx| {
                Box::pin(async move {
                    let inode = tx.find_inode(id).await?.filter(Inode::is_kept);
                    Ok(inode.and_then(|inode| match inode.body {
                        Body::File(file) => Some(file),
                        _ => None,
                    }))
                })
            })
            .await?;
        let Some(file) = file else { return Ok(None) };
        let end = self.chunks.stored_end(&self.chunk_file(id, &file), &file.floors).await?;
        Ok(Some((end, file.epoch)))
    }
}

/// The clients that may watch a server over this kv.
pub(super) async fn watchers(kv: &dyn Kv, env: &Env, keys: Keys) -> Result<BTreeSet<ClientId>> {
    let mut watchers = BTreeSet::new();
    let mut left = keys.clients();
    loop {
        let range = &left;
        let page = transact(kv, env, "watchers", |kv| {
            Box::pin(kv.range(range.clone(), RangeOptions::limit(PAGE).snapshot()))
        })
        .await?;
        for (key, value) in &page {
            if matches!(Client::decode(value)?, Client::Active { watches: true, .. }) {
                watchers.insert(client_of(key)?);
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => left = left.after(last),
            _ => return Ok(watchers),
        }
    }
}

async fn end_sessions(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    credential: &str,
    sessions: &[SessionId],
) -> Result<()> {
    tx.check_client(client, credential).await?;
    end_stored(tx, client, sessions).await
}

pub(crate) async fn end_stored(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    sessions: &[SessionId],
) -> Result<()> {
    for session in sessions {
        let Some(handle) = tx.find_session(client, *session).await? else { continue };
        let mut inode = tx.inode(handle.inode).await?;
        tx.end_session(client, *session, &mut inode, handle.write).await?;
    }
    Ok(())
}

/// `false`: the file was truncated since storage was asked.
async fn end_session(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    session: SessionId,
    handle: Handle,
    end: Option<(u64, TruncateEpoch)>,
) -> Result<bool> {
    if tx.find_session(client, session).await?.is_none() {
        return Ok(true);
    }
    let mut inode = tx.inode(handle.inode).await?;
    if let (Some((end, epoch)), true) = (end, inode.is_kept()) {
        let now = tx.now;
        let file = inode.file_mut()?;
        if file.epoch != epoch {
            return Ok(false);
        }
        if end > file.length {
            file.length = end;
            (inode.mtime, inode.ctime) = (now, now);
            tx.changes.content(inode.id);
            tx.put_inode(&inode);
        }
    }
    tx.end_session(client, session, &mut inode, handle.write).await?;
    Ok(true)
}
