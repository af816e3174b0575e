//! Goal: whatever the network does, a call ends by its deadline, an answer belongs to its call, a
//! request runs at most once, and once the network is well again calls come through. Method: hosts
//! that call each other through pools while seeds lose connections, cut one direction, and crash
//! and restart hosts.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use kiln_env::{Env, Executor, Task};
use kiln_memory::Buffer;
use kiln_net::{
    ConnectionPool, Handler, Identity, Peer, PoolOptions, Request, Response, ServerOptions,
    Serving, SimulatedNetwork, SimulatedOptions, Terms, Transport,
};
use kiln_types::{Code, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SERVERS: usize = 3;
const CALLERS: usize = 6;
const CALLS: u32 = 40;

/// Counts how often each request ran, by the number in its body.
#[derive(Default)]
struct Ledger {
    runs: Mutex<BTreeMap<u32, u32>>,
}

struct Counting {
    ledger: Arc<Ledger>,
    face: Arc<Face>,
}

#[async_trait::async_trait]
impl Handler for Counting {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        let number = u32::from_le_bytes(request.body[..4].try_into().unwrap());
        *self.ledger.runs.lock().entry(number).or_default() += 1;
        self.face.handle(peer, request).await
    }
}

struct World {
    env: Env,
    network: SimulatedNetwork,
    ledger: Arc<Ledger>,
    serving: Mutex<Vec<Option<Box<dyn Serving>>>>,
}

impl World {
    async fn start(&self, index: usize) {
        let name = format!("server{index}");
        let identity = Identity::Server(server_key(9));
        let transport = self.network.host(&name, identity, terms(index as u64 + 1));
        let face = Face::new(&self.env);
        let handler = Arc::new(Counting { ledger: Arc::clone(&self.ledger), face });
        let options = ServerOptions {
            address: format!("{name}:1"),
            terms: terms(index as u64 + 1),
            in_flight_bytes: 1 << 20,
            ..ServerOptions::default()
        };
        let serving = transport.serve(options, ring(), handler).await.unwrap();
        self.serving.lock()[index] = Some(serving);
    }

    fn crash(&self, index: usize) {
        self.network.crash(&format!("server{index}"));
        let crashed = self.serving.lock()[index].take();
        drop(crashed);
    }

    /// Does something bad every now and then, for a while; then makes all well again.
    async fn trouble(self: Arc<Self>) {
        for _ in 0..30 {
            self.env.sleep(Duration::from_millis(20 + self.env.random_below(200))).await;
            let server = self.env.random_below(SERVERS as u64) as usize;
            let name = format!("server{server}");
            let caller = format!("caller{}", self.env.random_below(CALLERS as u64));
            match self.env.random_below(5) {
                0 => self.network.cut(&name, &caller),
                1 => self.network.cut(&caller, &name),
                2 => self.network.break_between(&caller, &name),
                3 => self.network.heal(),
                _ => {
                    self.crash(server);
                    self.env.sleep(Duration::from_millis(self.env.random_below(300))).await;
                    self.start(server).await;
                }
            }
        }
        self.network.heal();
        self.network.set_options(SimulatedOptions::default());
    }

    async fn call(&self, pool: &ConnectionPool, number: u32) -> Result<()> {
        let server = self.env.random_below(SERVERS as u64);
        let length = (self.env.random_below(2) * self.env.random_below(100_000)) as usize;
        let sent = pattern(length);
        let patience = Duration::from_millis(100 + self.env.random_below(3000));
        let deadline = self.env.deadline_after(patience);
        let mut call = kiln_net::Call::new(ECHO, number.to_le_bytes().to_vec(), deadline);
        if length > 0 {
            call = call.with_payload(sent.clone()).with_receive(Buffer::zeroed(length));
        }
        let answer = pool.call(&format!("server{server}:1"), call).await;
        let late = self.env.now().since(deadline.0);
        assert!(late < Duration::from_millis(1), "call {number} ended {late:?} after its deadline");
        let answer = answer?;
        assert_eq!(answer.body, number.to_le_bytes());
        assert_eq!(answer.received.map_or(0, |buffer| crc(&buffer)), crc(&sent));
        Ok(())
    }

    /// One host that calls and calls again; says how many calls came through.
    fn caller(self: &Arc<Self>, index: usize) -> Task<u32> {
        let world = Arc::clone(self);
        let host = self.network.host(&format!("caller{index}"), client(), Terms::CURRENT);
        let pool = ConnectionPool::new(Arc::new(host), PoolOptions::default(), self.env.clone());
        self.env.spawn("caller", async move {
            let mut done = 0;
            for i in 0..CALLS {
                match world.call(&pool, index as u32 * CALLS + i).await {
                    Ok(()) => done += 1,
                    Err(error) => assert!(
                        [Code::DeadlineExceeded, Code::ConnectionLost, Code::Unreachable]
                            .contains(&error.code()),
                        "{error:?}"
                    ),
                }
                world.env.sleep(Duration::from_millis(world.env.random_below(150))).await;
            }
            done
        })
    }
}

fn crc(bytes: &[u8]) -> u32 {
    if bytes.is_empty() { 0 } else { kiln_types::crc32c(bytes) }
}

