//! Leases under clocks that drift: a server has always stopped before the manager gives its role away.

use kiln_chain::lease::{LeaseTimes, ManagerLeases, Patience, ServerLease};
use kiln_types::{Monotonic, NodeId, RoutingVersion};
use std::time::Duration;

const NODE: NodeId = NodeId(101);

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

#[test]
fn a_lease_runs_from_when_the_answered_heartbeat_was_sent() {
    let mut lease = ServerLease::new(LeaseTimes::SERVER);
    assert!(!lease.may_serve(at(0), RoutingVersion(9)));
    lease.sent(1, at(1000));
    lease.registered(1, RoutingVersion(7), LeaseTimes::SERVER);
    assert!(lease.may_serve(at(4999), RoutingVersion(7)));
    assert!(!lease.may_serve(at(5000), RoutingVersion(7)), "fenced 4 s after it was sent");
    assert!(!lease.may_serve(at(2000), RoutingVersion(6)), "routing not taken up");
    lease.sent(2, at(2000));
    lease.sent(3, at(3000));
    lease.answered(3);
    lease.answered(2);
    assert_eq!(lease.fenced_at(), at(7000));
    lease.answered(99);
    assert_eq!(lease.fenced_at(), at(7000));
    lease.sent(4, at(4000));
    lease.stop();
    lease.answered(4);
    assert!(!lease.may_serve(at(4001), RoutingVersion(7)));
}

#[test]
fn heartbeats_without_answers_are_bounded() {
    let mut lease = ServerLease::new(LeaseTimes::SERVER);
    (0..1000).for_each(|sequence| lease.sent(sequence, at(sequence)));
    lease.answered(3);
    assert_eq!(lease.fenced_at(), at(0), "forgotten long ago");
    lease.answered(999);
    assert_eq!(lease.fenced_at(), at(4999));
}

#[test]
fn a_manager_waits_after_its_start_and_after_a_stall() {
    let mut leases = ManagerLeases::new(Patience::default(), at(100_000), [NODE, NodeId(102)]);
    let mut dead = Vec::new();
    for time in (100_000..120_000).step_by(100) {
        if time == 100_500 {
            leases.heard(NODE, at(time));
        }
        for node in leases.tick(at(time)) {
            dead.push((node, time));
            leases.forget(node);
        }
    }
    assert_eq!(dead, [(NODE, 105_500), (NodeId(102), 115_000)]);

    leases.heard(NODE, at(120_000));
    assert_eq!(leases.tick(at(200_000)), [], "it was the manager that stood still");
    assert!(leases.holds(NODE, at(204_999)));
    for time in (200_100..205_000).step_by(100) {
        assert_eq!(leases.tick(at(time)), []);
    }
    assert_eq!(leases.tick(at(205_000)), [NODE]);
}

/// A clock that began at some point and runs at some rate of real time.
struct Clock {
    start: f64,
    rate: f64,
}

impl Clock {
    fn drawn(random: &mut fastrand::Rng) -> Self {
        Self { start: random.f64() * 1e12, rate: 0.95 + 0.1 * random.f64() }
    }

    fn read(&self, real: f64) -> Monotonic {
        Monotonic((self.start + real * self.rate) as u64)
    }
}

