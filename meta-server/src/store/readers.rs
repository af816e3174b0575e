//! Files that are open for reading, in memory: an open that is no commit.
//!
//! There are such opens where no other server has the tree open, of clients that watch. kv has to know of them
//! when the inode loses its last name, or when a lock hangs on them: the transaction that does it stores them as
//! other sessions are ([`Departure`]). From the moment in which it has looked for them until it is decided, an open of
//! the inode waits, so that none is overlooked.
//!
//! A server that starts knows of none. Clients that may have some say so when they watch it; until all have, or
//! their lease has ended, an inode that nobody seems to have open is held by a stand-in, a client of the server's
//! own, instead of being dropped.

use crate::SessionId;
use crate::watch::COMMIT_TIME_MAX;
use kiln_env::Env;
use kiln_types::{ClientId, Code, Deadline, InodeId, RequestId, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Opens that are known at once; more are sessions in kv.
const READERS_MAX: usize = 1 << 20;

type Reader = (ClientId, SessionId);

/// The session of an open for reading; a retry gets the same one.
pub(crate) fn session_of(request: RequestId) -> SessionId {
    SessionId(request.0)
}

pub(crate) struct Readers {
    env: Env,
    state: Mutex<State>,
    /// An inode's departure is decided.
    decided: Notify,
    /// Who holds what may be open to clients that have not said so yet.
    stand_in: ClientId,
    until: Deadline,
}

#[derive(Default)]
struct State {
    readers: BTreeMap<Reader, Open>,
    inodes: BTreeMap<InodeId, Standing>,
    /// Clients of an earlier run that have yet to say what they have open.
    awaited: BTreeSet<ClientId>,
    /// Clients that have said what they have open: they will say it to the next run, too.
    telling: BTreeSet<ClientId>,
    stood_in: bool,
}

struct Open {
    inode: InodeId,
    /// It may be in kv, too.
    stored: bool,
}

#[derive(Default)]
struct Standing {
    readers: BTreeSet<Reader>,
    departures: usize,
}

/// How a reader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// That is all.
    Here,
    /// It may be a session in kv.
    Stored,
}

impl Readers {
    /// `before`: clients that may have files open since an earlier run, for their `lease` at most.
    pub(crate) fn new(env: Env, before: BTreeSet<ClientId>, lease: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { awaited: before, ..State::default() }),
            decided: Notify::new(),
            stand_in: ClientId(env.random_u128()),
            until: env.deadline_after(lease),
            env,
        })
    }

    /// Notes an open; its inode counts as open from here on. `false`: there are too many, or the client has another
    /// one as this session.
    pub(crate) fn begin(&self, client: ClientId, session: SessionId, inode: InodeId) -> bool {
        let mut state = self.state.lock();
        let known = state.readers.get(&(client, session)).map(|open| open.inode);
        if known.map_or(state.readers.len() >= READERS_MAX, |known| known != inode) {
            return false;
        }
        state.readers.entry((client, session)).or_insert(Open { inode, stored: false });
        state.inodes.entry(inode).or_default().readers.insert((client, session));
        true
    }

    /// Waits until it is decided whether the inode loses its last name: what is read after that counts.
    pub(crate) async fn settled(&self, inode: InodeId) {
        loop {
            let decided = self.decided.notified();
            if !self.state.lock().is_departing(inode) {
                return;
            }
            decided.await;
        }
    }

    /// The inode that a client has open as `session`.
    pub(crate) fn inode(&self, client: ClientId, session: SessionId) -> Option<InodeId> {
        self.state.lock().readers.get(&(client, session)).map(|open| open.inode)
    }

    /// Ends an open.
    pub(crate) async fn end(&self, client: ClientId, session: SessionId) -> Ended {
        loop {
            let decided = self.decided.notified();
            {
                let mut state = self.state.lock();
                let Some(open) = state.readers.get(&(client, session)) else {
                    return Ended::Stored;
                };
                let stored = open.stored;
                if !state.is_departing(open.inode) {
                    state.remove((client, session));
                    return if stored { Ended::Stored } else { Ended::Here };
                }
            }
            decided.await;
        }
    }

    /// It has ended in kv, if it was there.
    pub(crate) fn ended(&self, client: ClientId, session: SessionId) {
        self.state.lock().remove((client, session));
    }

    /// The client is gone.
    pub(crate) fn end_client(&self, client: ClientId) {
        let mut state = self.state.lock();
        let range = (client, SessionId(0))..=(client, SessionId(u128::MAX));
        let all: Vec<Reader> = state.readers.range(range).map(|(reader, _)| *reader).collect();
        all.into_iter().for_each(|reader| state.remove(reader));
        state.awaited.remove(&client);
        state.telling.remove(&client);
    }

    /// A client has said all that it has open.
    pub(crate) fn heard(&self, client: ClientId) {
        let mut state = self.state.lock();
        state.awaited.remove(&client);
        state.telling.insert(client);
    }

    /// Whether a client says what it has open.
    pub(crate) fn tells(&self, client: ClientId) -> bool {
        self.state.lock().telling.contains(&client)
    }

    /// Whether a client may have more open than it has said.
    pub(crate) fn awaits(&self, client: ClientId) -> bool {
        let state = self.state.lock();
        state.awaited.contains(&client) && self.is_awaiting(&state)
    }

    fn is_awaiting(&self, state: &State) -> bool {
        !state.awaited.is_empty() && !self.until.passed(self.env.now())
    }

    /// Clients that are not among those who live have nothing open.
    pub(crate) fn retain(&self, lives: impl Fn(ClientId) -> bool) {
        self.state.lock().awaited.retain(|client| lives(*client));
    }

    /// Who holds an inode that may be open to a client that has not said so yet.
    pub(crate) fn stand_in(&self) -> Option<ClientId> {
        let mut state = self.state.lock();
        let is_needed = self.is_awaiting(&state);
        state.stood_in |= is_needed;
        is_needed.then_some(self.stand_in)
    }

    /// The stand-in, when it holds something and need not any more. Told once.
    pub(crate) fn relieved(&self) -> Option<ClientId> {
        let mut state = self.state.lock();
        let is_relieved = state.stood_in && !self.is_awaiting(&state);
        (is_relieved && std::mem::take(&mut state.stood_in)).then_some(self.stand_in)
    }

    /// The stand-in could not be let go yet.
    pub(crate) fn still_stands_in(&self) {
        self.state.lock().stood_in = true;
    }

    /// Begins a transaction that may store readers.
    pub(crate) fn departure(self: &Arc<Self>) -> Arc<Departure> {
        let inodes = Mutex::default();
        Arc::new(Departure { readers: Arc::clone(self), inodes })
    }

    fn decide(&self, inodes: &[InodeId]) {
        let mut state = self.state.lock();
        for inode in inodes {
            state.decide(*inode);
        }
        drop(state);
        self.decided.notify_waiters();
    }
}

