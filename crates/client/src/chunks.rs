//! Chunk requests: sent to the right replica, tried again until they are answered or too late.

use crate::channels::Channels;
use async_trait::async_trait;
use kiln_chain::{Initiator, Intent, Step};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_net::{Answer, Call, ConnectionPool};
use kiln_telemetry::{CALLS, Phase, about, phase};
use kiln_types::{
    Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, Code, Consistency, Deadline,
    Error, Result, RetryKey, RoutingInfo, TargetId, TruncateEpoch, grid_checksums,
};
use kiln_wire::{
    Body, Change, Goodbye, List, Listing, Name, Operation, Read, ReadDone, Scrubbed, Space, Update,
    Write, WriteDone,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How long one attempt may take; a hung server is noticed by its manager within a lease.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often a refused capability is renewed for one request.
const RENEWALS_MAX: u32 = 3;

/// What the holder of an open file may show to storage.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The capability; empty for servers.
    pub capability: Arc<[u8]>,
    /// The epoch under which writes are made.
    pub epoch: TruncateEpoch,
    /// Chunks of an older epoch do not count, for the chunk at hand.
    pub floor: TruncateEpoch,
}

/// Where the right to read and write a file's chunks comes from.
#[async_trait]
pub trait Grant: Send + Sync {
    /// What holds now for chunk `index`; fetched anew shortly before it expires.
    ///
    /// # Errors
    /// When it has expired and a new one is refused.
    async fn current(&self, index: u64) -> Result<Granted>;

    /// Fetches a new one, because storage refused this one.
    ///
    /// # Errors
    /// When a new one is refused.
    async fn renew(&self) -> Result<()>;
}

/// A chunk and its place.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its chain.
    pub chain: ChainId,
    /// Its id.
    pub chunk: ChunkId,
    /// Its index in the file.
    pub index: u64,
    /// The layout's chunk size.
    pub chunk_bytes: u32,
}

/// The data plane of a client.
pub struct ChunkClient {
    env: Env,
    id: ClientId,
    connections: ConnectionPool,
    routing: watch::Receiver<Arc<RoutingInfo>>,
    channels: Channels,
    /// Counts reads, so that replicas take turns.
    pub(crate) reads: AtomicU64,
    pub(crate) consistency: Consistency,
}

impl ChunkClient {
    /// A client with the incarnation `id`, which must be new for each process.
    pub fn new(
        env: Env,
        id: ClientId,
        connections: ConnectionPool,
        routing: watch::Receiver<Arc<RoutingInfo>>,
    ) -> Self {
        let (channels, reads) = (Channels::new(id), AtomicU64::new(0));
        let consistency = Consistency::default();
        Self { env, id, connections, routing, channels, reads, consistency }
    }

    /// The same with another consistency of its reads.
    #[must_use]
    pub fn with_consistency(self, consistency: Consistency) -> Self {
        Self { consistency, ..self }
    }

    /// The routing information as it is known now.
    pub fn routing(&self) -> Arc<RoutingInfo> {
        Arc::clone(&self.routing.borrow())
    }

    /// Fills `buffer` from `offset` of a chunk; returns it with how many bytes the chunk had there. What
    /// lies behind them is zeroed. The buffer may be another one than was given.
    ///
    /// # Errors
    /// The last error when the deadline has passed, or one that does not get better.
    pub async fn read(
        &self,
        grant: &dyn Grant,
        place: Place,
        offset: u32,
        buffer: Buffer,
        deadline: Deadline,
    ) -> Result<(Buffer, usize)> {
        let bytes = buffer.len();
        let work = self.read_until(grant, place, offset, buffer, deadline);
        self.measure("chunk read", place, bytes, work).await
    }