/// A server and a manager over a network that delays and loses; the manager restarts and stalls.
struct World {
    random: fastrand::Rng,
    real: f64,
    server_clock: Clock,
    manager_clock: Clock,
    lease: ServerLease,
    manager: Option<ManagerLeases>,
    alive: bool,
    sequence: u64,
    /// (when it arrives, sequence) on the way to the manager and back.
    up: Vec<(f64, u64)>,
    down: Vec<(f64, u64)>,
    /// Until when nothing comes through from the server, and to it.
    cut: [f64; 2],
    deaths: u32,
    served: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (server_clock, manager_clock) = (Clock::drawn(&mut random), Clock::drawn(&mut random));
        let manager = ManagerLeases::new(Patience::default(), manager_clock.read(0.0), [NODE]);
        Self {
            random,
            real: 0.0,
            server_clock,
            manager_clock,
            lease: ServerLease::new(LeaseTimes::SERVER),
            manager: Some(manager),
            alive: true,
            sequence: 0,
            up: Vec::new(),
            down: Vec::new(),
            cut: [0.0; 2],
            deaths: 0,
            served: 0,
        }
    }

    fn arrival(&mut self, direction: usize) -> Option<f64> {
        let delay = if self.random.u8(..10) == 0 { 5e9 } else { 3e7 };
        let through = self.real >= self.cut[direction] && self.random.u8(..12) > 0;
        through.then(|| self.real + self.random.f64() * delay)
    }

    /// Runs until `until` with steps of about 50 ms, heartbeats about each 0.5 s.
    fn run(&mut self, seed: u64, until: f64) {
        while self.real < until {
            self.real += self.random.f64() * 1e8;
            if self.random.u8(..10) == 0 {
                self.send();
            }
            self.deliver();
            match self.random.u16(..2000) {
                0 => self.restart_manager(),
                1 => self.real += self.random.f64() * 1e10,
                2..=9 => {
                    let direction = self.random.usize(..2);
                    self.cut[direction] = self.real + self.random.f64() * 1.5e10;
                }
                _ => {}
            }
            self.served += u32::from(self.may_serve());
            self.tick(seed);
        }
    }

    fn may_serve(&self) -> bool {
        self.lease.may_serve(self.server_clock.read(self.real), RoutingVersion(0))
    }

    fn send(&mut self) {
        self.sequence += 1;
        self.lease.sent(self.sequence, self.server_clock.read(self.real));
        if let Some(arrival) = self.arrival(0) {
            self.up.push((arrival, self.sequence));
        }
    }

    fn deliver(&mut self) {
        let real = self.real;
        let arrived: Vec<_> = self.up.extract_if(.., |(arrival, _)| *arrival <= real).collect();
        for (_, sequence) in arrived {
            let Some(manager) = &mut self.manager else { continue };
            manager.heard(NODE, self.manager_clock.read(real));
            self.alive = true;
            if let Some(arrival) = self.arrival(1) {
                self.down.push((arrival, sequence));
            }
        }
        for (_, sequence) in self.down.extract_if(.., |(arrival, _)| *arrival <= real) {
            self.lease.answered(sequence);
        }
    }

    /// On another host, with another clock; it takes over at once.
    fn restart_manager(&mut self) {
        self.manager_clock = Clock::drawn(&mut self.random);
        let now = self.manager_clock.read(self.real);
        let alive = self.alive.then_some(NODE);
        let startup = Duration::ZERO;
        let patience = Patience { startup, ..Patience::default() };
        self.manager = Some(ManagerLeases::new(patience, now, alive));
    }

    fn tick(&mut self, seed: u64) {
        let Some(manager) = &mut self.manager else { return };
        if !manager.tick(self.manager_clock.read(self.real)).is_empty() {
            manager.forget(NODE);
            self.alive = false;
            self.deaths += 1;
            assert!(!self.may_serve(), "seed {seed}: declared dead while it serves");
        }
    }
}

#[test]
fn nobody_is_declared_dead_while_it_serves() {
    let (mut deaths, mut served) = (0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.run(seed, 2e11);
        deaths += world.deaths;
        served += world.served;
    }
    assert!(deaths > 200 && served > 100_000, "{deaths} {served}");
}

#[test]
fn the_margin_is_a_ninth() {
    let (fence, lease) = (LeaseTimes::SERVER.fence().as_secs_f64(), 5.0);
    let safe = |drift: f64| fence / (1.0 - drift) <= lease / (1.0 + drift);
    assert!(safe(0.111) && !safe(0.112));
    assert!(LeaseTimes::SERVER.heartbeat * 4 < LeaseTimes::SERVER.fence());
}
