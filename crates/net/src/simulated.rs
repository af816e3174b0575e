//! A network without sockets, for the simulator: the same frames, handshakes, credits and sessions
//! over byte streams whose delay and faults come from the seed.
//!
//! Survivable faults: bytes are late, by a time that differs between connections, so that what two
//! connections carry is reordered; a connection breaks and loses what was on its way; one direction
//! between two hosts is cut, and after some patience its connections break; a host crashes. Within
//! a connection bytes keep their order and arrive once, as with TCP.

mod pipe;

use crate::authority::Authority;
use crate::budget::Budgets;
use crate::call::Handler;
use crate::counters::Counters;
use crate::gate::Gate;
use crate::link::FrameLink;
use crate::opening::Introduction;
use crate::options::ServerOptions;
use crate::server::Listening;
use crate::session::House;
use crate::stream::Stream;
use crate::transport::{Connection, Registration, Serving, Transport};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::Buffer;
use kiln_types::{Code, Deadline, Error, Monotonic, Result};
use kiln_wire::{Identity, Purpose, Terms};
use parking_lot::Mutex;
use pipe::{Pipe, PipeReader, PipeWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Connections that wait for a listener to take them.
const BACKLOG: usize = 1024;
/// How often a connection attempt is repeated while the way is cut.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(200);

/// How a simulated network behaves.
#[derive(Clone, Debug)]
pub struct SimulatedOptions {
    /// The shortest time that bytes are on their way.
    pub delay_min: Duration,
    /// The longest one.
    pub delay_max: Duration,
    /// How many of a million writes break their connection.
    pub losses_per_million: u32,
    /// A connection whose way is cut for so long breaks.
    pub patience: Duration,
}

impl Default for SimulatedOptions {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_millis(1),
            losses_per_million: 0,
            patience: Duration::from_secs(10),
        }
    }
}

/// A network of simulated hosts. Clones are the same network.
#[derive(Clone)]
pub struct SimulatedNetwork {
    world: Arc<World>,
}

pub(crate) struct World {
    env: Env,
    state: Mutex<State>,
}

struct State {
    options: SimulatedOptions,
    /// By address.
    listeners: BTreeMap<String, mpsc::Sender<Stream>>,
    /// Every direction of every connection, by a number that grows.
    pipes: BTreeMap<u64, Weak<Pipe>>,
    /// Directions that are cut, and which cut it is.
    cuts: BTreeMap<(String, String), u64>,
    next: u64,
}

impl SimulatedNetwork {
    /// A network on the executor of `env`.
    pub fn new(options: SimulatedOptions, env: Env) -> Self {
        let state = State {
            options,
            listeners: BTreeMap::new(),
            pipes: BTreeMap::new(),
            cuts: BTreeMap::new(),
            next: 1,
        };
        Self { world: Arc::new(World { env, state: Mutex::new(state) }) }
    }

    /// The transport of the host `name`, which proves itself with `identity`. Its addresses are
    /// `name:port`.
    pub fn host(&self, name: &str, identity: Identity, terms: Terms) -> SimulatedTransport {
        self.host_on(self.world.env.clone(), name, identity, terms)
    }

    /// As [`Self::host`], for a machine with clocks and tasks of its own.
    pub fn host_on(
        &self,
        env: Env,
        name: &str,
        identity: Identity,
        terms: Terms,
    ) -> SimulatedTransport {
        let (world, name) = (Arc::clone(&self.world), name.to_owned());
        SimulatedTransport { world, env, name, identity: Mutex::new(identity), terms }
    }

    /// Changes how the network behaves from now on.
    pub fn set_options(&self, options: SimulatedOptions) {
        self.world.state.lock().options = options;
    }

