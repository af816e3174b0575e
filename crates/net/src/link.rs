//! The connector's end of a connection of frames.

use crate::call::{Answer, Call};
use crate::intake::Intake;
use crate::opening::Introduction;
use crate::outbox::{Frame, Outbox};
use crate::peer::Peer;
use crate::stream::{Ending, Stream, hung_up};
use crate::transport::Link;
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::Buffer;
use kiln_types::{Code, Deadline, Error, Result};
use kiln_wire::{BODY_BYTES_MAX, Credit, FrameHeader, FrameKind, PAYLOAD_BYTES_MAX, decode_error};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// A server that owes an answer says something each second. After so many silent seconds it is
/// gone. It is not gone when it takes nothing: it may have no memory for the next request.
const SILENT_TICKS: u32 = 5;

/// A [`Link`] over a byte stream. Dropping it closes the connection.
pub(crate) struct FrameLink {
    shared: Arc<Shared>,
}

struct Shared {
    peer: Arc<Peer>,
    env: Env,
    ending: Arc<Ending>,
    outbox: Outbox,
    /// By request id; its entries own what the calls lent.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    credit: Credit,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    next: AtomicU64,
    /// The server said goodbye: it answers what it has and takes nothing more.
    leaving: AtomicBool,
}

struct Waiting {
    reply: oneshot::Sender<Result<Answer>>,
    receive: Option<Buffer>,
    _credit: [OwnedSemaphorePermit; 2],
}

impl FrameLink {
    /// Opens a connection over `stream`: the handshake, and the server's credit. The caller bounds
    /// the time.
    pub(crate) async fn open(
        mut stream: Stream,
        introduction: Introduction,
        env: &Env,
    ) -> Result<Self> {
        let agreement = crate::opening::introduce(&mut stream, introduction, env).await?;
        let peer = Arc::new(Peer::new(agreement, stream.address.clone()));
        let mut intake = Intake::new(stream.reader, Arc::clone(&peer));
        let credit = first_credit(&mut intake, &peer).await?;
        let ending = Arc::new(Ending::new());
        let outbox = Outbox::new(stream.writer, Arc::clone(&peer), Arc::clone(&ending));
        let shared = Arc::new(Shared {
            peer,
            env: env.clone(),
            ending,
            outbox,
            waiting: Mutex::new(BTreeMap::new()),
            credit,
            requests: Arc::new(Semaphore::new(credit.requests as usize)),
            bytes: Arc::new(Semaphore::new(credit.bytes as usize)),
            next: AtomicU64::new(1),
            leaving: AtomicBool::new(false),
        });
        // Both tasks end with the connection, which ends with the link.
        env.spawn("net answers", Shared::read(Arc::clone(&shared), intake.bytes_read(), intake))
            .detach();
        Ok(Self { shared })
    }
}

impl Drop for FrameLink {
    fn drop(&mut self) {
        self.shared.end(Error::new(Code::Cancelled, "the connection is not used any more"));
    }
}

async fn first_credit(intake: &mut Intake, peer: &Peer) -> Result<Credit> {
    let header = intake.header().await?.ok_or_else(|| hung_up(peer))?;
    let body = intake.body(&header).await?;
    match header.kind {
        FrameKind::Credit => Credit::decode(&body),
        FrameKind::Goodbye => Err(decode_error(header.status, &body)),
        kind => Err(intake.violation(&format!("{kind:?} where credit was due"))),
    }
}

#[async_trait]
impl Link for FrameLink {
    async fn call(&self, call: Call) -> Result<Answer> {
        self.shared.call(call).await
    }

    fn peer(&self) -> &Arc<Peer> {
        &self.shared.peer
    }

    fn is_closed(&self) -> bool {
        self.shared.ending.has_come() || self.shared.leaving.load(Ordering::Relaxed)
    }

    fn close(&self, reason: Error) {
        self.shared.end(reason);
    }
}

/// Tells the server when a call is dropped or late. What the call lent stays in `waiting`.
struct CancelOnDrop<'a> {
    shared: &'a Shared,
    request: u64,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let unanswered = self.shared.waiting.lock().contains_key(&self.request);
        if unanswered {
            let header = FrameHeader::new(FrameKind::Cancel, self.request, &[]);
            self.shared.outbox.push(Frame::new(header, Vec::new(), None));
        }
    }
}