async fn run(env: Env) -> (u32, BTreeMap<u32, u32>) {
    let losses_per_million = (env.random_below(4) * 3000) as u32;
    let options = SimulatedOptions {
        losses_per_million,
        patience: Duration::from_secs(2),
        ..SimulatedOptions::default()
    };
    let network = SimulatedNetwork::new(options, env.clone());
    let serving = Mutex::new((0..SERVERS).map(|_| None).collect());
    let ledger = Arc::default();
    let world = Arc::new(World { env: env.clone(), network, ledger, serving });
    for server in 0..SERVERS {
        world.start(server).await;
    }
    let trouble = env.spawn("trouble", Arc::clone(&world).trouble());
    let callers: Vec<_> = (0..CALLERS).map(|caller| world.caller(caller)).collect();
    let mut done = 0;
    for caller in callers {
        done += caller.join().await.unwrap();
    }
    trouble.join().await.unwrap();
    // Longer than back-off and silence take: now every call comes through.
    env.sleep(Duration::from_secs(8)).await;
    let host = world.network.host("caller0", client(), Terms::CURRENT);
    let pool = ConnectionPool::new(Arc::new(host), PoolOptions::default(), env.clone());
    for i in 0..20 {
        world.call(&pool, 1_000_000 + i).await.unwrap();
    }
    let runs = world.ledger.runs.lock().clone();
    (done, runs)
}

#[test]
fn calls_end_in_time_and_run_at_most_once() {
    let mut done = 0;
    for seed in 0..100 {
        eprintln!("seed {seed}");
        let executor = Executor::new(seed);
        let (came_through, runs) = executor.run(run(executor.env()));
        assert!(runs.values().all(|count| *count == 1), "{runs:?}");
        assert!(runs.len() >= came_through as usize);
        done += came_through;
    }
    let all = 100 * CALLERS as u32 * CALLS;
    assert!(done > all / 3 && done < all, "{done} of {all} came through");
}

#[test]
fn a_seed_repeats_exactly() {
    let once = |seed| {
        let executor = Executor::new(seed);
        let outcome = executor.run(run(executor.env()));
        (outcome, executor.trace())
    };
    for seed in [1, 2, 3] {
        assert_eq!(once(seed), once(seed), "seed {seed}");
    }
}

/// A server that has no memory for a request for a long time is alive all the same.
#[test]
fn a_full_server_is_not_taken_for_a_dead_one() {
    let executor = Executor::new(11);
    let env = executor.env();
    executor.run(async move {
        let network = SimulatedNetwork::new(SimulatedOptions::default(), env.clone());
        let server = network.host("server", Identity::Server(server_key(9)), terms(1));
        let caller = network.host("caller", client(), Terms::CURRENT);
        let address = "server:1".into();
        let (server, client) = (Arc::new(server), Arc::new(caller));
        let rig = Rig { env: env.clone(), server, client, address };
        let options = ServerOptions { in_flight_bytes: 8192, ..rig.options() };
        let running = rig.serve(options).await;
        let (first, second) = (rig.connect(&running).await, rig.connect(&running).await);
        let patient = |operation, number| {
            let mut call = rig.call(operation, number);
            call.deadline = rig.within(120_000);
            call
        };
        let holders = [1, 2].map(|i| rig.start(&first, patient(HOLD, i)));
        rig.eventually("both are held", || Face::get(&running.face.held) == 2).await;
        let bytes = pattern(1 << 20);
        let waits = rig.start(&second, patient(SUM, 0).with_payload(bytes.clone()));
        env.sleep(Duration::from_secs(60)).await;
        assert!(!waits.is_finished());
        running.face.release(2);
        let answer = waits.join().await.unwrap().unwrap();
        assert_eq!(answer.body, kiln_types::crc32c(&bytes).to_le_bytes());
        for holder in holders {
            holder.join().await.unwrap().unwrap();
        }
    });
}

/// With one direction cut, the caller does not wait for its deadline: silence tells it.
#[test]
fn a_cut_in_either_direction_is_noticed() {
    for towards_server in [false, true] {
        let executor = Executor::new(7);
        let env = executor.env();
        executor.run(async move {
            let network = SimulatedNetwork::new(SimulatedOptions::default(), env.clone());
            let server = network.host("server", Identity::Server(server_key(9)), terms(1));
            let caller = network.host("caller", client(), Terms::CURRENT);
            let rig = Rig {
                env: env.clone(),
                server: Arc::new(server),
                client: Arc::new(caller),
                address: "server:1".into(),
            };
            let running = rig.serve(rig.options()).await;
            let connection = rig.connect(&running).await;
            connection.call(rig.call(ECHO, 1)).await.unwrap();
            match towards_server {
                true => network.cut("caller", "server"),
                false => network.cut("server", "caller"),
            }
            let start = env.now();
            let mut call = rig.call(ECHO, 2);
            call.deadline = rig.within(60_000);
            let error = connection.call(call).await.unwrap_err();
            assert_eq!(error.code(), Code::ConnectionLost);
            assert!(env.now().since(start) < Duration::from_secs(7));
            // The other side forgets the connection, too.
            env.sleep(Duration::from_secs(20)).await;
            let open = &running.serving.counters().open;
            assert_eq!(open.load(std::sync::atomic::Ordering::Relaxed), 0);
            network.heal();
            rig.connect(&running).await.call(rig.call(ECHO, 3)).await.unwrap();
        });
    }
}
