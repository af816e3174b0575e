//! Who has to hear of which change, and who has heard it. Pure.
//!
//! A watcher asks again and again what changed; to ask for the next message is to say that what the last one
//! told is out of every cache. One that does not ask for [`LEASE`] is forgotten: it has dropped everything by then.
//!
//! A watcher that hears of metadata from this server alone is told only of what it was shown: its *holds*, inodes
//! whose attributes and directories whose names it may have in a cache. A hold is noted when the answer is there,
//! with the number of the last change before it was asked for; where a later one has changed what it shows, the
//! watcher is told at once. So nothing that is shown is ever out of date unheard of.

use super::Changes;
use kiln_types::{ClientId, InodeId, Monotonic};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A watcher that has not asked for so long has nothing in a cache any more.
pub(crate) const LEASE: Duration = Duration::from_secs(4);
/// How often those who are gone are looked for.
const SWEEP: Duration = Duration::from_millis(250);
/// The most watchers of one server.
const WATCHERS_MAX: usize = 10_000;
/// The most holds of one watcher, and of all: 16 bytes each, and half as much again for the tree. More cost a watcher
/// everything that it has in its caches.
const HOLDS_MAX: usize = if cfg!(test) { 5 } else { 2 << 20 };
const ALL_HOLDS_MAX: usize = 4 << 20;
/// Changes that are remembered for answers that are on their way.
const RECENT: usize = 1024;

/// What a watcher asks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Drawn by the watcher when it begins.
    pub(crate) watch: u64,
    /// The message whose changes are in no cache any more; 0 before the first.
    pub(crate) seen: u64,
    /// All that it knows it knows from this server.
    pub(crate) only: bool,
    /// Its credential is confined to a directory: it may not know the names outside of it.
    pub(crate) confined: bool,
}

/// A watcher's turn to hear of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    client: ClientId,
    watch: u64,
    number: u64,
}

impl Due {
    pub(crate) fn client(&self) -> ClientId {
        self.client
    }
}

#[derive(Debug)]
struct Watching {
    watch: u64,
    only: bool,
    confined: bool,
    /// Its holds bear this; a new one is a way to drop them all.
    slot: u32,
    holds: usize,
    pending: Changes,
    /// The last change that concerns it, that was handed to it, and that it has heard.
    told: u64,
    handed: u64,
    heard: u64,
    /// Its holds were dropped with this change: until it has heard, everything concerns it.
    lost: u64,
    /// The number of the last message.
    message: u64,
    asked: Monotonic,
}

/// Which watchers were shown what, by their slots.
type Holds = BTreeSet<(InodeId, u32)>;

