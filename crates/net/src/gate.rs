//! Where connections come in: the handshake, its bounds, and who is inside.

use crate::call::Handler;
use crate::control::ControlStream;
use crate::counters::{Counters, add, subtract};
use crate::opening::{Served, receive_guest};
use crate::peer::Peer;
use crate::session::{House, Session};
use crate::stream::Stream;
use kiln_env::Task;
use kiln_telemetry::metrics;
use kiln_types::{Code, Error, Result};
use kiln_wire::{Agreement, Purpose};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often open connections are judged anew after keys or credentials changed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The gate of one listening server.
pub(crate) struct Gate {
    house: Arc<House>,
    /// Takes control connections; without it the server has no control plane.
    control: Option<mpsc::Sender<ControlStream>>,
    next: AtomicU64,
    /// Connections in their handshake, oldest first.
    opening: Mutex<BTreeMap<u64, Opening>>,
    guests: Mutex<BTreeMap<u64, Guest>>,
    /// Everything has ended: whoever comes in now is shown out.
    closed: AtomicBool,
}

struct Opening {
    address: String,
    _task: Option<Task<()>>,
}

/// A connection that passed the handshake.
#[derive(Clone)]
pub(crate) enum Guest {
    Data(Arc<Session>),
    Control(Arc<crate::control::Pass>),
}

impl Guest {
    fn kill(&self) {
        let reason = Error::new(Code::Cancelled, "the server stopped");
        match self {
            Self::Data(session) => session.kill(reason),
            Self::Control(pass) => pass.end(reason),
        }
    }

    fn judge(&self) {
        match self {
            Self::Data(session) => {
                if let Err(reason) = session.judge() {
                    session.end(reason);
                }
            }
            Self::Control(pass) => {
                let _ = pass.judge();
            }
        }
    }
}

impl Gate {
    pub(crate) fn new(house: House, control: Option<mpsc::Sender<ControlStream>>) -> Arc<Self> {
        Arc::new(Self {
            house: Arc::new(house),
            control,
            next: AtomicU64::new(0),
            opening: Mutex::new(BTreeMap::new()),
            guests: Mutex::new(BTreeMap::new()),
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.house.counters
    }

    /// Takes a new connection: its handshake runs beside the caller.
    pub(crate) fn arrive(self: &Arc<Self>, stream: Stream) {
        let options = &self.house.options;
        if self.guests.lock().len() >= options.connections_max {
            return self.refuse(&stream.address, &crowded("connections"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let address = stream.address.clone();
        let mut opening = self.opening.lock();
        let oldest = match opening.len() >= options.handshakes_max {
            true => opening.pop_first(),
            false => None,
        };
        let task = self.house.env.spawn("net handshake", Arc::clone(self).greet(id, stream));
        opening.insert(id, Opening { address, _task: Some(task) });
        drop(opening);
        if let Some((_, oldest)) = oldest {
            self.refuse(&oldest.address, &crowded("connections in their handshake"));
        }
    }

    fn refuse(&self, address: &str, error: &Error) {
        self.house.counters.refuse(address, error, self.house.env.now());
    }

    async fn greet(self: Arc<Self>, id: u64, mut stream: Stream) {
        let house = &self.house;
        let served = Served { control: self.control.is_some(), data: house.handler.is_some() };
        let judged = house.authority.version();
        let authority = &*house.authority;
        let greeting =
            receive_guest(&mut stream, authority, house.options.terms, served, &house.env);
        let outcome = house.env.timeout(house.options.handshake_timeout, "handshake", greeting);
        let outcome = outcome.await.and_then(|agreement| agreement);
        // From here on the task is the connection's own, if it was not pushed out just now.
        match self.opening.lock().remove(&id) {
            Some(Opening { _task: Some(task), .. }) => task.detach(),
            _ => return,
        }
        match outcome {
            Ok(agreement) => self.receive(id, agreement, stream, judged).await,
            Err(error) => self.refuse(&stream.address, &error),
        }
    }

    async fn receive(self: &Arc<Self>, id: u64, agreement: Agreement, stream: Stream, judged: u64) {
        let counters = &self.house.counters;
        let purpose = agreement.purpose;
        let peer = Arc::new(Peer::new(agreement, stream.address.clone()));
        add(&counters.accepted);
        add(&counters.open);
        metrics::NET_ACCEPTED.increment();
        metrics::NET_OPEN.add(1);
        match (purpose, &self.house.handler, &self.control) {
            (Purpose::Data, Some(handler), _) => {
                self.data(id, Arc::clone(handler), peer, stream, judged).await;
            }
            (Purpose::Control, _, Some(control)) => {
                let authority = Arc::clone(&self.house.authority);
                let (stream, pass) = ControlStream::new(stream, peer, authority, judged);
                self.let_in(id, Guest::Control(Arc::clone(&pass)));
                // A full queue means that tonic takes no connections: it is stopping.
                if control.send(stream).await.is_ok() {
                    pass.gone().await;
                }
            }
            _ => {}
        }
        self.guests.lock().remove(&id);
        subtract(&counters.open);
        metrics::NET_OPEN.add(-1);
    }

    async fn data(
        self: &Arc<Self>,
        id: u64,
        handler: Arc<dyn Handler>,
        peer: Arc<Peer>,
        stream: Stream,
        judged: u64,
    ) {
        let (session, intake) = Session::new(&self.house, handler, peer, stream, judged);
        self.let_in(id, Guest::Data(Arc::clone(&session)));
        session.run(intake).await;
    }

    fn let_in(&self, id: u64, guest: Guest) {
        self.guests.lock().insert(id, guest.clone());
        if self.closed.load(Ordering::SeqCst) {
            guest.kill();
        }
    }

    /// Judges open connections whenever keys or credentials changed, for ever: also those that ask
    /// nothing, like streams of the control plane.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut judged = self.house.authority.version();
        loop {
            self.house.env.sleep(SWEEP_INTERVAL).await;
            let version = self.house.authority.version();
            if version != judged {
                judged = version;
                self.guests().iter().for_each(Guest::judge);
            }
        }
    }

    fn guests(&self) -> Vec<Guest> {
        self.guests.lock().values().cloned().collect()
    }

    /// Lets the requests under way finish, at most `grace`; new ones are not taken.
    pub(crate) async fn part(&self, grace: Duration) {
        drop(std::mem::take(&mut *self.opening.lock()));
        for guest in self.guests() {
            if let Guest::Data(session) = guest {
                session.leave();
            }
        }
        let env = &self.house.env;
        let gone = async {
            while self.guests().iter().any(|guest| matches!(guest, Guest::Data(_))) {
                env.sleep(Duration::from_millis(2)).await;
            }
        };
        let _: Result<()> = env.timeout(grace, "requests under way", gone).await;
    }

    /// Ends everything at once.
    pub(crate) fn kill(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(std::mem::take(&mut *self.opening.lock()));
        self.guests().iter().for_each(Guest::kill);
    }
}

fn crowded(what: &str) -> Error {
    Error::new(Code::Overloaded, format!("this server has too many {what}"))
}
