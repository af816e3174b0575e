//! What a seed stands for.

use std::fmt;
use std::time::Duration;

/// The faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A storage server's process dies; its disks keep what was written.
    KillServer,
    /// A storage server's machine loses its power: unsynced bytes are lost or torn.
    PowerLoss,
    /// Several machines lose their power at once.
    PowerLossOfSeveral,
    /// A storage server is stopped in order, and started again.
    StopServer,
    /// A manager's process dies.
    KillManager,
    /// All managers die at once.
    KillManagers,
    /// A manager is stopped in order, and started again: it leaves its seat.
    StopManager,
    /// A manager does not reach the store that it shares with others.
    PartFromStore,
    /// The primary manager does not reach the store, and another one takes the seat; one server and some
    /// clients reach only the one before.
    Rival,
    /// A client dies, and another one takes its place.
    KillClient,
    /// Two hosts cannot reach each other.
    Part,
    /// One host does not reach another one, which reaches it.
    PartOneWay,
    /// The network falls into two halves.
    Split,
    /// A storage server reaches nobody but a manager, or only the others.
    Isolate,
    /// A storage server and some clients, which reach each other, do not reach the managers, or do not
    /// hear them, for longer than a lease; meanwhile that server is cut off from the others for a while.
    Strand,
    /// A storage server's disk fails some reads, and the server and some clients do not hear what follows,
    /// although the managers hear it.
    Disown,
    /// The head of a chain goes on without the managers and the other servers, until another one is the head.
    /// Then what it could not pass on comes late; or it is back while the next head cannot pass anything on
    /// either.
    Depose,
    /// A client hears no storage server, while they hear it.
    Deafen,
    /// The storage servers die one after the other, each for longer than a lease, so that those that were
    /// filled become heads; some client is deaf meanwhile.
    Roll,
    /// A storage server dies for longer than a lease; while it is filled its disk has no room or is slow, and
    /// connections break.
    Hinder,
    /// A storage server and a manager cannot reach each other.
    PartFromManager,
    /// A process stands still for a while, and goes on.
    Halt,
    /// Connections break, with what is on its way.
    Break,
    /// Messages take long, and some break their connection.
    BadNetwork,
    /// A disk is slow.
    SlowDisk,
    /// A disk answers nothing, for longer than a lease.
    HungDisk,
    /// A disk has no room for anything more for a while.
    FullDisk,
    /// Bits flip on a disk. Only in runs with one server that rots.
    FlipBits,
    /// A disk's next operations fail.
    DiskError,
    /// A machine's clocks get another rate.
    Drift,
    /// A machine's wall clock jumps.
    JumpWall,
}

impl Fault {
    /// All of them, and how often they come beside each other.
    const ALL: [(Self, u32); 31] = [
        (Self::KillServer, 10),
        (Self::PowerLoss, 10),
        (Self::PowerLossOfSeveral, 4),
        (Self::StopServer, 3),
        (Self::KillManager, 5),
        (Self::KillManagers, 2),
        (Self::StopManager, 3),
        (Self::PartFromStore, 3),
        (Self::Rival, 20),
        (Self::KillClient, 3),
        (Self::Part, 5),
        (Self::PartOneWay, 5),
        (Self::Isolate, 4),
        (Self::Strand, 40),
        (Self::Disown, 30),
        (Self::Depose, 50),
        (Self::Deafen, 5),
        (Self::Roll, 20),
        (Self::Hinder, 12),
        (Self::Split, 5),
        (Self::PartFromManager, 5),
        (Self::Halt, 5),
        (Self::Break, 6),
        (Self::BadNetwork, 4),
        (Self::SlowDisk, 3),
        (Self::HungDisk, 3),
        (Self::FullDisk, 3),
        (Self::DiskError, 3),
        (Self::FlipBits, 20),
        (Self::Drift, 3),
        (Self::JumpWall, 3),
    ];

    /// Whether it disturbs much, for long: one of these comes after the other, with a pause.
    pub(crate) fn is_great(self) -> bool {
        let several = [Self::PowerLossOfSeveral, Self::KillManagers, Self::Rival];
        let long =
            [Self::Strand, Self::Depose, Self::Roll, Self::Hinder, Self::HungDisk, Self::Split];
        several.contains(&self) || long.contains(&self)
    }

    /// What may also happen where a server rots: nothing that takes the replicas of others away, of
    /// which one is needed whole.
    const SPARING: [Self; 16] = [
        Self::FlipBits,
        Self::KillServer,
        Self::PowerLoss,
        Self::StopServer,
        Self::KillManager,
        Self::KillManagers,
        Self::StopManager,
        Self::KillClient,
        Self::Deafen,
        Self::Break,
        Self::BadNetwork,
        Self::SlowDisk,
        Self::HungDisk,
        Self::DiskError,
        Self::Drift,
        Self::JumpWall,
    ];
}