fn holders(held: &Holds, inode: InodeId) -> impl Iterator<Item = u32> {
    held.range((inode, 0)..=(inode, u32::MAX)).map(|(_, slot)| *slot)
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Board {
    watchers: BTreeMap<ClientId, Watching>,
    slots: BTreeMap<u32, ClientId>,
    next_slot: u32,
    attrs: Holds,
    names: Holds,
    /// Watchers that are told everything.
    wide: BTreeSet<ClientId>,
    /// The number of the last change.
    last: u64,
    recent: VecDeque<(Option<ClientId>, Changes)>,
    swept: Monotonic,
}

impl Board {
    /// The number of the last change.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// How many watch.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Whether a client watches.
    pub(crate) fn watches(&self, client: ClientId) -> bool {
        self.watchers.contains_key(&client)
    }

    /// Whether a client watches, and what it is shown has to be noted.
    pub(crate) fn notes(&self, client: ClientId) -> bool {
        self.watchers.get(&client).is_some_and(|watcher| watcher.only)
    }

    /// A watcher asks. `false`: too many watch already.
    pub(crate) fn ask(&mut self, client: ClientId, ask: Ask, now: Monotonic) -> bool {
        self.expire(now);
        let goes_on = |watcher: &Watching| {
            (watcher.watch, watcher.message) == (ask.watch, ask.seen)
                && (watcher.only || !ask.only)
                && watcher.confined == ask.confined
        };
        if let Some(watcher) = self.watchers.get_mut(&client).filter(|watcher| goes_on(watcher)) {
            (watcher.asked, watcher.only) = (now, ask.only);
            watcher.heard = watcher.handed;
            match watcher.is_wide() {
                true => self.wide.insert(client),
                false => self.wide.remove(&client),
            };
            return true;
        }
        self.forget(client);
        if self.watchers.len() >= WATCHERS_MAX {
            return false;
        }
        let slot = self.take_slot(client);
        let watcher = Watching {
            watch: ask.watch,
            only: ask.only,
            confined: ask.confined,
            slot,
            holds: 0,
            pending: Changes::anything(),
            told: self.last,
            handed: self.last,
            heard: self.last,
            lost: 0,
            message: ask.seen,
            asked: now,
        };
        self.watchers.insert(client, watcher);
        if !ask.only {
            self.wide.insert(client);
        }
        true
    }

    /// Whether there is something to tell a watcher.
    pub(crate) fn is_told(&self, client: ClientId, watch: u64) -> bool {
        let watcher = self.watchers.get(&client).filter(|watcher| watcher.watch == watch);
        watcher.is_none_or(|watcher| !watcher.pending.is_empty())
    }

    /// The next message to a watcher and its number; `None` when it is not known any more.
    pub(crate) fn hand(&mut self, client: ClientId, watch: u64) -> Option<(u64, Changes)> {
        let watcher = self.watchers.get_mut(&client).filter(|watcher| watcher.watch == watch)?;
        watcher.message += 1;
        watcher.handed = watcher.told;
        Some((watcher.message, std::mem::take(&mut watcher.pending)))
    }

    /// Something was changed by `by`. Who has to hear it before it is answered; others may have something to hear,
    /// too, where locks ended ([`Changes::is_awaited`]).
    pub(crate) fn tell(&mut self, by: Option<ClientId>, changes: &Changes) -> Vec<Due> {
        self.note(by, changes.clone());
        let mut due = BTreeSet::new();
        if changes.is_lost() {
            due.extend(self.watchers.keys());
        } else {
            due.extend(&self.wide);
            let attrs = changes.inodes().flat_map(|(inode, _)| holders(&self.attrs, inode));
            let names = changes.names().flat_map(|(parent, _)| holders(&self.names, parent));
            due.extend(attrs.chain(names).filter_map(|slot| self.slots.get(&slot)));
        }
        if changes.is_awaited() {
            due.extend(self.watchers.keys());
        }
        due.retain(|client| Some(*client) != by);
        let mut result = Vec::new();
        for client in due {
            let watcher = self.watchers.get_mut(&client).expect("invariant: it watches");
            let told = watcher.told_of(changes, &self.attrs, &self.names);
            watcher.tell(&told);
            if told.is_cached() {
                watcher.told = self.last;
                result.push(Due { client, watch: watcher.watch, number: self.last });
            }
        }
        result
    }

    fn note(&mut self, by: Option<ClientId>, changes: Changes) {
        self.last += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((by, changes));
    }

    /// When a watcher that is due will be forgotten; `None`: it has heard, or is forgotten already.
    pub(crate) fn waits_until(&self, due: &Due, now: Monotonic) -> Option<Monotonic> {
        let watcher = self.watchers.get(&due.client)?;
        let until = watcher.asked.plus(LEASE);
        let waits = watcher.watch == due.watch && watcher.heard < due.number && now < until;
        waits.then_some(until)
    }

    /// A client was shown attributes of `attrs` and names in `names`, in answer to a request that began after the
    /// change `since`. `false`: one of them has changed in between, and it was told so.
    pub(crate) fn hold(
        &mut self,
        client: ClientId,
        since: u64,
        attrs: &[InodeId],
        names: &[InodeId],
    ) -> bool {
        let Some(watcher) = self.watchers.get_mut(&client).filter(|watcher| watcher.only) else {
            return true;
        };
        let mut added = 0;
        for (held, inodes) in [(&mut self.attrs, attrs), (&mut self.names, names)] {
            added += inodes.iter().filter(|inode| held.insert((**inode, watcher.slot))).count();
        }
        watcher.holds += added;
        let missed = missed(&self.recent, self.last - since, client, attrs, names);
        let is_fresh = missed.is_empty();
        if !is_fresh {
            watcher.tell(&missed);
            watcher.told = self.last;
        }
        if watcher.holds > HOLDS_MAX {
            self.drop_holds(client);
        }
        if self.attrs.len() + self.names.len() > ALL_HOLDS_MAX {
            self.make_room();
        }
        is_fresh
    }

    /// The watcher is told that everything may have changed, and has nothing any more when it has heard.
    fn drop_holds(&mut self, client: ClientId) {
        // A number of its own: what it has heard is before that.
        self.note(None, Changes::default());
        let (slot, last) = (self.take_slot(client), self.last);
        let watcher = self.watchers.get_mut(&client).expect("invariant: it holds something");
        self.slots.remove(&watcher.slot);
        (watcher.slot, watcher.holds) = (slot, 0);
        watcher.tell(&Changes::anything());
        (watcher.told, watcher.lost) = (last, last);
        self.wide.insert(client);
    }

    fn make_room(&mut self) {
        let Self { attrs, names, slots, .. } = self;
        attrs.retain(|(_, slot)| slots.contains_key(slot));
        names.retain(|(_, slot)| slots.contains_key(slot));
        let most = self.watchers.iter().max_by_key(|(_, watcher)| watcher.holds);
        if let Some((client, _)) = most
            && self.attrs.len() + self.names.len() > ALL_HOLDS_MAX / 2
        {
            self.drop_holds(*client);
        }
    }

    fn take_slot(&mut self, client: ClientId) -> u32 {
        self.next_slot = self.next_slot.wrapping_add(1);
        self.slots.insert(self.next_slot, client);
        self.next_slot
    }

    fn expire(&mut self, now: Monotonic) {
        if now < self.swept.plus(SWEEP) {
            return;
        }
        self.swept = now;
        let gone = |watcher: &Watching| watcher.asked.plus(LEASE) <= now;
        let gone = self.watchers.iter().filter(|(_, watcher)| gone(watcher));
        for client in gone.map(|(client, _)| *client).collect::<Vec<_>>() {
            self.forget(client);
        }
    }

    fn forget(&mut self, client: ClientId) {
        if let Some(watcher) = self.watchers.remove(&client) {
            self.slots.remove(&watcher.slot);
            self.wide.remove(&client);
        }
    }
}

impl Watching {
    /// Whether everything is its concern.
    fn is_wide(&self) -> bool {
        !self.only || self.heard < self.lost
    }

    /// What of some changes is its concern.
    fn told_of(&self, changes: &Changes, attrs: &Holds, names: &Holds) -> Changes {
        if self.is_wide() || changes.is_lost() {
            return changes.clone();
        }
        changes.only(
            |inode| attrs.contains(&(inode, self.slot)),
            |parent| names.contains(&(parent, self.slot)),
        )
    }

    fn tell(&mut self, changes: &Changes) {
        match self.confined && changes.is_cached() {
            true => self.pending = Changes::anything(),
            false => self.pending.extend(changes),
        }
    }
}

/// What of the last `count` changes concerns these inodes and directories.
fn missed(
    recent: &VecDeque<(Option<ClientId>, Changes)>,
    count: u64,
    client: ClientId,
    attrs: &[InodeId],
    names: &[InodeId],
) -> Changes {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > recent.len() {
        return Changes::anything();
    }
    let mut missed = Changes::default();
    let late = recent.iter().rev().take(count).filter(|(by, _)| *by != Some(client));
    for (_, changes) in late {
        if changes.is_lost() {
            return Changes::anything();
        }
        missed.extend(
            &changes.only(|inode| attrs.contains(&inode), |parent| names.contains(&parent)),
        );
    }
    missed
}
