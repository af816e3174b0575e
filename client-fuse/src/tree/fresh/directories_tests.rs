//! Goal: what a mount says of a directory by itself is true, as far as it can know. Method: a directory at a server
//! that this mount and others change, with every request, answer and message of the change stream under way for a
//! while and, among each other, in any order. A failing seed is printed.

use super::{Ended, Freshness, Mark, Names};
use fastrand::Rng;
use kiln_types::{Attr, FileKind, InodeId, Monotonic, Timestamp, TruncateEpoch};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

const D: InodeId = InodeId(9);
const NOW: Monotonic = Monotonic(0);
const NAMES: u8 = 8;

#[test]
fn what_a_mount_says_of_a_directory_is_true() {
    let mut told = (0, 0);
    for seed in 0..3000 {
        let mut world = World::new(seed);
        for step in 0..200 {
            world.step(step % 40 < 20);
            let (names, attrs) = world.check(seed);
            told = (told.0 + names, told.1 + attrs);
        }
    }
    assert!(told.0 > 20_000 && told.1 > 5_000, "hardly anything was answered: {told:?}");
}

#[test]
fn a_directory_that_was_removed_here_is_seen_again_when_somebody_restored_it() {
    let truth = World::new(1).truth;
    let (there, gone) = (truth.attr(), Attr { links: 0, ..truth.attr() });
    let mut fresh = Freshness::new(Duration::from_secs(60));
    let before = fresh.mark();
    let begun = fresh.begin(D, None);
    fresh.end(D, begun, Ended::Changed);
    fresh.removed(&gone);
    for (sent, attr) in [(before, &there), (fresh.mark(), &gone)] {
        fresh.learn(sent, NOW, attr);
        assert_eq!(fresh.directory(D, NOW).map(|(_, attr)| attr), Some(gone.clone()));
    }
    fresh.learn(fresh.mark(), NOW, &there);
    assert_eq!(fresh.directory(D, NOW).map(|(_, attr)| attr), None, "it is asked for");
}

/// The directory as the server has it.
struct Truth {
    names: BTreeSet<u8>,
    directories: u32,
    mode: u32,
    mtime: i64,
    ctime: i64,
    clock: i64,
}

/// A change that this mount asked for.
struct Change {
    what: What,
    begun: Mark,
    made_at: Option<i64>,
    is_answered: bool,
}

#[derive(Clone, Copy)]
enum What {
    Make(u8),
    Remove(u8),
    /// A directory, in and out at once.
    MakeDirectory,
    RemoveDirectory,
    Mode(u32),
    Mtime(i64),
}

/// A question of this mount: for attributes, or for all names, which are looked at in two parts.
enum Question {
    Attr(Mark, Option<Attr>),
    List(Mark, u8, Names),
}