impl State {
    fn is_departing(&self, inode: InodeId) -> bool {
        self.inodes.get(&inode).is_some_and(|standing| standing.departures > 0)
    }

    fn remove(&mut self, reader: Reader) {
        let Some(open) = self.readers.remove(&reader) else { return };
        if let Some(standing) = self.inodes.get_mut(&open.inode) {
            standing.readers.remove(&reader);
        }
        self.tidy(open.inode);
    }

    fn decide(&mut self, inode: InodeId) {
        if let Some(standing) = self.inodes.get_mut(&inode) {
            standing.departures -= 1;
        }
        self.tidy(inode);
    }

    fn tidy(&mut self, inode: InodeId) {
        let is_empty =
            |standing: &Standing| standing.readers.is_empty() && standing.departures == 0;
        if self.inodes.get(&inode).is_some_and(is_empty) {
            self.inodes.remove(&inode);
        }
    }
}

/// The inodes of whose readers a transaction has learned, until it is decided.
pub(crate) struct Departure {
    readers: Arc<Readers>,
    inodes: Mutex<Vec<InodeId>>,
}

impl Departure {
    /// Who has the inode open here, of `client` or anybody; the transaction stores them. `but`: those that it ends.
    pub(crate) fn of(
        &self,
        inode: InodeId,
        client: Option<ClientId>,
        but: &[Reader],
    ) -> Vec<Reader> {
        let mut state = self.readers.state.lock();
        let standing = state.inodes.entry(inode).or_default();
        standing.departures += 1;
        let is_meant = |reader: &&Reader| {
            client.is_none_or(|client| reader.0 == client) && !but.contains(reader)
        };
        let found: Vec<Reader> = standing.readers.iter().filter(is_meant).copied().collect();
        for reader in &found {
            if let Some(open) = state.readers.get_mut(reader) {
                open.stored = true;
            }
        }
        self.inodes.lock().push(inode);
        found
    }

    /// See [`Readers::stand_in`].
    pub(crate) fn stand_in(&self) -> Option<ClientId> {
        self.readers.stand_in()
    }

    /// The inode that a client has open here as `session`.
    pub(crate) fn inode(&self, client: ClientId, session: SessionId) -> Option<InodeId> {
        self.readers.inode(client, session)
    }

    /// The transaction is decided, one way or the other.
    pub(crate) fn decided<T>(&self, outcome: &Result<T>) {
        if !outcome.as_ref().is_err_and(|error| error.code() == Code::MaybeCommitted) {
            let inodes = std::mem::take(&mut *self.inodes.lock());
            self.readers.decide(&inodes);
        }
    }
}

impl Drop for Departure {
    /// Nobody waits for the transaction any more: it may be committed yet.
    fn drop(&mut self) {
        let inodes = std::mem::take(&mut *self.inodes.lock());
        if inodes.is_empty() {
            return;
        }
        let readers = Arc::clone(&self.readers);
        let late = async move {
            readers.env.sleep(COMMIT_TIME_MAX).await;
            readers.decide(&inodes);
        };
        self.readers.env.spawn("late departure", late).detach();
    }
}
