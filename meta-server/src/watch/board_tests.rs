//! Clients with caches, over a server that reads, changes and tells in any order: a change that has been heard is in
//! no cache as it was before.

use super::Changes;
use super::board::{Ask, Board, Due, LEASE};
use kiln_types::{ClientId, InodeId, Monotonic};
use std::collections::BTreeMap;
use std::time::Duration;

const INODES: u64 = 4;
const CLIENTS: usize = 3;
/// As `kiln_client` has it.
const VALID: Duration = Duration::from_secs(3);

/// Something that can be shown: attributes of an inode, or the names in it.
type Thing = (InodeId, bool);

fn changes_of(thing: Thing) -> Changes {
    let mut changes = Changes::default();
    match thing {
        (inode, false) => changes.attr(inode),
        (inode, true) => changes.name(inode, b"n"),
    }
    changes
}

/// A read on its way: what was the last change before, what was seen, and whether the server is done with it.
struct Read {
    thing: Thing,
    before: u64,
    value: Option<u64>,
    is_done: bool,
    is_stale: bool,
}

#[derive(Default)]
struct Client {
    cache: BTreeMap<Thing, u64>,
    reads: Vec<Read>,
    watch: u64,
    seen: u64,
    only: bool,
    /// It has asked, at that time.
    asked: Option<Monotonic>,
    message: Option<(u64, Changes)>,
    valid_until: Option<Monotonic>,
}

impl Client {
    fn forget(&mut self, is_gone: impl Fn(&Thing) -> bool) {
        self.cache.retain(|thing, _| !is_gone(thing));
        self.reads.iter_mut().for_each(|read| read.is_stale |= is_gone(&read.thing));
    }

    fn begin(&mut self, watch: u64, only: bool) {
        self.forget(|_| true);
        (self.watch, self.only, self.seen) = (watch, only, 0);
        (self.asked, self.message, self.valid_until) = (None, None, None);
    }

    fn apply(&mut self, changes: &Changes) {
        self.forget(|(inode, is_name)| {
            changes.is_lost()
                || changes.inodes().any(|(changed, _)| !is_name && changed == *inode)
                || changes.names().any(|(parent, _)| *is_name && parent == *inode)
        });
    }
}

struct Made {
    by: usize,
    thing: Thing,
    value: u64,
    due: Option<Vec<Due>>,
}

struct Run {
    rng: fastrand::Rng,
    board: Board,
    now: Monotonic,
    values: BTreeMap<Thing, u64>,
    clients: Vec<Client>,
    made: Vec<Made>,
    watches: u64,
}

fn id(client: usize) -> ClientId {
    ClientId(client as u128)
}

impl Run {
    fn thing(&mut self) -> Thing {
        (InodeId(self.rng.u64(..INODES)), self.rng.bool())
    }

    fn step(&mut self) {
        let index = self.rng.usize(..CLIENTS);
        let thing = self.thing();
        match self.rng.u8(..16) {
            0..=1 => self.ask(index),
            2..=3 => self.hand(index),
            4..=5 => self.deliver(index),
            6 => {
                let before = self.board.last();
                let read = Read { thing, before, value: None, is_done: false, is_stale: false };
                self.clients[index].reads.push(read);
            }
            7..=9 => self.read(index),
            10 => {
                *self.values.entry(thing).or_default() += 1;
                let value = self.values[&thing];
                self.made.push(Made { by: index, thing, value, due: None });
            }
            11..=12 => self.tell(),
            13..=14 => self.answer(),
            _ => self.pass(index),
        }
    }

    fn ask(&mut self, index: usize) {
        let (now, client) = (self.now, &mut self.clients[index]);
        if client.asked.is_some() || client.message.is_some() {
            return;
        }
        let ask =
            Ask { watch: client.watch, seen: client.seen, only: client.only, confined: false };
        client.asked = Some(now);
        assert!(self.board.ask(id(index), ask, now));
    }

