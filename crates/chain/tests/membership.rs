//! The transition of public states: every small chain, and random histories against a model of who
//! holds which acknowledged writes.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::membership::{add, advance, changes, may_leave, recover, remove, validate};
use kiln_types::{Chain, ChainId, ChainVersion, LocalState, Member, PublicState, TargetId};

const STATES: [PublicState; 5] = [
    PublicState::Serving,
    PublicState::LastServing,
    PublicState::Syncing,
    PublicState::Waiting,
    PublicState::Offline,
];
const LOCALS: [LocalState; 3] = [LocalState::UpToDate, LocalState::Online, LocalState::Offline];

fn chain(states: &[PublicState]) -> Chain {
    let member =
        |(i, state): (usize, &PublicState)| Member { target: TargetId(i as u64), state: *state };
    Chain {
        id: ChainId(1),
        version: ChainVersion(1),
        members: states.iter().enumerate().map(member).collect(),
        min_serving: 1,
        replicas: states.len() as u32,
    }
}

/// Every sequence of `length` items.
fn sequences<T: Copy>(items: &[T], length: usize) -> Vec<Vec<T>> {
    (0..length).fold(vec![vec![]], |shorter, _| {
        let longer = |s: Vec<T>| {
            items.iter().map(move |item| [s.as_slice(), &[*item]].concat()).collect::<Vec<_>>()
        };
        shorter.into_iter().flat_map(longer).collect()
    })
}

#[test]
fn every_small_chain_keeps_the_rules() {
    let mut seen = 0;
    for length in 1..=4 {
        for states in sequences(&STATES, length) {
            let old = chain(&states);
            if validate(&old).is_err() {
                continue;
            }
            for locals in sequences(&LOCALS, length) {
                seen += 1;
                check_step(&old, &locals);
            }
        }
    }
    assert!(seen > 2_000, "{seen}");
}

fn check_step(old: &Chain, locals: &[LocalState]) {
    let local = |target: TargetId| locals[target.0 as usize];
    let new = advance(old, local);
    validate(&new).unwrap();
    let changed = new.members != old.members;
    assert_eq!(new.version.0, old.version.0 + u64::from(changed));
    assert_eq!(advance(&new, local), new, "settles at once: {old:?} {locals:?}");
    for change in changes(old, &new) {
        let alive = local(change.target).is_alive();
        match change.to {
            PublicState::Serving => assert!(alive && change.from < PublicState::Waiting),
            PublicState::LastServing => assert!(!alive && change.from == PublicState::Serving),
            PublicState::Syncing => assert!(alive),
            PublicState::Waiting => assert!(alive && change.from > PublicState::LastServing),
            PublicState::Offline => assert!(!alive || change.from == PublicState::LastServing),
        }
    }
    for member in &old.members {
        let kept = member.state == PublicState::Serving && local(member.target).is_alive();
        assert!(!kept || new.state_of(member.target) == Some(PublicState::Serving));
    }
}

#[test]
fn the_last_one_that_served_is_waited_for() {
    let local = |alive: &'static [u64]| {
        move |target: TargetId| {
            if alive.contains(&target.0) { LocalState::Online } else { LocalState::Offline }
        }
    };
    let chain = chain(&[PublicState::Serving; 3]);
    let chain = advance(&chain, local(&[1, 2]));
    let chain = advance(&chain, local(&[1]));
    assert_eq!((chain.head(), chain.tail()), (Some(TargetId(1)), Some(TargetId(1))));
    let chain = advance(&chain, local(&[]));
    assert_eq!(chain.state_of(TargetId(1)), Some(PublicState::LastServing));
    let chain = advance(&chain, local(&[0, 2]));
    assert_eq!(chain.head(), None);
    let chain = advance(&chain, local(&[0, 1, 2]));
    assert_eq!(chain.head(), Some(TargetId(1)));
    assert_eq!(chain.members[1].state, PublicState::Syncing);
    assert_eq!(chain.members[2].state, PublicState::Waiting);
}