impl Shared {
    async fn call(&self, call: Call) -> Result<Answer> {
        let deadline = call.deadline;
        check_limits(&call)?;
        let credit = self.take_credit(&call).await?;
        let left = deadline.left(self.env.now());
        if left.is_zero() {
            return Err(self.late("the deadline passed before the request was sent"));
        }
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (frame, receive) = frame_of(call, request, left);
        let (reply, answer) = oneshot::channel();
        let others = {
            let mut waiting = self.waiting.lock();
            waiting.insert(request, Waiting { reply, receive, _credit: credit });
            waiting.len() - 1
        };
        if self.ending.has_come() {
            // It may have ended before the entry was there: nobody else would remove it.
            drop(self.waiting.lock().remove(&request));
            return Err(self.reason());
        }
        self.outbox.push_among(others, frame);
        let _cancel = CancelOnDrop { shared: self, request };
        match self.env.until(deadline, "", answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.reason()),
            Err(_) => Err(self.late("no answer before the deadline")),
        }
    }

    async fn take_credit(&self, call: &Call) -> Result<[OwnedSemaphorePermit; 2]> {
        let payload = call.payload.as_ref().map_or(0, |bytes| bytes.len());
        let receive = call.receive.as_ref().map_or(0, |buffer| buffer.len());
        let cost = self.credit.cost(call.body.len(), payload, receive);
        let take = async {
            let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(cost).await.ok()?;
            Some([request, bytes])
        };
        match self.env.until(call.deadline, "", take).await {
            Ok(Some(credit)) => Ok(credit),
            Ok(None) => Err(self.reason()),
            Err(_) => Err(self.late("no credit before the deadline: too much is outstanding")),
        }
    }

    fn late(&self, what: &str) -> Error {
        Error::new(Code::DeadlineExceeded, format!("{}: {what}", self.peer))
    }

    fn reason(&self) -> Error {
        self.ending.reason().cloned().unwrap_or_else(|| hung_up(&self.peer))
    }

    /// Ends the connection: every outstanding call fails, and what they lent is free again.
    fn end(&self, reason: Error) {
        self.ending.end(reason);
        self.requests.close();
        self.bytes.close();
        let waiting = std::mem::take(&mut *self.waiting.lock());
        drop(waiting);
    }

    async fn read(self: Arc<Self>, bytes_read: Arc<AtomicU64>, mut intake: Intake) {
        let (mut before, mut silent) = (0, 0);
        let look = || {
            let now = bytes_read.load(Ordering::Relaxed);
            let owed = !self.waiting.lock().is_empty();
            silent = if owed && now == before { silent + 1 } else { 0 };
            before = now;
            if silent >= SILENT_TICKS {
                let message = format!("{} has been silent for {silent} s", self.peer);
                self.end(Error::new(Code::ConnectionLost, message));
            }
        };
        let answers = async {
            let error = match self.answers(&mut intake).await {
                Ok(()) => hung_up(&self.peer),
                Err(error) => error,
            };
            self.end(error);
        };
        tokio::select! {
            biased;
            () = answers => {}
            () = self.outbox.pump(&self.env, None, look) => {}
        }
        // The connection may have been ended elsewhere, by a failed write for instance.
        self.end(self.reason());
        self.outbox.close();
    }

    async fn answers(&self, intake: &mut Intake) -> Result<()> {
        while let Some(header) = intake.header().await? {
            let body = intake.body(&header).await?;
            match header.kind {
                FrameKind::Reply => self.answer(intake, &header, body).await?,
                FrameKind::Alive => {}
                FrameKind::Goodbye if header.status == 0 => {
                    self.leaving.store(true, Ordering::Relaxed);
                }
                FrameKind::Goodbye => return Err(decode_error(header.status, &body)),
                kind => return Err(intake.violation(&format!("{kind:?} from an acceptor"))),
            }
        }
        Ok(())
    }

    async fn answer(&self, intake: &mut Intake, header: &FrameHeader, body: Vec<u8>) -> Result<()> {
        let waiting = self.waiting.lock().remove(&header.request);
        let mut waiting =
            waiting.ok_or_else(|| intake.violation("an answer that nobody waits for"))?;
        let bytes = header.payload_bytes as usize;
        let room = waiting.receive.as_ref().map_or(0, |buffer| buffer.len());
        if bytes > room {
            return Err(intake.violation(&format!("a payload of {bytes} bytes for {room}")));
        }
        if let Some(buffer) = &mut waiting.receive {
            buffer.truncate(bytes);
            intake.read_into(buffer).await?;
        }
        let result = match header.status {
            0 => Ok(Answer { body, received: waiting.receive }),
            status => Err(decode_error(status, &body)),
        };
        // Credit first: whoever got the answer may call again at once.
        drop(waiting._credit);
        let _ = waiting.reply.send(result);
        Ok(())
    }
}

fn frame_of(call: Call, request: u64, left: Duration) -> (Frame, Option<Buffer>) {
    let Call { operation, hop, body, payload, receive, deadline: Deadline(_) } = call;
    let millis = left.as_nanos().div_ceil(1_000_000);
    let header = FrameHeader {
        operation,
        hop,
        deadline_ms: u32::try_from(millis).unwrap_or(u32::MAX),
        payload_bytes: payload.as_ref().map_or(0, |bytes| bytes.len()) as u32,
        receive_bytes: receive.as_ref().map_or(0, |buffer| buffer.len()) as u32,
        ..FrameHeader::new(FrameKind::Request, request, &body)
    };
    (Frame::new(header, body, payload), receive)
}

fn check_limits(call: &Call) -> Result<()> {
    let payload = call.payload.as_ref().map_or(0, |bytes| bytes.len());
    let receive = call.receive.as_ref().map_or(0, |buffer| buffer.len());
    for (what, bytes, limit) in [
        ("body", call.body.len(), BODY_BYTES_MAX),
        ("payload", payload, PAYLOAD_BYTES_MAX),
        ("receive buffer", receive, PAYLOAD_BYTES_MAX),
    ] {
        if bytes > limit {
            let message = format!("a call with a {what} of {bytes} bytes, at most {limit} go");
            return Err(Error::invalid(message));
        }
    }
    Ok(())
}