    /// Measures a call about one chunk; it is a phase of what it is made for.
    pub(crate) async fn measure<T>(
        &self,
        operation: &'static str,
        place: Place,
        bytes: usize,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // Boxed: each layer around a future holds it twice.
        let work = Box::pin(work);
        let work = async {
            about(|about| {
                (about.chunk, about.chain) = (Some(place.chunk), Some(place.chain));
                about.bytes = Some(bytes as u64);
            });
            work.await
        };
        let measured = CALLS.measure(&self.env, operation, "storage", work);
        phase(&self.env, Phase::Storage, measured).await
    }

    async fn read_until(
        &self,
        grant: &dyn Grant,
        place: Place,
        offset: u32,
        buffer: Buffer,
        deadline: Deadline,
    ) -> Result<(Buffer, usize)> {
        let length = buffer.len();
        let mut buffer = Some(buffer);
        let intent = Intent::Read { spread: self.reads.fetch_add(1, Ordering::Relaxed) };
        let mut attempts = self.attempts(intent, place.chain, deadline, Some(grant));
        loop {
            let attempt = attempts.next().await.map_err(|error| reading(error, &place))?;
            // Memory that was lent to an attempt which failed stays with its connection.
            let receive = buffer.take().unwrap_or_else(|| Buffer::zeroed(length));
            match self.read_once(grant, place, offset, receive, attempt).await {
                Ok(received) => return restore(received, length),
                Err(error) if error.code() == Code::ChunkNotFound => {
                    return Ok((Buffer::zeroed(length), 0));
                }
                Err(error) => {
                    attempts.failed(error).await.map_err(|error| reading(error, &place))?;
                }
            }
        }
    }

    async fn read_once(
        &self,
        grant: &dyn Grant,
        place: Place,
        offset: u32,
        receive: Buffer,
        attempt: Attempt,
    ) -> Result<Buffer> {
        let granted = grant.current(place.index).await?;
        let too_long = |_| Error::invalid("a read of 4 GiB or more");
        let read = Read {
            name: attempt.name(&place),
            offset,
            length: u32::try_from(receive.len()).map_err(too_long)?,
            floor: granted.floor,
            consistency: self.consistency,
            capability: granted.capability.to_vec(),
        };
        let call = Call::new(Operation::Read as u16, read.encode(), attempt.deadline);
        let answer = self.call(attempt.target, call.with_receive(receive)).await?;
        let done = ReadDone::decode(&answer.body)?;
        let received = answer.received.ok_or_else(|| Error::internal("no memory came back"))?;
        if grid_checksums(u64::from(offset), &received) != done.checksums {
            let text = format!("chunk {} was damaged on its way here", place.chunk);
            return Err(Error::new(Code::ChecksumMismatch, text));
        }
        Ok(received)
    }

    /// Writes `bytes` at `offset` of a chunk. When it returns, every serving replica has them durable.
    ///
    /// # Errors
    /// The last error when the deadline has passed (the write may or may not have taken effect then), or
    /// one that does not get better.
    pub async fn write(
        &self,
        grant: &dyn Grant,
        place: Place,
        offset: u32,
        bytes: Bytes,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let checksums = grid_checksums(u64::from(offset), &bytes);
        let change = Change::Write { offset, checksums };
        self.change(grant, place, change, Some(bytes), deadline).await
    }

