//! Filling the syncing target behind this one: the walk of [`kiln_chain::resync`].

use super::reads::is_damage;
use super::{NEIGHBOUR_TIMEOUT, Target};
use kiln_chain::replica::{Event, View};
use kiln_chain::resync;
use kiln_chunk_store::{VersionStat, Which};
use kiln_env::Task;
use kiln_memory::Bytes;
use kiln_rpc::FillProgress;
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{
    ChainVersion, ChunkId, Code, Context, Error, Held, HeldPage, Monotonic, Result, TargetId,
    TruncateEpoch,
};
use kiln_wire::{Copied, Fill, FillStep, Install, LIST_LIMIT_MAX, Name};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Chunks that are made the same at a time, as far as the bytes in flight allow.
const COPIES: usize = 16;
/// How long one copy may take, its turn at both ends included.
const COPY_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after a step that failed; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One walk: whom it fills, under which version of the chain.
struct Walk {
    target: Arc<Target>,
    to: TargetId,
    chain_version: ChainVersion,
}

/// The walk that goes on now, and how far it is. Dropping the task ends it.
#[derive(Default)]
pub(super) struct Filling {
    pub(super) task: Option<Task<()>>,
    pub(super) progress: Option<Progress>,
}

pub(super) struct Progress {
    fill: FillProgress,
    since: Monotonic,
}

impl Target {
    /// How far the filling of the target behind this one is; `None` when there is none.
    pub fn progress(&self) -> Option<FillProgress> {
        let filling = self.filling.lock();
        let Progress { fill, since } = filling.progress.as_ref()?;
        Some(FillProgress { elapsed: self.env.now().since(*since), ..*fill })
    }

    /// Begins or ends the filling of the successor, as the chain wants it.
    pub(super) fn follow_successor(self: &Arc<Self>, view: Option<View>) {
        let to = view.filter(|view| view.successor_syncs).and_then(|view| view.successor);
        let mut filling = self.filling.lock();
        if filling.task.is_some() && to.is_some() {
            mark("a filling begins anew under another version of the chain");
        }
        *filling = Filling::default();
        if let (Some(view), Some(to)) = (view, to) {
            let chain_version = view.chain_version;
            let walk = Walk { target: Arc::clone(self), to, chain_version };
            filling.task = Some(self.env.spawn("fill a target", walk.run()));
        }
    }

    /// Makes the committed version of a chunk at `to`, whatever that has of it, the one here. Nothing
    /// else happens to the chunk here meanwhile.
    pub(super) async fn make_same(
        self: &Arc<Self>,
        chunk: ChunkId,
        to: TargetId,
        chain_version: ChainVersion,
    ) -> Result<()> {
        let only = FillStep::Versions { from: chunk, to: chunk.next(), limit: 1 };
        let found = self.step(to, chain_version, only).await?.chunks;
        let expected = found.first().map_or(Held::NOTHING, |(_, held)| *held);
        let committed = self.stat(chunk).await?.committed;
        let version = committed.map_or(Held::NOTHING.committed, |stat| stat.version);
        let overlooks = planted("a filling overlooks what is pending");
        let same = Held { committed: version, pending: None };
        if expected == same || overlooks && expected.committed == version {
            return Ok(());
        }
        let (copy, payload) = match committed {
            Some(stat) => {
                let copied = match self.copy_of(chunk, stat).await {
                    // Its repair waits for its turn, and so for this.
                    Err(error) if is_damage(&error) => {
                        self.copy_of_another(chunk, stat.version, stat.length).await
                    }
                    copied => copied,
                };
                copied.map(|(copy, bytes)| (Some(copy), bytes))?
            }
            None => (None, Bytes::empty()),
        };
        let name = Name { chain: self.chain, chain_version, chunk };
        let install = Install { name, from: self.id, expected, copy };
        let bytes = payload.len() as u64;
        let deadline = self.env.deadline_after(COPY_TIMEOUT / 2);
        self.peers.install(to, install, payload, deadline).await?;
        if let Some(progress) = &mut self.filling.lock().progress {
            progress.fill.copied_bytes += bytes;
        }
        Ok(())
    }

    pub(super) async fn copy_of(
        self: &Arc<Self>,
        chunk: ChunkId,
        stat: VersionStat,
    ) -> Result<(Copied, Bytes)> {
        let VersionStat { version, epoch, .. } = stat;
        if stat.removed {
            return Ok((Copied { version, epoch, checksums: None }, Bytes::empty()));
        }
        let which = Which::Version(version);
        let read = self.read_store(chunk, which, 0, u32::MAX, TruncateEpoch(0)).await;
        let read = read.context("reading a chunk to copy it")?;
        Ok((Copied { version, epoch, checksums: Some(read.checksums) }, read.bytes))
    }

    async fn step(
        &self,
        to: TargetId,
        chain_version: ChainVersion,
        step: FillStep,
    ) -> Result<HeldPage> {
        let fill = Fill { chain: self.chain, chain_version, from: self.id, step };
        let deadline = self.env.deadline_after(NEIGHBOUR_TIMEOUT);
        self.peers.fill(to, fill, deadline).await
    }

    /// Which versions are here.
    pub(super) async fn versions(
        &self,
        from: ChunkId,
        to: ChunkId,
        limit: u32,
    ) -> Result<HeldPage> {
        let limit = limit.clamp(1, LIST_LIMIT_MAX) as usize;
        let chunks = self.notice(self.store.versions(self.id, from, to, limit).await)?;
        Ok(HeldPage::new(chunks, limit))
    }

    fn fills(&self, chain_version: ChainVersion) -> bool {
        let view = self.state.lock().replica.view().copied();
        view.is_some_and(|view| view.chain_version == chain_version && view.successor_syncs)
    }
}