struct World {
    random: Rng,
    fresh: Freshness,
    truth: Truth,
    changes: Vec<Change>,
    questions: Vec<Question>,
    /// What others changed and this mount was not told yet; a name, or attributes.
    untold: VecDeque<Option<u8>>,
    /// A change whose answer was given up may still happen.
    given_up: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut fresh = Freshness::new(Duration::from_secs(10));
        fresh.set_connected(true);
        let truth = Truth {
            names: BTreeSet::new(),
            directories: 100,
            mode: 0,
            mtime: 0,
            ctime: 0,
            clock: 0,
        };
        let sent = fresh.mark();
        if seed.is_multiple_of(2) {
            fresh.all_names(sent, D, Names::default());
        }
        let (random, untold) = (Rng::with_seed(seed), VecDeque::new());
        let (changes, questions) = (Vec::new(), Vec::new());
        Self { random, fresh, truth, changes, questions, untold, given_up: false }
    }

    fn step(&mut self, is_busy: bool) {
        match self.random.u8(0..20) {
            0..4 if is_busy => self.begin(),
            0..4 => self.tell(),
            4..8 => self.happen(),
            8..12 => self.answer(),
            12..14 => self.ask(),
            14..18 => self.go_on(),
            18 if is_busy => self.other(),
            _ => self.tell(),
        }
        if self.random.u16(0..2000) == 0 {
            self.fresh.set_connected(false);
            self.untold.clear();
            self.fresh.set_connected(true);
        }
    }

    fn what(&mut self) -> What {
        let name = self.random.u8(0..NAMES);
        match self.random.u8(0..8) {
            0..3 => What::Make(name),
            3 => What::MakeDirectory,
            4 => What::Remove(name),
            5 => What::RemoveDirectory,
            6 => What::Mode(self.random.u32(..)),
            _ => What::Mtime(self.random.i64(0..1000)),
        }
    }

    fn begin(&mut self) {
        let what = self.what();
        let begun = match what {
            What::Make(name) => self.fresh.begin(D, Some(&[name])),
            What::Mode(_) | What::Mtime(_) => self.fresh.mark(),
            _ => self.fresh.begin(D, None),
        };
        self.changes.push(Change { what, begun, made_at: None, is_answered: false });
    }

    /// A change that is under way reaches the server.
    fn happen(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let change = self.random.usize(..self.changes.len());
        if self.changes[change].made_at.is_none() {
            let at = self.truth.apply(self.changes[change].what);
            self.changes[change].made_at = Some(at);
            if self.changes[change].is_answered {
                self.changes.remove(change);
            }
        }
    }

    fn answer(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let at = self.random.usize(..self.changes.len());
        let change = &mut self.changes[at];
        let ended = match (change.made_at, change.what) {
            _ if change.is_answered => return,
            (Some(_), What::Mode(_) | What::Mtime(_)) => {
                self.fresh.changed_here(Some(D));
                self.changes.remove(at);
                return;
            }
            (Some(time), What::MakeDirectory) => Ended::Directory(Timestamp(time), true),
            (Some(time), What::RemoveDirectory) => Ended::Directory(Timestamp(time), false),
            (Some(time), _) => Ended::Made(Timestamp(time)),
            (None, What::Mode(_) | What::Mtime(_)) => return,
            (None, _) if self.random.u8(0..40) == 0 => Ended::Open,
            (None, _) => return,
        };
        self.fresh.end(D, change.begun, ended);
        change.is_answered = true;
        self.given_up |= change.made_at.is_none();
        if change.made_at.is_some() {
            self.changes.remove(at);
        }
    }

    fn ask(&mut self) {
        let sent = self.fresh.mark();
        self.questions.push(match self.random.bool() {
            true => Question::Attr(sent, None),
            false => Question::List(sent, 0, Names::default()),
        });
    }

    fn go_on(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let at = self.random.usize(..self.questions.len());
        match &mut self.questions[at] {
            Question::Attr(_, answer @ None) => *answer = Some(self.truth.attr()),
            Question::Attr(sent, Some(attr)) => {
                self.fresh.learn(*sent, NOW, attr);
                self.questions.remove(at);
            }
            Question::List(_, from, names) if *from < NAMES => {
                let part = self.truth.names.range(*from..*from + NAMES / 2);
                part.for_each(|name| names.add(&[*name]));
                *from += NAMES / 2;
            }
            Question::List(sent, _, names) => {
                self.fresh.all_names(*sent, D, std::mem::take(names));
                self.questions.remove(at);
            }
        }
    }

    fn other(&mut self) {
        let what = self.what();
        self.truth.apply(what);
        self.untold.push_back(match what {
            What::Make(name) | What::Remove(name) => Some(name),
            _ => None,
        });
    }

    fn tell(&mut self) {
        match self.untold.pop_front() {
            Some(Some(name)) => self.fresh.name_changed(D, &[name]),
            Some(None) => self.fresh.change(D),
            None => {}
        }
    }

    /// How many questions about names, and about attributes, it answers; rightly.
    fn check(&mut self, seed: u64) -> (u64, u64) {
        let lacked = (0..NAMES).filter(|name| self.fresh.lacks(D, &[*name]));
        let mut count = 0;
        for name in lacked {
            let excused = self.untold.contains(&Some(name));
            assert!(excused || !self.truth.names.contains(&name), "seed {seed}: {name} is there");
            count += 1;
        }
        let is_quiet = self.untold.is_empty() && self.changes.is_empty() && !self.given_up;
        let Some((_, attr)) = self.fresh.directory(D, NOW).filter(|_| is_quiet) else {
            return (count, 0);
        };
        assert_eq!(attr, self.truth.attr(), "seed {seed}");
        (count, 1)
    }
}

impl Truth {
    fn apply(&mut self, what: What) -> i64 {
        self.clock += 10;
        self.ctime = self.clock;
        match what {
            What::Make(name) => drop(self.names.insert(name)),
            What::Remove(name) => drop(self.names.remove(&name)),
            What::MakeDirectory => self.directories += 1,
            What::RemoveDirectory => self.directories -= 1,
            What::Mode(mode) => self.mode = mode,
            What::Mtime(time) => self.mtime = time,
        }
        if !matches!(what, What::Mode(_) | What::Mtime(_)) {
            self.mtime = self.clock;
        }
        self.clock
    }

    fn attr(&self) -> Attr {
        Attr {
            inode: D,
            kind: FileKind::Directory,
            mode: self.mode,
            uid: 0,
            gid: 0,
            links: 2 + self.directories,
            length: 0,
            dense_end: 0,
            device: 0,
            atime: Timestamp(0),
            mtime: Timestamp(self.mtime),
            ctime: Timestamp(self.ctime),
            btime: Timestamp(0),
            epoch: TruncateEpoch(0),
            floors: Vec::new(),
            layout: None,
        }
    }
}