    /// Makes any change of a chunk; all but writes and zeros are refused to clients that are not servers.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn change(
        &self,
        grant: &dyn Grant,
        place: Place,
        change: Change,
        payload: Option<Bytes>,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let operation = match &change {
            Change::Write { .. } => "chunk write",
            Change::Truncate { .. } => "chunk truncate",
            Change::Zero { .. } => "chunk zero",
            Change::Remove => "chunk remove",
            Change::Replace { .. } => "chunk replace",
        };
        let bytes = payload.as_ref().map_or(0, |payload| payload.len());
        let work = self.change_until(grant, place, change, payload, deadline);
        self.measure(operation, place, bytes, work).await
    }

    async fn change_until(
        &self,
        grant: &dyn Grant,
        place: Place,
        change: Change,
        payload: Option<Bytes>,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let turn = self.channels.turn(&self.env, place.chain, &place.chunk, deadline);
        let turn = phase(&self.env, Phase::Queue, turn).await?;
        let writing =
            |error: Error| error.while_doing(format_args!("write of chunk {}", place.chunk));
        let mut attempts = self.attempts(Intent::Write, place.chain, deadline, Some(grant));
        loop {
            let attempt = attempts.next().await.map_err(writing)?;
            let once = self.change_once(grant, place, &change, payload.clone(), turn.key, attempt);
            match once.await {
                Ok(version) => return Ok(version),
                Err(error) => attempts.failed(error).await.map_err(writing)?,
            }
        }
    }

    async fn change_once(
        &self,
        grant: &dyn Grant,
        place: Place,
        change: &Change,
        payload: Option<Bytes>,
        key: RetryKey,
        attempt: Attempt,
    ) -> Result<ChunkVersion> {
        let granted = grant.current(place.index).await?;
        let write = Write {
            name: attempt.name(&place),
            update: Update {
                change: change.clone(),
                epoch: granted.epoch,
                floor: granted.floor,
                chunk_bytes: place.chunk_bytes,
                retry: Some(key),
            },
            capability: granted.capability.to_vec(),
        };
        let mut call = Call::new(Operation::Write as u16, write.encode(), attempt.deadline);
        call.payload = payload;
        let answer = self.call(attempt.target, call).await?;
        Ok(WriteDone::decode(&answer.body)?.version)
    }

    /// A page of a chain's chunks, as its head lists them. For servers and operators.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn list(&self, list: &List, deadline: Deadline) -> Result<Listing> {
        let mut attempts = self.attempts(Intent::Write, list.chain, deadline, None);
        loop {
            let Attempt { target, deadline, .. } = attempts.next().await?;
            match self.list_at(target, list, deadline).await {
                Ok(listing) => return Ok(listing),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// A page of a chain's chunks, as `target` lists them: for comparing replicas.
    ///
    /// # Errors
    /// The server's, at once.
    pub async fn list_at(
        &self,
        target: TargetId,
        list: &List,
        deadline: Deadline,
    ) -> Result<Listing> {
        let call = Call::new(Operation::List as u16, list.encode(), deadline);
        Listing::decode(&self.call(target, call).await?.body)
    }

    /// Lets `target` read a page of its chunks and verify them.
    ///
    /// # Errors
    /// The server's, at once.
    pub async fn scrub_at(
        &self,
        target: TargetId,
        list: &List,
        deadline: Deadline,
    ) -> Result<Scrubbed> {
        let call = Call::new(Operation::Scrub as u16, list.encode(), deadline);
        Scrubbed::decode(&self.call(target, call).await?.body)
    }

    /// The disks of the server at `address`. For servers and operators.
    ///
    /// # Errors
    /// The server's, at once.
    pub async fn space(&self, address: &str, deadline: Deadline) -> Result<Space> {
        let call = Call::new(Operation::Space as u16, Vec::new(), deadline);
        Space::decode(&self.connections.call(address, call).await?.body)
    }

    /// Tells every server that was written to that nothing will be tried again, so that they may forget
    /// what they remember of it. A server that does not answer finds out by itself.
    pub async fn goodbye(&self, deadline: Deadline) {
        let routing = self.routing();
        let chains = self.channels.chains();
        let targets = chains.iter().filter_map(|chain| routing.chains.get(chain));
        let targets = targets.flat_map(|chain| &chain.members).map(|member| member.target);
        let mut addresses: Vec<_> = targets
            .filter_map(|target| routing.node_of(target))
            .map(|node| &node.address)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            let body = Goodbye { client: self.id }.encode();
            let call = Call::new(Operation::Goodbye as u16, body, deadline);
            if let Err(error) = self.connections.call(address, call).await {
                tracing::debug!(%address, %error, "goodbye was not heard");
            }
        }
    }

    pub(crate) async fn call(&self, target: TargetId, call: Call) -> Result<Answer> {
        let routing = self.routing();
        let node = routing.node_of(target).ok_or_else(|| {
            Error::new(Code::NotServing, format!("no server has target {target} yet"))
        })?;
        let called = self.connections.call(&node.address, call);
        phase(&self.env, Phase::Storage, called).await
    }

    pub(crate) fn attempts<'a>(
        &'a self,
        intent: Intent,
        chain: ChainId,
        deadline: Deadline,
        grant: Option<&'a dyn Grant>,
    ) -> Attempts<'a> {
        Attempts {
            env: &self.env,
            routing: self.routing.clone(),
            initiator: Initiator::new(intent, deadline),
            chain,
            deadline,
            grant,
            renewals: 0,
            target: TargetId(0),
        }
    }
}

