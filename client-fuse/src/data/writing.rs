//! Writes: into memory, from there to the backing, and past all that.

use super::Backing;
use super::content::{Content, State};
use super::dirty::Usage;
use super::pool::Listed;
use kiln_memory::Bytes;
use kiln_telemetry::{Phase, Trace, phase};
use kiln_types::{Code, Deadline, Error, Result};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What becomes of a write that wants to stay in memory.
enum Admission {
    Taken,
    /// It has to wait until flights have landed.
    Wait,
    /// It has to go through: the last write failed, so that the program must hear of this one, or other
    /// files have taken all the room, so that there is nothing to wait for here.
    Through,
}

impl Content {
    /// Writes all of `bytes`. They are durable after a later [`Self::flush`].
    ///
    /// # Errors
    /// `DeadlineExceeded` when there is no room for longer than a writer may be stalled; the backing's
    /// while it fails, or when the file may not grow so far.
    pub(crate) async fn write(self: &Arc<Self>, offset: u64, bytes: Bytes) -> Result<()> {
        let stall = self.pool.options.stall;
        let deadline = stall.map(|stall| self.pool.env.deadline_after(stall));
        let length = bytes.len() as u64;
        let pieces = self.pieces(offset, bytes)?;
        self.reserve(offset + length).await?;
        for (offset, bytes) in pieces {
            self.write_piece(offset, bytes, deadline).await?;
        }
        Ok(())
    }