impl Walk {
    /// Walks until the successor is filled and serves, or the chain has another version.
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        tracing::info!(target_id = %self.target.id, to = %self.to, "a target is filled");
        while self.goes_on() {
            let Err(error) = self.once().await else { continue };
            tracing::info!(target_id = %self.target.id, to = %self.to, %error, "filling begins anew");
            self.target.env.sleep(self.target.env.jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn goes_on(&self) -> bool {
        self.target.fills(self.chain_version)
    }

    /// From the first chunk to the last; then says so until the manager has heard it.
    async fn once(&self) -> Result<()> {
        let Target { store, id, env, .. } = &*self.target;
        let walk = env.random_u64();
        let fill = FillProgress {
            target: self.to,
            done_chunks: 0,
            total_chunks: store.chunk_count(*id),
            copied_bytes: 0,
            elapsed: Duration::ZERO,
        };
        self.target.filling.lock().progress = Some(Progress { fill, since: env.now() });
        self.insist(FillStep::Start { walk }).await?;
        let over = planted("a filling is over before it has begun");
        let mut from = (!over).then_some(ChunkId::MIN);
        while let Some(first) = from {
            from = self.page(first).await?;
        }
        if !planted("retries do not travel with a filling") {
            self.pass_retries().await?;
        }
        while self.goes_on() {
            self.insist(FillStep::Done { walk }).await?;
            env.sleep(PAUSE_MAX).await;
        }
        Ok(())
    }

    /// Makes the chunks of a page the same; where the next one begins.
    async fn page(&self, from: ChunkId) -> Result<Option<ChunkId>> {
        let limit = LIST_LIMIT_MAX;
        // Before the page is made: see `compare`.
        let changing: HashSet<ChunkId> = {
            let state = self.target.state.lock();
            let changing = state.replica.changing_since_before(self.chain_version);
            changing.filter(|chunk| *chunk >= from).collect()
        };
        let here = self.target.versions(from, ChunkId::MAX, limit).await?;
        let versions = FillStep::Versions { from, to: ChunkId::MAX, limit };
        let there = self.insist(versions).await?;
        let compared = resync::compare(&here, &there, changing);
        self.count(compared.same);
        self.make_same(compared.differing).await?;
        Ok(compared.last.map(|last| last.next()))
    }

    fn count(&self, chunks: u64) {
        if let Some(progress) = &mut self.target.filling.lock().progress {
            progress.fill.done_chunks += chunks;
        }
    }

    /// Makes some chunks the same, several at a time.
    async fn make_same(&self, chunks: Vec<ChunkId>) -> Result<()> {
        let chunks = Arc::new(Mutex::new(chunks));
        let worker = || {
            let walk = Self { target: Arc::clone(&self.target), ..*self };
            let chunks = Arc::clone(&chunks);
            let work = async move {
                loop {
                    let Some(chunk) = chunks.lock().pop() else { return Ok(()) };
                    walk.make_one_same(chunk).await?;
                    walk.count(1);
                }
            };
            self.target.env.spawn("copy chunks", work)
        };
        let workers: Vec<Task<Result<()>>> =
            (0..COPIES.min(chunks.lock().len())).map(|_| worker()).collect();
        for worker in workers {
            worker.join().await??;
        }
        Ok(())
    }

    async fn make_one_same(&self, chunk: ChunkId) -> Result<()> {
        let Target { store, id, env, recovery, .. } = &*self.target;
        let stat = store.stat(*id, chunk).await?;
        let length = stat.committed.map_or(0, |stat| stat.length);
        let _leave = recovery.leave(length).await;
        let chain_version = self.chain_version;
        let mut pause = PAUSE_MIN;
        loop {
            let deadline = env.deadline_after(COPY_TIMEOUT);
            let event = |ticket| Event::Sync { ticket, chain_version, chunk };
            match self.target.wait_for(deadline, event, |_, _| {}).await {
                Err(error) if self.may_pass(&error, &mut pause).await => {}
                result => return result.map(drop),
            }
        }
    }

    /// Tells the successor what is remembered of clients' writes. One that is pending is left out: its
    /// record comes with it.
    async fn pass_retries(&self) -> Result<()> {
        let Target { store, id, .. } = &*self.target;
        let mut after = None;
        loop {
            let mut records = store.retry_records(*id, after, LIST_LIMIT_MAX as usize);
            let Some(last) = records.last() else { return Ok(()) };
            after = Some((last.key.client, last.key.channel));
            // Looked up after the records: what is settled in between is at the successor.
            let pending: HashSet<_> = store.pending(*id).into_iter().collect();
            records.retain(|record| !pending.contains(&(record.chunk, record.version)));
            if !records.is_empty() {
                mark("retry records travel with a filling");
            }
            self.insist(FillStep::Retries(records)).await?;
        }
    }

    async fn insist(&self, step: FillStep) -> Result<HeldPage> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.target.step(self.to, self.chain_version, step.clone()).await {
                Err(error) if self.may_pass(&error, &mut pause).await => {}
                result => return result,
            }
        }
    }

    /// Whether what failed may succeed now: after a pause, if the chain is as it was, and the successor
    /// did not forget the walk.
    async fn may_pass(&self, error: &Error, pause: &mut Duration) -> bool {
        if error.code() == Code::NotFound {
            mark("a filled target forgot the walk");
            return false;
        }
        if !self.goes_on() {
            return false;
        }
        let Target { id, env, .. } = &*self.target;
        tracing::debug!(target_id = %id, to = %self.to, %error, "filling");
        env.sleep(env.jittered(*pause)).await;
        *pause = (*pause * 2).min(PAUSE_MAX);
        true
    }
}
