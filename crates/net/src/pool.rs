//! Connections that callers share, made again when they break.

use crate::call::{Answer, Call, HOPS};
use crate::options::PoolOptions;
use crate::transport::{Connection, Transport};
use kiln_env::{Env, Task};
use kiln_types::{Code, Deadline, Error, Monotonic, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Addresses that are remembered; beyond it, those without an open connection are forgotten.
const ADDRESSES_MAX: usize = 4096;

/// One connection (or a few) to each address and hop, shared by all callers. Hops do not share a
/// connection: a request never waits behind one that may be waiting for it.
pub struct ConnectionPool {
    transport: Arc<dyn Transport>,
    options: PoolOptions,
    env: Env,
    places: Mutex<BTreeMap<String, Arc<Place>>>,
}

struct Place {
    slots: Vec<Arc<Slot>>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
}

type Outcome = Option<Result<Connection>>;

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Connecting {
        outcome: watch::Receiver<Outcome>,
        failures: u32,
        _attempt: Option<Task<()>>,
    },
    Open(Connection),
    Failed {
        error: Error,
        until: Monotonic,
        failures: u32,
    },
}

impl ConnectionPool {
    /// A pool over `transport`; connections are made when they are first needed.
    pub fn new(transport: Arc<dyn Transport>, options: PoolOptions, env: Env) -> Self {
        Self { transport, options, env, places: Mutex::new(BTreeMap::new()) }
    }

    /// Calls the server at `address` over a shared connection.
    ///
    /// # Errors
    /// What [`Self::connection`] and [`Connection::call`] say.
    pub async fn call(&self, address: &str, call: Call) -> Result<Answer> {
        let connection = self.connection(address, call.hop, call.deadline).await?;
        connection.call(call).await
    }

    /// The shared connection to `address` for calls of `hop`; waits for one attempt to make it,
    /// until `deadline`.
    ///
    /// # Errors
    /// Why the attempt failed. For a short time after a failed one, the same error at once.
    pub async fn connection(
        &self,
        address: &str,
        hop: u8,
        deadline: Deadline,
    ) -> Result<Connection> {
        let place = self.place(address);
        let per_hop = self.options.connections.max(1);
        let lane = usize::from(hop).min(HOPS - 1) * per_hop;
        let turn = place.next.fetch_add(1, Ordering::Relaxed) % per_hop;
        let mut outcome = match self.look(&place.slots[lane + turn], address)? {
            Ready::Open(connection) => return Ok(connection),
            Ready::Wait(outcome) => outcome,
        };
        let what = format!("connection to {address}");
        let settled = outcome.wait_for(Option::is_some);
        match self.env.until(deadline, &what, settled).await? {
            Ok(outcome) => outcome.clone().expect("invariant: waited for Some"),
            Err(_) => Err(Error::new(Code::Cancelled, format!("{what}: the attempt was dropped"))),
        }
    }

    /// Forgets back-off and connections of an address: the next call connects at once.
    pub fn forget(&self, address: &str) {
        self.places.lock().remove(address);
    }

    fn place(&self, address: &str) -> Arc<Place> {
        let mut places = self.places.lock();
        if let Some(place) = places.get(address) {
            return Arc::clone(place);
        }
        if places.len() >= ADDRESSES_MAX {
            places.retain(|_, place| place.slots.iter().any(|slot| slot.is_used()));
        }
        let count = HOPS * self.options.connections.max(1);
        let slots = (0..count).map(|_| Arc::default()).collect();
        let place = Arc::new(Place { slots, next: AtomicUsize::new(0) });
        places.insert(address.to_owned(), Arc::clone(&place));
        place
    }

    /// What a slot has to offer; begins an attempt where one is due.
    fn look(&self, slot: &Arc<Slot>, address: &str) -> Result<Ready> {
        let mut state = slot.state.lock();
        let failures = match &*state {
            State::Open(connection) if !connection.is_closed() => {
                return Ok(Ready::Open(connection.clone()));
            }
            State::Connecting { outcome, .. } if outcome.has_changed().is_ok() => {
                return Ok(Ready::Wait(outcome.clone()));
            }
            State::Failed { error, until, .. } if self.env.now() < *until => {
                return Err(error.clone());
            }
            State::Failed { failures, .. } | State::Connecting { failures, .. } => *failures,
            State::Idle | State::Open(_) => 0,
        };
        let (sender, outcome) = watch::channel(None);
        let attempt = self.attempt(Arc::clone(slot), address.to_owned(), sender, failures);
        let ready = Ready::Wait(outcome.clone());
        let _attempt = Some(self.env.spawn("connect", attempt));
        *state = State::Connecting { outcome, failures, _attempt };
        Ok(ready)
    }

    fn attempt(
        &self,
        slot: Arc<Slot>,
        address: String,
        sender: watch::Sender<Outcome>,
        failures: u32,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (transport, env) = (Arc::clone(&self.transport), self.env.clone());
        let options = self.options.clone();
        async move {
            let deadline = env.deadline_after(options.connect_timeout);
            let result = transport.connect(&address, deadline).await;
            let next = match &result {
                Ok(connection) => State::Open(connection.clone()),
                Err(error) => {
                    let until = env.now().plus(env.jittered(pause(&options, failures)));
                    State::Failed { error: error.clone(), until, failures: failures + 1 }
                }
            };
            // The old state holds the handle on this very task: there is no await after it is
            // dropped.
            let _ = sender.send(Some(result));
            let before = std::mem::replace(&mut *slot.state.lock(), next);
            if let State::Connecting { _attempt: Some(task), .. } = before {
                task.detach();
            }
        }
    }
}

enum Ready {
    Open(Connection),
    Wait(watch::Receiver<Outcome>),
}

impl Slot {
    fn is_used(&self) -> bool {
        match &*self.state.lock() {
            State::Open(connection) => !connection.is_closed(),
            State::Connecting { .. } => true,
            State::Idle | State::Failed { .. } => false,
        }
    }
}

fn pause(options: &PoolOptions, failures: u32) -> Duration {
    let doubled = options.backoff_min.saturating_mul(1 << failures.min(16));
    doubled.min(options.backoff_max)
}