    /// Makes sure that the file may grow up to `end`: what is refused later would be lost.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) async fn reserve(&self, end: u64) -> Result<()> {
        let backing = {
            let state = self.state.lock();
            (end > state.length).then(|| Arc::clone(&state.backing))
        };
        match backing {
            Some(backing) => backing.reserve(end).await,
            None => Ok(()),
        }
    }

    async fn write_piece(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
        deadline: Option<Deadline>,
    ) -> Result<()> {
        loop {
            let landed = self.landed.notified();
            let admit =
                |state: &mut State, usage: &mut Usage| self.admit(state, usage, offset, &bytes);
            match (self.change(admit), deadline) {
                (Admission::Taken, _) => return Ok(()),
                (Admission::Through, _) => return self.carry(offset, bytes).await,
                (Admission::Wait, None) => self.write_back_phase(landed).await,
                (Admission::Wait, Some(deadline)) => {
                    let what = "room for written data";
                    let landed = self.pool.env.until(deadline, what, landed);
                    self.write_back_phase(landed).await?;
                }
            }
        }
    }

    async fn write_back_phase<T>(&self, wait: impl Future<Output = T>) -> T {
        phase(&self.pool.env, Phase::WriteBack, wait).await
    }

    fn admit(&self, state: &mut State, usage: &mut Usage, offset: u64, bytes: &Bytes) -> Admission {
        let need = state.dirty.need(offset, bytes.len());
        if state.failing {
            return Admission::Through;
        }
        if !self.pool.reserve(usage.held, need) {
            // Where something flies already, room will come without sending pieces that still grow.
            if state.dirty.grounded() {
                state.dirty.want_all();
            }
            return if usage.held > 0 { Admission::Wait } else { Admission::Through };
        }
        usage.held += need;
        state.dirty.write(offset, bytes, &self.pool.buffers);
        self.overwritten(state, offset, bytes.len());
        Admission::Taken
    }

    fn overwritten(&self, state: &mut State, offset: u64, length: usize) {
        let end = offset + length as u64;
        state.ahead.forget(&(offset..end));
        self.arrived.notify_waiters();
        state.wrote(end);
    }

    /// Writes all of `bytes`, in order with what waits in memory; durable when it returns.
    ///
    /// # Errors
    /// The backing's; it counts as told, and is not kept for fsync and close.
    pub(crate) async fn write_through(self: &Arc<Self>, offset: u64, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        let pieces = self.pieces(offset, bytes)?;
        self.reserve(offset + length).await?;
        let carried: Vec<_> = pieces.map(|(offset, bytes)| self.carry(offset, bytes)).collect();
        let mut result = Ok(());
        for carried in carried {
            result = result.and(carried.await);
        }
        result
    }

    /// Starts a write through one piece. It goes on when nobody waits for it any more, so that no later
    /// write meets it on its way.
    fn carry(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let (tell, told) = oneshot::channel();
        let (content, trace) = (Arc::clone(self), Trace::current());
        let carrying = async move {
            let _ = tell.send(trace.scope(content.go_through(offset, bytes)).await);
        };
        self.pool.env.spawn("write through", carrying).detach();
        async move { told.await.map_err(|_| Error::internal("a write through was lost"))? }
    }

    async fn go_through(self: Arc<Self>, offset: u64, bytes: Bytes) -> Result<()> {
        self.change(|state, _| state.dirty.claim(offset));
        let backing = loop {
            let landed = self.landed.notified();
            let lift = |state: &mut State, _: &mut Usage| {
                let lifted = state.dirty.lift(offset, &bytes);
                lifted.then(|| self.overwritten(state, offset, bytes.len()));
                lifted.then(|| Arc::clone(&state.backing))
            };
            match self.change(lift) {
                Some(backing) => break backing,
                None => landed.await,
            }
        };
        let written = backing.write(offset, bytes).await;
        self.land(offset, written.is_err());
        written
    }

    /// Waits until everything that was written before is durable or has failed. Its length is for the
    /// caller to report.
    ///
    /// # Errors
    /// An error of writing back that struck meanwhile, or another one that struck since. It is kept
    /// beside for [`Self::error_since`].
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        let mut mark = self.errors();
        let wanted = self.change(|state, _| state.dirty.want_all());
        loop {
            let landed = self.landed.notified();
            if self.state.lock().dirty.settled(wanted) {
                break;
            }
            self.write_back_phase(landed).await;
        }
        self.error_since(&mut mark).map_or(Ok(()), Err)
    }

    /// What was written is old enough to be sent, or memory is short.
    pub(super) fn write_back(self: &Arc<Self>, listed: Listed) {
        self.change(|state, _| {
            state.listed.take_if(|now| *now == listed);
            state.dirty.want_all();
        });
    }

    /// Cuts or lengthens the file by `cut`, the metadata service's part of it. When `cut` succeeds, the
    /// backing must give zeros beyond the cut to whoever reads it then. Nothing is written meanwhile.
    ///
    /// # Errors
    /// What `cut` returns; nothing has changed here then.
    pub(crate) async fn truncate<T, F>(self: &Arc<Self>, length: u64, cut: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let _frozen = self.freeze().await;
        let output = cut.await?;
        self.change(|state, _| {
            state.dirty.carve(length..u64::MAX);
            state.ahead.forget(&(length..u64::MAX));
            state.length = length;
        });
        self.arrived.notify_waiters();
        Ok(output)
    }

    /// Waits until nothing flies, and lets nothing start.
    pub(super) async fn freeze(self: &Arc<Self>) -> Frozen {
        loop {
            let thawed = self.landed.notified();
            if self.change(|state, _| state.dirty.freeze()) {
                break;
            }
            self.write_back_phase(thawed).await;
        }
        let frozen = Frozen(Arc::clone(self));
        loop {
            let landed = self.landed.notified();
            if self.state.lock().dirty.grounded() {
                return frozen;
            }
            self.write_back_phase(landed).await;
        }
    }

    /// Changes the state; then flights start that may, and the pool learns what memory is held now.
    /// `change` adds to its second argument what it has reserved.
    pub(super) fn change<R>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, &mut Usage) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let mut before = state.dirty.usage();
        let result = change(&mut state, &mut before);
        while let Some((offset, bytes)) = state.dirty.take_off() {
            let flight = Arc::clone(self).fly(Arc::clone(&state.backing), offset, bytes);
            self.pool.env.spawn("write back", flight).detach();
        }
        match (state.listed, state.dirty.unwanted()) {
            (None, true) => state.listed = Some(self.pool.list(self)),
            (Some(listed), false) => {
                self.pool.unlist(listed);
                state.listed = None;
            }
            _ => {}
        }
        self.pool.account(before, state.dirty.usage());
        result
    }

    async fn fly(self: Arc<Self>, backing: Arc<dyn Backing>, offset: u64, bytes: Bytes) {
        let written = backing.write(offset, bytes).await;
        if let Err(error) = &written {
            tracing::warn!(offset, %error, "written data is lost");
            self.state.lock().errors.record(error.clone());
        }
        self.land(offset, written.is_err());
    }

    fn land(self: &Arc<Self>, offset: u64, failed: bool) {
        self.change(|state, _| {
            state.dirty.land(offset);
            state.failing = failed;
            state.wrote(0);
        });
        self.landed.notify_waiters();
    }

    /// Cuts a write at the borders of pieces.
    fn pieces(
        &self,
        offset: u64,
        bytes: Bytes,
    ) -> Result<impl Iterator<Item = (u64, Bytes)> + Send + use<>> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or_else(|| Error::new(Code::FileTooLarge, "a write beyond 2^63"))?;
        let piece = self.state.lock().dirty.piece_bytes();
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            let start = at;
            at = end.min((start / piece + 1) * piece);
            let part = (start - offset) as usize..(at - offset) as usize;
            (start < end).then(|| (start, bytes.slice(part)))
        }))
    }
}

/// No flight starts while this lives.
pub(super) struct Frozen(Arc<Content>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.change(|state, _| state.dirty.thaw());
        self.0.landed.notify_waiters();
    }
}