    fn hand(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let is_due = self.rng.u8(..8) == 0 || self.board.is_told(id(index), client.watch);
        if client.asked.is_none() || client.message.is_some() || !is_due {
            return;
        }
        client.message = self.board.hand(id(index), client.watch);
        if client.message.is_none() {
            self.restart(index);
        }
    }

    /// A message arrives, or is lost.
    fn deliver(&mut self, index: usize) {
        let is_lost = self.rng.u8(..20) == 0;
        let client = &mut self.clients[index];
        let Some((number, changes)) = client.message.take() else { return };
        if is_lost || number != client.seen + 1 {
            return self.restart(index);
        }
        client.apply(&changes);
        client.seen = number;
        client.valid_until = client.asked.take().map(|asked| asked.plus(VALID));
    }

    fn restart(&mut self, index: usize) {
        self.watches += 1;
        let only = self.rng.u8(..4) > 0;
        self.clients[index].begin(self.watches, only);
    }

    /// A read goes on: it sees the value, is noted, arrives.
    fn read(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.reads.is_empty() {
            return;
        }
        let at = self.rng.usize(..client.reads.len());
        let read = &mut client.reads[at];
        let (inode, is_name) = read.thing;
        if read.value.is_none() {
            read.value = Some(self.values.get(&read.thing).copied().unwrap_or(0));
        } else if !read.is_done {
            let shown = [inode];
            let (attrs, names) = if is_name { shown.split_at(0) } else { shown.split_at(1) };
            read.is_done = self.board.hold(id(index), read.before, attrs, names);
            if !read.is_done {
                (read.before, read.value) = (self.board.last(), None);
            }
        } else {
            let read = client.reads.swap_remove(at);
            let is_valid = client.valid_until.is_some_and(|until| self.now < until);
            if is_valid && !read.is_stale {
                client.cache.insert(read.thing, read.value.expect("a value"));
            }
        }
    }

    fn tell(&mut self) {
        let Some(made) = self.made.iter_mut().find(|made| made.due.is_none()) else { return };
        made.due = Some(self.board.tell(Some(id(made.by)), &changes_of(made.thing)));
    }

    /// A change is answered that all have heard.
    fn answer(&mut self) {
        let (board, now) = (&self.board, self.now);
        let is_heard = |made: &Made| {
            let due = made.due.as_ref();
            due.is_some_and(|due| due.iter().all(|due| board.waits_until(due, now).is_none()))
        };
        let Some(at) = self.made.iter().position(is_heard) else { return };
        let made = self.made.swap_remove(at);
        self.clients[made.by].forget(|thing| *thing == made.thing);
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.valid_until.is_none_or(|until| until <= now) {
                client.forget(|_| true);
            }
            let seen = client.cache.get(&made.thing);
            assert!(
                seen.is_none_or(|seen| *seen >= made.value),
                "client {index} still has {seen:?} of {:?}, which is {}",
                made.thing,
                made.value
            );
        }
    }

    fn pass(&mut self, index: usize) {
        let longest = if self.rng.u8(..50) == 0 { 2 * LEASE } else { LEASE / 10 };
        self.now = self.now.plus(Duration::from_millis(self.rng.u64(..longest.as_millis() as u64)));
        if self.clients[index].valid_until.is_some_and(|until| until <= self.now) {
            self.restart(index);
        }
    }
}

#[test]
fn what_was_heard_is_in_no_cache_as_it_was() {
    for seed in 0..300 {
        let mut run = Run {
            rng: fastrand::Rng::with_seed(seed),
            board: Board::default(),
            now: Monotonic(1),
            values: BTreeMap::new(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            made: Vec::new(),
            watches: 0,
        };
        (0..CLIENTS).for_each(|index| run.restart(index));
        (0..3000).for_each(|_| run.step());
        let cached: usize = run.clients.iter().map(|client| client.cache.len()).sum();
        assert!(run.board.last() > 20 && cached < 1000, "seed {seed} did nothing");
    }
}