#[test]
fn members_come_and_go_without_a_chain_losing_what_it_has() {
    for length in 1..=4 {
        for states in sequences(&STATES, length) {
            let old = chain(&states);
            if validate(&old).is_err() {
                continue;
            }
            let (new, first) = (TargetId(9), TargetId(0));
            let more = add(&old, new).unwrap();
            validate(&more).unwrap();
            assert_eq!((more.version.0, more.state_of(new)), (2, Some(PublicState::Offline)));
            assert_eq!((more.head(), more.tail()), (old.head(), old.tail()));
            assert!(add(&old, first).is_err() && remove(&old, new).is_err());
            for member in &old.members {
                let serves = old.serving().any(|target| target != member.target);
                assert_eq!(may_leave(&old, member.target), serves);
                match remove(&old, member.target) {
                    Ok(fewer) => {
                        validate(&fewer).unwrap();
                        assert_eq!(
                            fewer.serving().collect::<Vec<_>>(),
                            old.serving().collect::<Vec<_>>()
                        );
                        assert!(member.state > PublicState::Syncing && fewer.head().is_some());
                    }
                    Err(_) => assert!(member.state <= PublicState::Syncing || old.head().is_none()),
                }
                for locals in sequences(&LOCALS, length) {
                    let local = |target: TargetId| locals[target.0 as usize];
                    let Ok(next) = recover(&old, member.target, local) else { continue };
                    validate(&next).unwrap();
                    assert_eq!(old.head(), None, "nobody serves");
                    assert_eq!(next.head(), Some(member.target));
                    assert!(
                        local(member.target).is_alive() && member.state > PublicState::LastServing
                    );
                    assert!(!local(old.members[0].target).is_alive(), "the last one is not there");
                }
            }
        }
    }
}

/// One replica in the model: what it holds, and what it believes.
struct Replica {
    up: bool,
    /// Its lease has ended by its own clock: it serves nothing.
    fenced: bool,
    known: Chain,
    local: LocalState,
    writes: u128,
}

struct World {
    chain: Chain,
    /// The manager's view.
    locals: Vec<LocalState>,
    dead: Vec<bool>,
    replicas: Vec<Replica>,
    acknowledged: u128,
    next_write: u32,
}

impl World {
    fn new(count: usize) -> Self {
        let chain = chain(&vec![PublicState::Serving; count]);
        let replica = |_| Replica {
            up: true,
            fenced: false,
            known: chain.clone(),
            local: LocalState::UpToDate,
            writes: 0,
        };
        Self {
            locals: vec![LocalState::UpToDate; count],
            dead: vec![false; count],
            replicas: (0..count).map(replica).collect(),
            acknowledged: 0,
            next_write: 0,
            chain,
        }
    }

    fn advance(&mut self) {
        let locals = &self.locals;
        self.chain = advance(&self.chain, |target| locals[target.0 as usize]);
    }

    fn believes(&self, at: usize) -> Option<PublicState> {
        self.replicas[at].known.state_of(TargetId(at as u64))
    }

    fn serves(&self, at: usize) -> bool {
        let replica = &self.replicas[at];
        replica.up && !replica.fenced && self.believes(at) == Some(PublicState::Serving)
    }

    fn adopt(&mut self, at: usize) {
        let before = self.believes(at);
        self.replicas[at].known = self.chain.clone();
        let now = self.believes(at);
        self.replicas[at].local = match (before, now) {
            (_, Some(PublicState::Serving)) => LocalState::UpToDate,
            (Some(PublicState::Syncing), Some(PublicState::Syncing)) => self.replicas[at].local,
            _ => LocalState::Online,
        };
    }