    /// Stops what `from` sends to `to`; the other direction goes on.
    pub fn cut(&self, from: &str, to: &str) {
        let key = (from.to_owned(), to.to_owned());
        let mut state = self.world.state.lock();
        state.next += 1;
        let cut = state.next;
        state.cuts.insert(key.clone(), cut);
        let patience = state.options.patience;
        drop(state);
        let world = Arc::clone(&self.world);
        let impatient = async move {
            world.env.sleep(patience).await;
            let still = world.state.lock().cuts.get(&key) == Some(&cut);
            if still {
                world.break_between(&key.0, &key.1);
            }
        };
        self.world.env.spawn("net patience", impatient).detach();
    }

    /// Stops both directions between `a` and `b`.
    pub fn part(&self, a: &str, b: &str) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Opens every way again; what was held back arrives.
    pub fn heal(&self) {
        self.world.state.lock().cuts.clear();
        self.world.pipes(|_| true).iter().for_each(|pipe| pipe.nudge());
    }

    /// Opens the way from `from` to `to` again; what was held back arrives.
    pub fn mend(&self, from: &str, to: &str) {
        self.world.state.lock().cuts.remove(&(from.to_owned(), to.to_owned()));
        let held = self.world.pipes(|pipe| pipe.from == from && pipe.to == to);
        held.iter().for_each(|pipe| pipe.nudge());
    }

    /// Whether nothing passes from `from` to `to`.
    pub fn is_cut(&self, from: &str, to: &str) -> bool {
        self.world.is_cut(from, to)
    }

    /// Whether a message that is sent now is lost, for what does not travel in a connection.
    pub fn loses(&self) -> bool {
        self.world.loses()
    }

    /// How long a message takes that is sent now, for what does not travel in a connection.
    pub fn delay(&self) -> Duration {
        self.world.arrival().since(self.world.env.now())
    }

    /// Breaks every connection between `a` and `b`.
    pub fn break_between(&self, a: &str, b: &str) {
        self.world.break_between(a, b);
    }

    /// What the network sees of a host that crashes: its connections break, nobody listens at its
    /// addresses. Its tasks are the caller's to end.
    pub fn crash(&self, host: &str) {
        self.world.state.lock().listeners.retain(|address, _| host_of(address) != host);
        let broken = self.world.pipes(|pipe| pipe.from == host || pipe.to == host);
        broken.iter().for_each(|pipe| pipe.break_down());
    }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

impl World {
    /// When bytes that are sent now arrive.
    fn arrival(&self) -> Monotonic {
        let (min, max) = {
            let state = self.state.lock();
            (state.options.delay_min, state.options.delay_max)
        };
        let spread = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX - 1);
        self.env.now().plus(min + Duration::from_nanos(self.env.random_below(spread + 1)))
    }

    /// Whether the next write breaks its connection.
    fn loses(&self) -> bool {
        let losses = self.state.lock().options.losses_per_million;
        losses > 0 && self.env.random_below(1_000_000) < u64::from(losses)
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        let state = self.state.lock();
        // Most of the time nothing is cut: no key is made then.
        !state.cuts.is_empty() && state.cuts.contains_key(&(from.to_owned(), to.to_owned()))
    }

    fn pipes(&self, which: impl Fn(&Pipe) -> bool) -> Vec<Arc<Pipe>> {
        let mut state = self.state.lock();
        state.pipes.retain(|_, pipe| pipe.strong_count() > 0);
        state.pipes.values().filter_map(Weak::upgrade).filter(|pipe| which(pipe)).collect()
    }

    fn break_between(&self, a: &str, b: &str) {
        let ends = BTreeSet::from([a, b]);
        let broken = self.pipes(|pipe| BTreeSet::from([&*pipe.from, &*pipe.to]) == ends);
        broken.iter().for_each(|pipe| pipe.break_down());
    }

    /// A new pipe from one host to another.
    fn pipe(self: &Arc<Self>, from: &str, to: &str) -> Arc<Pipe> {
        let pipe = Pipe::new(from, to, Arc::clone(self));
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.pipes.insert(id, Arc::downgrade(&pipe));
        pipe
    }

