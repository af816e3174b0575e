//! An open file's right to its chunks.

use crate::chunks::{Grant, Granted};
use crate::meta::Meta;
use crate::open::OpenMode;
use async_trait::async_trait;
use kiln_env::Env;
use kiln_rpc::convert::{id_bytes, required};
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, ClientId, InodeId, Monotonic, Result, TruncateEpoch};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A session at the metadata service, and the capability that it gave last.
pub(crate) struct Session {
    mode: OpenMode,
    right: Arc<Right>,
}

pub(crate) struct Right {
    env: Env,
    meta: Arc<Meta>,
    client: ClientId,
    caller: Caller,
    inode: InodeId,
    session: Vec<u8>,
    state: Mutex<State>,
    renewing: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    attr: Attr,
    capability: Arc<[u8]>,
    renew_at: Monotonic,
    /// Until when it surely counts.
    good_until: Monotonic,
    /// How far the file may be written.
    granted: u64,
    /// How far programs were told that they may.
    promised: u64,
}

impl Session {
    /// Takes what `open` or `create`, sent at `sent`, answered.
    pub(crate) fn new(
        env: Env,
        meta: Arc<Meta>,
        client: ClientId,
        caller: Caller,
        mode: OpenMode,
        reply: v1::OpenReply,
        sent: Monotonic,
    ) -> Result<Self> {
        let session = reply.session.to_vec();
        let state = State::of(reply, sent)?;
        let inode = state.attr.inode;
        let (state, renewing) = (Mutex::new(state), Arc::default());
        let right = Right { env, meta, client, caller, inode, session, state, renewing };
        Ok(Self { mode, right: Arc::new(right) })
    }

    /// What it has a right to, as long as it is open.
    pub(crate) fn right(&self) -> Weak<Right> {
        Arc::downgrade(&self.right)
    }

    pub(crate) fn inode(&self) -> InodeId {
        self.right.inode
    }

    pub(crate) fn id(&self) -> &[u8] {
        &self.right.session
    }

    pub(crate) fn client(&self) -> ClientId {
        self.right.client
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.right.caller
    }

    pub(crate) fn mode(&self) -> OpenMode {
        self.mode
    }

    pub(crate) fn attr(&self) -> Attr {
        self.right.state.lock().attr.clone()
    }

    /// Length and epoch.
    pub(crate) fn length(&self) -> (u64, TruncateEpoch) {
        let state = self.right.state.lock();
        (state.attr.length, state.attr.epoch)
    }

    /// Takes attributes that a call answered, unless newer ones are known.
    pub(crate) fn take_attr(&self, attr: Attr) {
        self.right.state.lock().take(attr);
    }

    /// Whether the file may be written up to `end`; that is a promise then.
    pub(crate) fn promise(&self, end: u64) -> bool {
        let mut state = self.right.state.lock();
        let may = end <= state.granted;
        if may {
            state.promised = state.promised.max(end);
        }
        may
    }

    /// Asks for the right to write the file up to `end`.
    ///
    /// # Errors
    /// `QuotaExceeded`, or what the metadata service says.
    pub(crate) async fn grow(&self, end: u64) -> Result<()> {
        let _one = self.right.renewing.lock().await;
        if !self.promise(end) {
            self.right.renew(end).await?;
            self.promise(end);
        }
        Ok(())
    }

    pub(crate) fn epoch(&self) -> TruncateEpoch {
        self.right.state.lock().attr.epoch
    }

    /// Up to where every byte was written, as the metadata service knows it of `epoch`.
    pub(crate) fn dense_end(&self, epoch: TruncateEpoch) -> u64 {
        let state = self.right.state.lock();
        if state.attr.epoch == epoch { state.attr.dense_end } else { 0 }
    }
}

impl Right {
    /// What a server that does not know of it is told.
    pub(crate) fn claim(&self) -> v1::Claim {
        v1::Claim {
            inode: self.inode.0,
            session: self.session.clone().into(),
            capability: self.state.lock().capability.to_vec().into(),
        }
    }

    fn granted(&self, index: u64) -> (Granted, Monotonic, Monotonic) {
        let state = self.state.lock();
        let granted = Granted {
            capability: Arc::clone(&state.capability),
            epoch: state.attr.epoch,
            floor: state.attr.epoch_floor(index),
        };
        (granted, state.renew_at, state.good_until)
    }

    /// Asks for a capability anew, for writes up to `end` at least.
    async fn renew(&self, end: u64) -> Result<()> {
        let sent = self.env.now();
        let (promised, capability) = {
            let state = self.state.lock();
            (state.promised, state.capability.to_vec().into())
        };
        let reply = self.meta.renew(v1::RenewRequest {
            caller: Some((&self.caller).into()),
            client: id_bytes(self.client),
            inode: self.inode.0,
            session: self.session.clone().into(),
            end,
            promised,
            capability,
        });
        let fresh = State::of(reply.await?, sent)?;
        let mut state = self.state.lock();
        (state.capability, state.granted) = (fresh.capability, fresh.granted);
        (state.renew_at, state.good_until) = (fresh.renew_at, fresh.good_until);
        state.take(fresh.attr);
        Ok(())
    }

    /// Renews it beside what it is for, unless that is under way.
    fn renew_soon(self: &Arc<Self>) {
        let Ok(turn) = Arc::clone(&self.renewing).try_lock_owned() else { return };
        let right = Arc::clone(self);
        let renew = async move {
            let _turn = turn;
            if let Err(error) = right.renew(0).await {
                tracing::debug!(%error, inode = %right.inode, "a capability is not renewed");
            }
        };
        self.env.spawn("renew a capability", renew).detach();
    }
}

#[async_trait]
impl Grant for Session {
    async fn current(&self, index: u64) -> Result<Granted> {
        let right = &self.right;
        let (granted, renew_at, good_until) = right.granted(index);
        if right.env.now() < renew_at {
            return Ok(granted);
        }
        if right.env.now() < good_until {
            right.renew_soon();
            return Ok(granted);
        }
        let _one = right.renewing.lock().await;
        if right.env.now() >= right.granted(index).1 {
            right.renew(0).await?;
        }
        Ok(right.granted(index).0)
    }

    async fn renew(&self) -> Result<()> {
        // One at a time: the last answer tells how far the file may be written.
        let _one = self.right.renewing.lock().await;
        self.right.renew(0).await
    }
}

impl State {
    fn of(reply: v1::OpenReply, sent: Monotonic) -> Result<Self> {
        let attr = required(reply.attr, "attr")?;
        // Two thirds: time enough to try again before it expires.
        let lifetime = Duration::from_millis(reply.capability_ms);
        Ok(Self {
            attr,
            capability: reply.capability.to_vec().into(),
            renew_at: sent.plus(lifetime * 2 / 3),
            good_until: sent.plus(lifetime * 9 / 10),
            granted: reply.granted.unwrap_or(u64::MAX),
            promised: 0,
        })
    }

    /// Answers overtake each other: neither an older epoch counts nor an older state of the same
    /// one.
    fn take(&mut self, attr: Attr) {
        if (attr.epoch, attr.ctime) >= (self.attr.epoch, self.attr.ctime) {
            self.attr = attr;
        }
    }
}