    /// The head of its own view sends a write along it; it is lost on the way at random.
    fn write(&mut self, at: usize, random: &mut fastrand::Rng) {
        let target = TargetId(at as u64);
        let view = self.replicas[at].known.clone();
        if !self.serves(at) || view.head() != Some(target) {
            return;
        }
        let bit = 1u128 << self.next_write;
        self.next_write = (self.next_write + 1).min(127);
        for member in view.members.iter().filter(|member| member.state.takes_writes()) {
            let next = &mut self.replicas[member.target.0 as usize];
            let takes = next.up && !next.fenced && next.known.version == view.version;
            if !takes || random.u8(..8) == 0 {
                return;
            }
            next.writes |= bit;
        }
        if random.u8(..8) > 0 {
            self.acknowledged |= bit;
        }
    }

    fn fill(&mut self, at: usize) {
        let view = &self.replicas[at].known;
        let Some(source) = view.tail().map(|target| target.0 as usize) else { return };
        let same = self.replicas[source].known.version == view.version;
        let ready = self.replicas[at].up && !self.replicas[at].fenced && self.serves(source);
        if same && ready && self.believes(at) == Some(PublicState::Syncing) {
            self.replicas[at].writes = self.replicas[source].writes;
            self.replicas[at].local = LocalState::UpToDate;
        }
    }

    /// The replica reaches the manager: registers anew if it was declared dead, and reports.
    fn contact(&mut self, at: usize) {
        if !self.replicas[at].up {
            return;
        }
        if self.dead[at] {
            self.adopt(at);
        }
        self.dead[at] = false;
        self.replicas[at].fenced = false;
        if self.replicas[at].known.version == self.chain.version {
            self.locals[at] = self.replicas[at].local;
        }
        self.advance();
    }

    fn declare_dead(&mut self, at: usize) {
        if !self.replicas[at].up || self.replicas[at].fenced {
            self.dead[at] = true;
            self.locals[at] = LocalState::Offline;
            self.advance();
        }
    }

    fn restart(&mut self, at: usize) {
        if !self.replicas[at].up {
            self.replicas[at].up = true;
            self.adopt(at);
            if self.replicas[at].local == LocalState::UpToDate {
                let syncing = self.believes(at) == Some(PublicState::Syncing);
                self.replicas[at].local =
                    if syncing { LocalState::Online } else { LocalState::UpToDate };
            }
            self.contact(at);
        }
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let at = random.usize(..self.replicas.len());
        match random.u8(..16) {
            0..=4 => self.write(at, random),
            5..=6 if self.replicas[at].up => self.adopt(at),
            7..=8 => self.contact(at),
            9 => self.replicas[at].up = false,
            10..=11 => self.restart(at),
            12 => self.replicas[at].fenced = true,
            13 => self.declare_dead(at),
            14 => self.fill(at),
            // The disk fails and the server says so; it works again after a restart.
            15 if random.bool() => {
                self.replicas[at].up = false;
                self.declare_dead(at);
            }
            _ => {}
        }
    }

    fn check(&self, seed: u64) {
        validate(&self.chain).unwrap();
        for at in (0..self.replicas.len()).filter(|at| self.serves(*at)) {
            let missing = self.acknowledged & !self.replicas[at].writes;
            assert_eq!(missing, 0, "seed {seed}: target {at} serves without {missing:b}");
        }
    }
}

#[test]
fn whoever_serves_holds_every_acknowledged_write() {
    let (mut acknowledged, mut recovered) = (0, 0);
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(1 + seed as usize % 4);
        for _ in 0..300 {
            world.step(&mut random);
            world.check(seed);
        }
        acknowledged += world.acknowledged.count_ones();
        for round in 0..20 {
            for at in 0..world.replicas.len() {
                world.restart(at);
                world.adopt(at);
                world.fill(at);
                world.contact(at);
                world.check(seed);
            }
            if world.chain.serving().count() == world.replicas.len() && round > 0 {
                recovered += 1;
                break;
            }
        }
        assert!(world.chain.head().is_some(), "seed {seed}: {:?}", world.chain);
        let all = world.chain.serving().count() == world.replicas.len();
        assert!(all, "seed {seed}: {:?}", world.chain);
    }
    assert!(acknowledged > 20_000 && recovered > 1_500, "{acknowledged} {recovered}");
}
