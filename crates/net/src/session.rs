//! The acceptor's end of a connection of frames: reads requests, runs the handler, writes answers.

use crate::authority::{Authority, judge};
use crate::budget::{Admission, Budgets, Window};
use crate::call::{Cancelled, Handler, Payload, Request, Response};
use crate::counters::{Counters, add};
use crate::intake::Intake;
use crate::options::ServerOptions;
use crate::outbox::{Frame, Outbox, stalled};
use crate::peer::Peer;
use crate::stream::{Ending, Stream, hung_up};
use kiln_env::{Env, Task};
use kiln_types::{Code, Error, Result};
use kiln_wire::{BODY_BYTES_MAX, FrameHeader, FrameKind, encode_error};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What all sessions of a listening server share.
pub(crate) struct House {
    pub(crate) options: ServerOptions,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) handler: Option<Arc<dyn Handler>>,
    pub(crate) env: Env,
    pub(crate) counters: Arc<Counters>,
    pub(crate) budgets: Budgets,
}

pub(crate) struct Session {
    house: Arc<House>,
    handler: Arc<dyn Handler>,
    peer: Arc<Peer>,
    ending: Arc<Ending>,
    /// No new requests; the answers that are due are still written.
    leaving: Ending,
    outbox: Outbox,
    window: Window,
    /// The authority's version when the peer was last judged.
    judged: AtomicU64,
    /// Requests whose answers are due.
    flights: Mutex<BTreeMap<u64, Flight>>,
    /// Requests from their header to their answer: while there are any, the peer is told of life.
    owed: AtomicUsize,
    landed: Notify,
}

#[derive(Default)]
struct Flight {
    cancelled: Cancelled,
    task: Option<Task<()>>,
}

impl Session {
    /// A session on an opened stream, and the intake to run it with.
    pub(crate) fn new(
        house: &Arc<House>,
        handler: Arc<dyn Handler>,
        peer: Arc<Peer>,
        stream: Stream,
        judged: u64,
    ) -> (Arc<Self>, Intake) {
        let intake = Intake::new(stream.reader, Arc::clone(&peer));
        let ending = Arc::new(Ending::new());
        let session = Self {
            house: Arc::clone(house),
            handler,
            outbox: Outbox::new(stream.writer, Arc::clone(&peer), Arc::clone(&ending)),
            peer,
            ending,
            leaving: Ending::new(),
            window: Window::new(house.options.credit),
            judged: AtomicU64::new(judged),
            flights: Mutex::new(BTreeMap::new()),
            owed: AtomicUsize::new(0),
            landed: Notify::new(),
        };
        (Arc::new(session), intake)
    }

    /// Serves the connection until it ends and every handler has returned.
    pub(crate) async fn run(self: Arc<Self>, mut intake: Intake) {
        let credit = self.house.options.credit.encode();
        let header = FrameHeader::new(FrameKind::Credit, 0, &credit);
        self.outbox.push(Frame::new(header, credit, None));
        let mut before = 0;
        let look = || {
            let written = self.outbox.written();
            let owes = self.owed.load(Ordering::Relaxed) > 0;
            if owes && written == before && self.outbox.is_empty() {
                let header = FrameHeader::new(FrameKind::Alive, 0, &[]);
                self.outbox.push(Frame::new(header, Vec::new(), None));
            }
            before = written;
        };
        let serve = async {
            let outcome = tokio::select! {
                biased;
                () = self.leaving.wait() => self.part().await,
                outcome = self.requests(&mut intake) => outcome,
            };
            match outcome {
                Ok(()) => self.ending.end(hung_up(&self.peer)),
                Err(error) => self.end(error),
            }
        };
        let stall = self.house.options.stall;
        tokio::select! {
            biased;
            () = serve => {}
            () = self.outbox.pump(&self.house.env, Some(stall), look) => {}
        }
        self.outbox.close();
        for flight in self.flights.lock().values() {
            flight.cancelled.set();
        }
        self.all_landed().await;
    }

    /// Takes no more requests; ends when the answers are written.
    pub(crate) fn leave(&self) {
        let header = FrameHeader::new(FrameKind::Goodbye, 0, &[]);
        self.outbox.push(Frame::new(header, Vec::new(), None));
        self.leaving.end(Error::new(Code::Cancelled, "the server is stopping"));
    }

    async fn part(&self) -> Result<()> {
        self.all_landed().await;
        self.outbox.flushed(&self.house.env, self.house.options.stall).await
    }

    /// Ends the connection at once and drops what its handlers do.
    pub(crate) fn kill(&self, reason: Error) {
        self.ending.end(reason);
        let flights = std::mem::take(&mut *self.flights.lock());
        drop(flights);
        self.landed.notify_waiters();
    }

    /// Ends the connection and tells the peer why.
    pub(crate) fn end(&self, reason: Error) {
        if !self.ending.has_come() && reason.code() != Code::ConnectionLost {
            tracing::warn!(peer = %self.peer, "closing a connection: {reason}");
        }
        let body = encode_error(&reason);
        let status = reason.code() as u16;
        let header = FrameHeader { status, ..FrameHeader::new(FrameKind::Goodbye, 0, &body) };
        self.outbox.push(Frame::new(header, body, None));
        self.ending.end(reason);
    }

    async fn all_landed(&self) {
        loop {
            let landed = self.landed.notified();
            if self.flights.lock().is_empty() {
                return;
            }
            landed.await;
        }
    }