/// The options of a run; all follow from the seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// What decides everything.
    pub seed: u64,
    /// Managers.
    pub managers: usize,
    /// Storage servers.
    pub servers: usize,
    /// Disks of each.
    pub disks: usize,
    /// Targets on each disk.
    pub targets_per_disk: u32,
    /// Chunks that are used.
    pub chunks: usize,
    /// Clients.
    pub clients: usize,
    /// Operations that a client has under way at a time.
    pub width: usize,
    /// Operations of all clients together.
    pub operations: usize,
    /// Of a hundred operations, how many are reads.
    pub reads: u32,
    /// The average pause of a client between two operations.
    pub think: Duration,
    /// The server, by its place, whose disks rot; what harms one server harms that one then.
    pub rotten: Option<usize>,
    /// Faults with their weights; none: a quiet run.
    pub faults: Vec<(Fault, u32)>,
    /// The average time between two faults.
    pub fault_every: Duration,
    /// How often what is broken stays so for longer than a lease, of a hundred.
    pub long_outages: u32,
    /// Commits of the manager's store conflict or lose their answer.
    pub kv_faults: bool,
    /// How wrong clocks are at most, in millionths.
    pub drift_ppm: i64,
    /// Defects that are planted.
    pub plants: Vec<String>,
}

impl Options {
    /// The options of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x6b69_6c6e_2d73_696d);
        let rots = random.u32(..8) == 0;
        let managers = [1, 2, 2, 3][random.usize(..4)];
        let faults = faults(&mut random, rots, managers);
        let mut pick = |choices: &[u64]| choices[random.usize(..choices.len())];
        let (clients, width) = (pick(&[2, 3, 4]), pick(&[2, 3, 4]));
        let operations = 1000 + pick(&[0, 100, 500]);
        // About how long it shall take, in milliseconds, and with how many faults.
        let length = pick(&[50, 70, 100]) * 1000;
        let think = length * clients * width / operations;
        let fault_every = length / pick(&[10, 25, 60]);
        Self {
            seed,
            managers,
            servers: pick(&[3, 3, 3, 3, 4, 5]) as usize,
            rotten: rots.then(|| pick(&[0, 1, 2]) as usize),
            disks: pick(&[1, 1, 1, 2]) as usize,
            targets_per_disk: 3,
            chunks: pick(&[1, 2, 3, 4, 6, 12, 24]) as usize,
            clients: clients as usize,
            width: width as usize,
            operations: operations as usize,
            reads: pick(&[20, 40, 60]) as u32,
            think: Duration::from_millis(think),
            faults,
            fault_every: Duration::from_millis(fault_every),
            long_outages: pick(&[20, 40, 70]) as u32,
            kv_faults: pick(&[0, 0, 1]) == 1,
            drift_ppm: pick(&[0, 100, 50_000, 100_000]) as i64,
            plants: Vec::new(),
        }
    }
}

/// The weight of what comes often.
const OFTEN: u32 = 100;

/// Some of the faults; two or three of them come often, so that each is met among few others.
fn faults(random: &mut fastrand::Rng, rots: bool, managers: usize) -> Vec<(Fault, u32)> {
    let share = random.u32(10..80);
    let fits = |fault: Fault| match fault {
        _ if rots => Fault::SPARING.contains(&fault),
        Fault::FlipBits => false,
        // Of a store of its own a manager is a part.
        Fault::Rival | Fault::PartFromStore => managers > 1,
        _ => true,
    };
    let all: Vec<_> = Fault::ALL.into_iter().filter(|(fault, _)| fits(*fault)).collect();
    let mut faults = Vec::new();
    for (fault, weight) in &all {
        if *fault == Fault::FlipBits || random.u32(..100) < share {
            faults.push((*fault, *weight));
        }
    }
    let sum: u32 = all.iter().map(|(_, weight)| weight).sum();
    for _ in 0..random.u32(2..4) {
        let mut at = random.u32(..sum);
        let found = all.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.wrapping_sub(*weight);
            found
        });
        faults.extend(found.map(|(fault, _)| (*fault, OFTEN)));
    }
    faults
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, servers, disks, chunks, clients, width, operations, reads, .. } = self;
        write!(f, "seed {seed}: {} managers, {servers} servers with ", self.managers)?;
        write!(f, "{disks} disks, {chunks} chunks, ")?;
        write!(f, "{clients} clients with {width} operations each, {operations} operations, ")?;
        write!(f, "{reads} % reads, think {:?}, ", self.think)?;
        write!(f, "a fault every {:?}, {} % long, ", self.fault_every, self.long_outages)?;
        write!(f, "clocks off by {} ppm", self.drift_ppm)?;
        if self.kv_faults {
            f.write_str(", kv faults")?;
        }
        let names: Vec<_> = self.faults.iter().map(|(fault, _)| format!("{fault:?}")).collect();
        write!(f, "; faults: {}", names.join(" "))?;
        if !self.plants.is_empty() {
            write!(f, "; planted: {}", self.plants.join(", "))?;
        }
        Ok(())
    }
}
