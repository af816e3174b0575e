//! The faults: which there are, how each is brought about, and how it ends.

use crate::disks::{FAULTY, ROTTING, SMALL};
use crate::faulty::Trouble;
use crate::namespaces::Host;
use crate::servers::Servers;
use kiln_types::{Error, Result, ServiceKind};
use rustix::process::Signal;
use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of one server, started again after a while.
    Kill(ServiceKind),
    /// kill -9 of all servers at once.
    KillAll,
    /// SIGSTOP for less than the lease.
    Pause(ServiceKind),
    /// SIGSTOP for longer than the lease.
    Halt(ServiceKind),
    /// Nothing reaches one server or leaves it.
    Partition(ServiceKind),
    /// Nothing reaches one storage server.
    Deaf,
    /// Nothing leaves one storage server.
    Mute,
    /// Two storage servers do not reach each other.
    Cut,
    /// A storage server and a client's host reach each other, and nobody else.
    Split,
    /// A client's host is cut off.
    ClientCut,
    /// A server loses a part of all packets.
    Loss(ServiceKind),
    /// A server's packets wait in a slow queue.
    Late,
    /// Another program takes all space beneath a disk.
    DiskFull,
    /// A disk answers nothing.
    DiskHangs,
    /// A disk answers late.
    DiskSlow,
    /// A disk fails some reads and writes, and all syncs.
    DiskFails,
    /// Bytes on a disk change.
    Rot,
}

const MGMTD: ServiceKind = ServiceKind::Mgmtd;
const META: ServiceKind = ServiceKind::Meta;
const STORAGE: ServiceKind = ServiceKind::Storage;

/// All kinds by name, and how often each is drawn beside the others.
pub const KINDS: [(&str, Kind, u32); 26] = [
    ("kill-storage", Kind::Kill(STORAGE), 6),
    ("kill-meta", Kind::Kill(META), 2),
    ("kill-mgmtd", Kind::Kill(MGMTD), 2),
    ("kill-all", Kind::KillAll, 1),
    ("pause-storage", Kind::Pause(STORAGE), 2),
    ("pause-meta", Kind::Pause(META), 1),
    ("pause-mgmtd", Kind::Pause(MGMTD), 1),
    ("halt-storage", Kind::Halt(STORAGE), 4),
    ("halt-meta", Kind::Halt(META), 1),
    ("halt-mgmtd", Kind::Halt(MGMTD), 2),
    ("partition-storage", Kind::Partition(STORAGE), 4),
    ("partition-meta", Kind::Partition(META), 1),
    ("partition-mgmtd", Kind::Partition(MGMTD), 1),
    ("deaf-storage", Kind::Deaf, 3),
    ("mute-storage", Kind::Mute, 3),
    ("cut", Kind::Cut, 3),
    ("split", Kind::Split, 3),
    ("client-cut", Kind::ClientCut, 1),
    ("loss-storage", Kind::Loss(STORAGE), 2),
    ("loss-mgmtd", Kind::Loss(MGMTD), 1),
    ("late", Kind::Late, 2),
    ("disk-full", Kind::DiskFull, 2),
    ("disk-hangs", Kind::DiskHangs, 3),
    ("disk-slow", Kind::DiskSlow, 2),
    ("disk-fails", Kind::DiskFails, 2),
    ("rot", Kind::Rot, 2),
];

impl Kind {
    /// The kind of this name.
    ///
    /// # Errors
    /// `Invalid`: says which there are.
    pub fn parse(name: &str) -> Result<Self> {
        let found = KINDS.iter().find(|(known, ..)| *known == name);
        found.map(|(_, kind, _)| *kind).ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|(name, ..)| *name).collect();
            Error::invalid(format!("no fault is called '{name}'"))
                .with_hint(format!("there are: {}", names.join(", ")))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("?", |(name, ..)| name)
    }

    /// How long it is to last.
    fn hold(self, random: &mut fastrand::Rng) -> Duration {
        let range = match self {
            Self::Pause(_) => 500..4000,
            Self::Halt(_) => 6000..15_000,
            Self::Rot => 100..1000,
            _ => 500..15_000,
        };
        Duration::from_millis(random.u64(range))
    }
}

/// One fault.
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) hold: Duration,
    number: u32,
    /// The servers that it concerns, by their places.
    victims: Vec<usize>,
    /// What is special about this one.
    how: u64,
}

impl Fault {
    /// Draws one that concerns none of the servers in `busy`; `None` when that did not work out.
    pub(crate) fn draw(
        kinds: &[Kind],
        number: u32,
        servers: &Servers,
        busy: &[usize],
        random: &mut fastrand::Rng,
    ) -> Option<Self> {
        let weight = |kind: &Kind| KINDS.iter().find(|known| known.1 == *kind).map_or(1, |k| k.2);
        let mut at = random.u32(..kinds.iter().map(weight).sum::<u32>());
        let kind = *kinds.iter().find(|kind| {
            let here = at < weight(kind);
            at = at.saturating_sub(weight(kind));
            here
        })?;
        let mut any = |of| random.choice(servers.of(of));
        let victims = match kind {
            Kind::Kill(of) | Kind::Pause(of) | Kind::Halt(of) => vec![any(of)?],
            Kind::Partition(of) | Kind::Loss(of) => vec![any(of)?],
            Kind::KillAll => (0..servers.servers.len()).collect(),
            Kind::Deaf | Kind::Mute | Kind::Split | Kind::Late => vec![any(STORAGE)?],
            Kind::Cut => vec![any(STORAGE)?, any(STORAGE)?],
            Kind::ClientCut => vec![],
            Kind::DiskFull => vec![servers.find(SMALL).ok()?],
            Kind::Rot => vec![servers.find(ROTTING).ok()?],
            Kind::DiskHangs | Kind::DiskSlow | Kind::DiskFails => vec![servers.find(FAULTY).ok()?],
        };
        let meets = victims.iter().any(|victim| busy.contains(victim));
        if meets || victims.len() == 2 && victims[0] == victims[1] {
            return None;
        }
        let (hold, how) = (kind.hold(random), random.u64(..));
        Some(Self { kind, hold, number, victims, how })
    }