    /// Ends the session if its peer may not use it any more.
    pub(crate) fn judge(&self) -> Result<()> {
        let version = self.house.authority.version();
        if version != self.judged.load(Ordering::Relaxed) {
            judge(&*self.house.authority, &self.peer)?;
            self.judged.store(version, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn requests(self: &Arc<Self>, intake: &mut Intake) -> Result<()> {
        while let Some(header) = intake.header().await? {
            self.judge()?;
            match header.kind {
                FrameKind::Request => {
                    self.owed.fetch_add(1, Ordering::Relaxed);
                    self.request(intake, header).await?;
                }
                FrameKind::Cancel => self.cancel(header.request),
                kind => return Err(intake.violation(&format!("{kind:?} from a connector"))),
            }
        }
        Ok(())
    }

    fn cancel(&self, request: u64) {
        if let Some(flight) = self.flights.lock().get(&request) {
            flight.cancelled.set();
        }
    }

    async fn request(self: &Arc<Self>, intake: &mut Intake, header: FrameHeader) -> Result<()> {
        let house = &self.house;
        let deadline =
            house.env.deadline_after(Duration::from_millis(u64::from(header.deadline_ms)));
        let admission = self.window.admit(&header, &house.budgets, &house.counters).await?;
        let (body, payload) = self.read_request(intake, &header).await?;
        let flight = Flight::default();
        let cancelled = flight.cancelled.clone();
        if self.flights.lock().insert(header.request, flight).is_some() {
            return Err(intake.violation("a request id that is in use"));
        }
        let due = Due { session: Arc::clone(self), header, admission: Some(admission) };
        if deadline.passed(house.env.now()) {
            add(&house.counters.expired);
            let message = "the deadline passed before the server could begin";
            due.answer(Err(Error::new(Code::DeadlineExceeded, message)));
            return Ok(());
        }
        add(&house.counters.requests);
        let request = Request {
            operation: header.operation,
            hop: header.hop,
            body,
            payload,
            receive_capacity: header.receive_bytes,
            deadline,
            cancelled,
        };
        let task = house.env.spawn("net request", async move {
            let session = Arc::clone(&due.session);
            let result = session.handler.handle(&session.peer, request).await;
            due.answer(result);
        });
        // It may be done already; then nobody needs the handle.
        match self.flights.lock().get_mut(&header.request) {
            Some(flight) => flight.task = Some(task),
            None => task.detach(),
        }
        Ok(())
    }

    async fn read_request(
        &self,
        intake: &mut Intake,
        header: &FrameHeader,
    ) -> Result<(Vec<u8>, Payload)> {
        let bytes = header.payload_bytes as usize;
        let stall = self.house.options.stall;
        let patience = stall + Duration::from_secs(bytes as u64 >> 20);
        let read = async {
            let body = intake.body(header).await?;
            if bytes == 0 {
                return Ok((body, Payload::default()));
            }
            let mut buffer = self.house.options.pool.take(bytes);
            intake.read_into(&mut buffer).await?;
            Ok((body, Payload::here(buffer.freeze())))
        };
        let read = self.house.env.timeout(patience, "", read).await;
        read.unwrap_or_else(|_| Err(stalled(&self.peer, stall)))
    }

    /// Writes the answer to a request, unless nobody wants it any more.
    fn answer(&self, header: &FrameHeader, admission: Admission, result: Result<Response>) {
        let Some(flight) = self.flights.lock().remove(&header.request) else { return };
        let unwanted = flight.cancelled.get();
        if let Some(task) = flight.task {
            // This runs in that very task: dropping the handle would end it.
            task.detach();
        }
        let owed = self.owed.fetch_sub(1, Ordering::Relaxed) - 1;
        let frame = match check(header, result) {
            Ok(_) if unwanted => {
                failure(header, &Error::new(Code::Cancelled, "the caller gave up"))
            }
            Ok(response) => success(header, response),
            Err(error) => failure(header, &error),
        };
        self.outbox.push_among(owed, frame.holding(admission));
        self.landed.notify_waiters();
    }
}

/// An answer that is due: it is given even when the handler panics.
struct Due {
    session: Arc<Session>,
    header: FrameHeader,
    admission: Option<Admission>,
}

impl Due {
    fn answer(mut self, result: Result<Response>) {
        self.settle(result);
    }

    fn settle(&mut self, result: Result<Response>) {
        if let Some(admission) = self.admission.take() {
            self.session.answer(&self.header, admission, result);
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.settle(Err(Error::internal("the server failed while it worked on the request")));
    }
}

fn check(header: &FrameHeader, result: Result<Response>) -> Result<Response> {
    let response = result?;
    let payload = response.payload.as_ref().map_or(0, |bytes| bytes.len());
    if response.body.len() > BODY_BYTES_MAX || payload > header.receive_bytes as usize {
        let message = format!(
            "operation {}: an answer of {} and {payload} bytes, at most {BODY_BYTES_MAX} and {} go",
            header.operation,
            response.body.len(),
            header.receive_bytes
        );
        tracing::error!("{message}");
        return Err(Error::internal(message));
    }
    Ok(response)
}

fn success(header: &FrameHeader, response: Response) -> Frame {
    let Response { body, payload } = response;
    let header = FrameHeader {
        operation: header.operation,
        payload_bytes: payload.as_ref().map_or(0, |bytes| bytes.len()) as u32,
        ..FrameHeader::new(FrameKind::Reply, header.request, &body)
    };
    Frame::new(header, body, payload)
}

fn failure(header: &FrameHeader, error: &Error) -> Frame {
    let body = encode_error(error);
    let header = FrameHeader {
        operation: header.operation,
        status: error.code() as u16,
        ..FrameHeader::new(FrameKind::Reply, header.request, &body)
    };
    Frame::new(header, body, None)
}