    /// Makes a connection and hands its far end to the listener.
    async fn open(self: &Arc<Self>, from: &str, address: &str) -> Result<Stream> {
        let to = host_of(address);
        loop {
            let round_trip = self.arrival().since(self.env.now()) * 2;
            self.env.sleep(round_trip).await;
            if !self.is_cut(from, to) && !self.is_cut(to, from) {
                break;
            }
            self.env.sleep(ATTEMPT_INTERVAL).await;
        }
        let nobody = || Error::new(Code::Unreachable, format!("nobody listens at {address}"));
        let listener = self.state.lock().listeners.get(address).cloned().ok_or_else(nobody)?;
        let (there, back) = (self.pipe(from, to), self.pipe(to, from));
        let far = Stream {
            reader: Box::new(PipeReader::new(Arc::clone(&there))),
            writer: Box::new(PipeWriter::new(Arc::clone(&back))),
            address: from.to_owned(),
        };
        listener.send(far).await.map_err(|_| nobody())?;
        Ok(Stream {
            reader: Box::new(PipeReader::new(back)),
            writer: Box::new(PipeWriter::new(there)),
            address: address.to_owned(),
        })
    }

    /// Takes an address; port 0 takes a free one.
    fn listen(&self, address: &str) -> Result<(String, mpsc::Receiver<Stream>)> {
        let mut state = self.state.lock();
        let address = match address.strip_suffix(":0") {
            Some(host) => {
                state.next += 1;
                format!("{host}:{}", 10_000 + state.next)
            }
            None => address.to_owned(),
        };
        if state.listeners.get(&address).is_some_and(|listener| !listener.is_closed()) {
            return Err(Error::new(Code::Busy, format!("{address} is in use")));
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        state.listeners.insert(address.clone(), sender);
        Ok((address, receiver))
    }
}

/// The transport of one simulated host.
pub struct SimulatedTransport {
    world: Arc<World>,
    env: Env,
    name: String,
    identity: Mutex<Identity>,
    terms: Terms,
}

impl SimulatedTransport {
    /// Connections from now on prove themselves with another identity.
    pub fn set_identity(&self, identity: Identity) {
        *self.identity.lock() = identity;
    }
}

#[async_trait]
impl Transport for SimulatedTransport {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn register(&self, _memory: &Buffer) -> Result<Registration> {
        Ok(Registration::none())
    }

    async fn connect(&self, address: &str, deadline: Deadline) -> Result<Connection> {
        let identity = self.identity.lock().clone();
        let introduction =
            Introduction { identity, terms: self.terms, purpose: Purpose::Data, expected: None };
        let env = &self.env;
        let opened = async {
            let stream = self.world.open(&self.name, address).await?;
            FrameLink::open(stream, introduction, env).await
        };
        let link = env.until(deadline, &format!("connection to {address}"), opened).await??;
        Ok(Connection::new(Arc::new(link)))
    }

    async fn serve(
        &self,
        options: ServerOptions,
        authority: Arc<dyn Authority>,
        handler: Arc<dyn Handler>,
    ) -> Result<Box<dyn Serving>> {
        if host_of(&options.address) != self.name {
            let message = format!("{} is not an address of host {}", options.address, self.name);
            return Err(Error::new(Code::Local, message));
        }
        let (address, mut streams) = self.world.listen(&options.address)?;
        let env = self.env.clone();
        let counters = Arc::new(Counters::default());
        let budgets = Budgets::new(options.in_flight_bytes);
        let handler = Some(handler);
        let house = House { options, authority, handler, env: env.clone(), counters, budgets };
        let gate = Gate::new(house, None);
        let arrivals = Arc::clone(&gate);
        let acceptor = env.spawn("net acceptor", async move {
            while let Some(stream) = streams.recv().await {
                arrivals.arrive(stream);
            }
        });
        Ok(Box::new(Listening::new(address, gate, acceptor, None, env)))
    }
}
