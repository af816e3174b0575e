//! Several metadata servers over one PostgreSQL: they and it are killed while programs work on two mounts. No
//! program sees an error, nothing is lost, and nothing is done twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod model;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;
mod workers;

use cluster::TestCluster;
use cluster::mount::{Mount, possible};
use kiln_env::Env;
use rustix::process::Signal;
use server::Server;
use std::time::Duration;
use workers::Workers;

/// The metadata servers.
const SERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];
/// How long faults happen, unless KILN_SECONDS says otherwise.
const SECONDS: u64 = 50;
/// After this time everything is looked at, and work begins anew.
const ROUND: Duration = Duration::from_secs(150);

/// What happens while programs work.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// kill -9 of a metadata server.
    Kill,
    /// The same of one after the other, each while the one before it is still away.
    Rolling,
    /// The same of all of them at once.
    KillAll,
    /// A metadata server stands still, perhaps for longer than its lease and the turn to commit last.
    Pause,
    /// PostgreSQL ends its connections and restarts (`pg_ctl restart -m fast`).
    Restart,
    /// It restarts without an end in order (`-m immediate`), and has to recover.
    Immediate,
    /// All of its processes are killed.
    Crash,
}

const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::Rolling,
    Fault::KillAll,
    Fault::Pause,
    Fault::Restart,
    Fault::Immediate,
    Fault::Crash,
];

/// The cluster, what it stands on, and what decides.
struct Scene {
    cluster: TestCluster,
    postgres: Server,
    random: fastrand::Rng,
}

impl Scene {
    fn wait(&mut self, most: u64) {
        self.cluster.sleep(Duration::from_millis(self.random.u64(..most)));
    }

    fn inflict(&mut self, fault: Fault) {
        let one = self.random.usize(..SERVERS.len());
        let next = SERVERS[(one + 1) % SERVERS.len()];
        let one = SERVERS[one];
        match fault {
            Fault::Kill => {
                self.cluster.kill(one);
                self.wait(3000);
                self.cluster.restart(one);
            }
            Fault::Rolling => {
                self.cluster.kill(one);
                self.wait(2000);
                self.cluster.kill(next);
                self.cluster.restart(one);
                self.wait(2000);
                self.cluster.restart(next);
            }
            Fault::KillAll => {
                SERVERS.iter().for_each(|server| self.cluster.kill(server));
                self.wait(2000);
                SERVERS.iter().for_each(|server| self.cluster.restart(server));
            }
            Fault::Pause => {
                self.cluster.pause(one);
                self.wait(9000);
                self.cluster.resume(one);
            }
            Fault::Restart => self.restart(Some(Signal::INT)),
            Fault::Immediate => self.restart(Some(Signal::QUIT)),
            Fault::Crash => self.restart(None),
        }
    }

    fn restart(&mut self, signal: Option<Signal>) {
        match signal {
            Some(signal) => self.postgres.stop(signal),
            None => self.postgres.kill(),
        }
        self.wait(2000);
        self.postgres.run();
    }

    /// Programs work, faults happen; then the trees are as the programs know them.
    fn round(&mut self, number: u32, time: Duration) {
        let (mut one, mut other) = (self.cluster.mount(), self.cluster.mount());
        let name = format!("round-{number}");
        one.make_dir(&name);
        let mut workers = Workers::start([&one, &other].map(|mount| mount.path().join(&name)));
        let clock = Env::real();
        let end = clock.deadline_after(time);
        'round: loop {
            let mut faults = FAULTS;
            self.random.shuffle(&mut faults);
            for fault in faults {
                self.wait(3000);
                println!("{fault:?}");
                self.inflict(fault);
                if end.passed(clock.now()) || workers.any_failed() {
                    break 'round;
                }
            }
        }
        workers.finish(|| self.cluster.logs());
        workers.check();
        let again = |mount: &mut Mount| {
            mount.unmount();
            mount.mount_again();
        };
        [&mut one, &mut other].into_iter().for_each(again);
        workers.check();
        self.cluster.check();
        std::fs::remove_dir_all(other.path().join(&name)).unwrap();
        assert_eq!(std::fs::read_dir(one.path()).unwrap().count(), 0);
        [one, other].iter_mut().for_each(Mount::unmount);
    }
}

#[test]
fn metadata_servers_and_their_postgresql_die_and_programs_do_not_notice() {
    let Some(postgres) = Server::start() else { return };
    if !possible() || !cluster::program::installed(&["git", "sqlite3"]) {
        return;
    }
    let (number, seed) = (SERVERS.len() as u32, fastrand::u64(..));
    println!("the faults' seed: {seed}");
    let cluster = TestCluster::start_on_postgres(2, 2, number, postgres.url());
    let random = fastrand::Rng::with_seed(seed);
    let mut scene = Scene { cluster, postgres, random };
    let seconds = std::env::var("KILN_SECONDS").map(|text| text.parse().unwrap());
    let mut left = Duration::from_secs(seconds.unwrap_or(SECONDS));
    for number in 0.. {
        let time = left.min(ROUND);
        scene.round(number, time);
        left -= time;
        if left.is_zero() {
            break;
        }
    }
    scene.cluster.check();
}