/// Where and by when to send a request this time.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) target: TargetId,
    chain_version: ChainVersion,
    pub(crate) deadline: Deadline,
}

impl Attempt {
    pub(crate) fn name(&self, place: &Place) -> Name {
        Name { chain: place.chain, chain_version: self.chain_version, chunk: place.chunk }
    }
}

/// The attempts of one request: the shell around its [`Initiator`].
pub(crate) struct Attempts<'a> {
    env: &'a Env,
    routing: watch::Receiver<Arc<RoutingInfo>>,
    initiator: Initiator,
    chain: ChainId,
    deadline: Deadline,
    grant: Option<&'a dyn Grant>,
    renewals: u32,
    target: TargetId,
}

impl Attempts<'_> {
    /// Waits until there is somebody to ask.
    pub(crate) async fn next(&mut self) -> Result<Attempt> {
        loop {
            let chain: Option<Chain> =
                self.routing.borrow_and_update().chains.get(&self.chain).cloned();
            match self.initiator.next(chain.as_ref(), self.env.now()) {
                Step::Send { target, chain_version } => {
                    self.target = target;
                    about(|about| about.target = Some(target));
                    let latest = self.env.deadline_after(ATTEMPT_TIMEOUT);
                    let deadline = latest.min(self.deadline);
                    return Ok(Attempt { target, chain_version, deadline });
                }
                step => self.follow(step).await?,
            }
        }
    }

    /// Takes the error of the last attempt; returns when it is time for another one.
    pub(crate) async fn failed(&mut self, error: Error) -> Result<()> {
        tracing::debug!(chain = %self.chain, target_id = %self.target, %error, "attempt failed");
        let stale = matches!(error.code(), Code::CapabilityRefused | Code::StaleEpoch);
        match self.grant {
            Some(grant) if stale && self.renewals < RENEWALS_MAX => {
                self.renewals += 1;
                grant.renew().await
            }
            _ => {
                let step = self.initiator.failed(self.target, error, self.env.now());
                self.follow(step).await
            }
        }
    }

    async fn follow(&mut self, step: Step) -> Result<()> {
        match step {
            Step::GiveUp(error) => Err(error),
            Step::Send { .. } => Ok(()),
            Step::Pause(pause) => {
                let pause = self.env.jittered(pause).min(self.deadline.left(self.env.now()));
                phase(self.env, Phase::Pause, async {
                    // A change of the routing ends the pause early; a manager that is gone does not.
                    let changed = self.routing.changed();
                    if let Ok(Err(_)) = self.env.timeout(pause, "routing", changed).await {
                        self.env.sleep(pause).await;
                    }
                })
                .await;
                Ok(())
            }
        }
    }
}

pub(crate) fn reading(error: Error, place: &Place) -> Error {
    error.while_doing(format_args!("read of chunk {}", place.chunk))
}

/// Gives a buffer that an answer cut short its length back, with zeros behind the answer.
fn restore(received: Buffer, length: usize) -> Result<(Buffer, usize)> {
    let found = received.len();
    if found == length {
        return Ok((received, found));
    }
    let mut whole = Buffer::zeroed(length);
    whole[..found].copy_from_slice(&received);
    Ok((whole, found))
}