    pub(crate) fn victims(&self) -> &[usize] {
        &self.victims
    }

    pub(crate) fn show(&self, servers: &Servers) -> String {
        let names: Vec<_> = match self.kind {
            Kind::KillAll => vec!["everybody"],
            Kind::ClientCut => vec![&self.client(servers).name],
            _ => self.victims.iter().map(|at| servers.name(*at)).collect(),
        };
        let with = match self.kind {
            Kind::Split => format!(" with {}", self.client(servers).name),
            _ => String::new(),
        };
        format!("{} of {}{with} for {:.1?}", self.kind.name(), names.join(" and "), self.hold)
    }

    fn client<'a>(&self, servers: &'a Servers) -> &'a Host {
        &servers.access.hosts[self.how as usize % servers.access.hosts.len()]
    }

    fn filter(&self) -> String {
        format!("fault{}", self.number)
    }

    /// The rules that bring it about, where it is one of the network.
    fn rules(&self, servers: &Servers) -> Vec<(Host, Vec<String>)> {
        let rules = |rules: &[&str]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
        let host = |at: usize| servers.servers[at].host.clone();
        let both = rules(&["in drop", "out drop"]);
        match self.kind {
            Kind::Partition(_) => vec![(host(self.victims[0]), both)],
            Kind::ClientCut => vec![(self.client(servers).clone(), both)],
            Kind::Deaf => vec![(host(self.victims[0]), rules(&["in drop"]))],
            Kind::Mute => vec![(host(self.victims[0]), rules(&["out drop"]))],
            Kind::Cut => {
                let other = host(self.victims[1]).address;
                let pair =
                    [format!("in ip saddr {other} drop"), format!("out ip daddr {other} drop")];
                vec![(host(self.victims[0]), pair.to_vec())]
            }
            Kind::Split => {
                let (server, client) = (host(self.victims[0]), self.client(servers).clone());
                let except = |other: &Host| {
                    let other = other.address;
                    vec![
                        format!("in ip saddr != {other} drop"),
                        format!("out ip daddr != {other} drop"),
                    ]
                };
                let (one, two) = (except(&client), except(&server));
                vec![(server, one), (client, two)]
            }
            Kind::Loss(_) => {
                let percent = 1 + self.how % 30;
                let lose = |way: &str| format!("{way} numgen random mod 100 < {percent} drop");
                vec![(host(self.victims[0]), vec![lose("in"), lose("out")])]
            }
            _ => Vec::new(),
        }
    }

    /// Brings it about.
    pub(crate) fn begin(&self, servers: &mut Servers) -> Result<()> {
        for (host, rules) in self.rules(servers) {
            host.filter(&self.filter(), &rules)?;
        }
        match self.kind {
            Kind::Kill(_) | Kind::KillAll => self.victims.iter().for_each(|at| servers.kill(*at)),
            Kind::Pause(_) | Kind::Halt(_) => servers.signal(self.victims[0], Signal::STOP),
            Kind::Late => {
                let host = &servers.servers[self.victims[0]].host;
                host.limit(["1mbit", "5mbit", "20mbit"][self.how as usize % 3])?;
            }
            Kind::DiskFull => servers.disks.fill()?,
            Kind::DiskHangs => servers.disks.switch.set(Trouble::Hangs),
            Kind::DiskSlow => {
                let by = Duration::from_millis(20 + self.how % 480);
                servers.disks.switch.set(Trouble::Slow(by));
            }
            Kind::DiskFails => {
                servers.disks.switch.set(Trouble::Fails((1 + self.how % 50) as u8));
            }
            Kind::Rot => {
                let mut random = fastrand::Rng::with_seed(self.how);
                let hit = servers.disks.rot(1 + self.how as usize % 8, &mut random)?;
                tracing::info!("bytes changed at {hit:?}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes it back.
    pub(crate) fn end(&self, servers: &mut Servers) -> Result<()> {
        for (host, _) in self.rules(servers) {
            host.unfilter(&self.filter())?;
        }
        match self.kind {
            Kind::Kill(_) | Kind::KillAll => {
                self.victims.iter().for_each(|at| servers.release(*at))
            }
            Kind::Pause(_) | Kind::Halt(_) => servers.signal(self.victims[0], Signal::CONT),
            Kind::Late => servers.servers[self.victims[0]].host.unlimit()?,
            Kind::DiskFull => servers.disks.free()?,
            Kind::DiskHangs | Kind::DiskSlow => servers.disks.switch.set(Trouble::None),
            Kind::DiskFails => {
                servers.disks.switch.set(Trouble::None);
                // A store whose log could not be written stays away: an operator starts its server anew.
                servers.kill(self.victims[0]);
                servers.release(self.victims[0]);
            }
            _ => {}
        }
        Ok(())
    }
}
