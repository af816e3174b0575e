//! Who serves a chain: the manager's transition of public states, as one pure function.
//!
//! The rules, decided in chain order, each seeing the results so far (alive: local state up-to-date
//! or online):
//!
//! | public state | condition | next |
//! | --- | --- | --- |
//! | serving | alive | serving |
//! | | not alive, the first such | lastsrv for now |
//! | | not alive, a later one | offline |
//! | lastsrv | another one serves | offline |
//! | | none serves, alive | serving |
//! | | none serves, not alive | lastsrv |
//! | syncing | up-to-date | serving |
//! | | online, and one serves | syncing |
//! | | online, none serves | waiting |
//! | | not alive | offline |
//! | waiting, offline | online, one serves, nobody else syncs | syncing |
//! | | otherwise alive | waiting |
//! | | not alive | offline |
//! | at the end | one serves | each lastsrv becomes offline |
//!
//! The new order is serving, lastsrv, syncing, waiting, offline, each in its old order; the version
//! grows by one exactly when order or states change.
//!
//! Why no acknowledged write is lost: a write is acknowledged in one chain version, after every
//! serving and syncing member of that version took it. So each member that serves in a version
//! holds every write acknowledged up to it. A member leaves that set only here; it enters it as a
//! syncing member that was filled, or as the lastsrv of a version in which nobody serves, in which
//! nothing can have been acknowledged since it left. Whoever is added has to be filled; whoever is removed has
//! left before. Two disjoint serving sets cannot exist, since
//! the caller reports a member as not alive only when its server has ceased to serve it (see
//! [`crate::lease`]).

use kiln_types::rehearsal::{mark, planted};
use kiln_types::{Chain, Code, Error, LocalState, Member, PublicState, Result, TargetId};
use std::fmt;

/// A member whose public state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The target.
    pub target: TargetId,
    /// Its state before.
    pub from: PublicState,
    /// Its state now.
    pub to: PublicState,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}: {} -> {}", self.target, self.from, self.to)
    }
}

/// The chain as it follows from its members' local states; equal to `chain` when nothing changes.
pub fn advance(chain: &Chain, local: impl Fn(TargetId) -> LocalState) -> Chain {
    let mut members = chain.members.clone();
    members.sort_by_key(|member| member.state);
    let locals: Vec<_> = members.iter().map(|member| local(member.target)).collect();
    for at in 0..members.len() {
        members[at].state = next_state(&members, at, locals[at]);
    }
    if serves(&members) {
        let last = members.iter_mut().filter(|member| member.state == PublicState::LastServing);
        last.for_each(|member| member.state = PublicState::Offline);
    }
    members.sort_by_key(|member| member.state);
    let changed = members != chain.members;
    let version = if changed { chain.version.next() } else { chain.version };
    let next = Chain { version, members, ..*chain };
    if !planted("a stale target serves") && !planted("a waiting target takes over") {
        check(chain, &next);
    }
    next
}

/// The chain with one more member, which has nothing yet: it is filled before it serves.
///
/// # Errors
/// `Exists`.
pub fn add(chain: &Chain, target: TargetId) -> Result<Chain> {
    if chain.state_of(target).is_some() {
        let text = format!("target {target} is a member of chain {}", chain.id);
        return Err(Error::new(Code::Exists, text));
    }
    let mut members = chain.members.clone();
    members.push(Member { target, state: PublicState::Offline });
    Ok(Chain { version: chain.version.next(), members, ..*chain })
}

/// Whether a member is not needed: enough others serve. It may cease to serve then, as if its disk had
/// failed, and is removed afterwards.
pub fn may_leave(chain: &Chain, target: TargetId) -> bool {
    let others = chain.serving().filter(|serving| *serving != target).count();
    others >= chain.min_serving.max(1) as usize
}

/// The chain without a member. Only one that has ceased to serve, while another one serves: what
/// leaves the set of those that serve does so in [`advance`] alone, so that nobody reads what a removed member
/// still has.
///
/// # Errors
/// `NotFound` when it is none; `Busy` while it takes part or may be the only one that has the data.
pub fn remove(chain: &Chain, target: TargetId) -> Result<Chain> {
    let Some(state) = chain.state_of(target) else {
        let text = format!("target {target} is no member of chain {}", chain.id);
        return Err(Error::new(Code::NotFound, text));
    };
    if !matches!(state, PublicState::Offline | PublicState::Waiting) || !serves(&chain.members) {
        let text = format!("target {target} is {state} in chain {}", chain.id);
        return Err(Error::new(Code::Busy, text));
    }
    let mut members = chain.members.clone();
    members.retain(|member| member.target != target);
    Ok(Chain { version: chain.version.next(), members, ..*chain })
}

/// Lets a chain whose last server is lost go on from another member: what was acknowledged since that
/// one left is lost. An operator's decision.
///
/// # Errors
/// `Invalid` when it is unnecessary: somebody serves, or the last server is alive; `NotFound` when `from`
/// is no other member; `NotReady` when it is not alive.
pub fn recover(
    chain: &Chain,
    from: TargetId,
    local: impl Fn(TargetId) -> LocalState,
) -> Result<Chain> {
    let last = chain.members.iter().find(|member| member.state == PublicState::LastServing);
    let last = match last {
        None => return Err(Error::invalid(format!("chain {} serves", chain.id))),
        Some(last) if local(last.target).is_alive() => {
            let text = format!("target {} of chain {} is alive", last.target, chain.id);
            return Err(Error::invalid(text).with_hint("it serves by itself"));
        }
        Some(last) => last.target,
    };
    if from == last || chain.state_of(from).is_none() {
        let text = format!("target {from} is not another member of chain {}", chain.id);
        return Err(Error::new(Code::NotFound, text)
            .with_hint("kiln admin chains shows the members; name one that is waiting"));
    }
    if !local(from).is_alive() {
        let text = format!("target {from} is not there itself");
        return Err(Error::new(Code::NotReady, text).with_hint("start its server first"));
    }
    let mut members = chain.members.clone();
    for member in &mut members {
        member.state = match member.target {
            target if target == from => PublicState::Serving,
            target if target == last => PublicState::Offline,
            _ => member.state,
        };
    }
    members.sort_by_key(|member| member.state);
    Ok(Chain { version: chain.version.next(), members, ..*chain })
}

/// The members whose state differs, in the new order.
pub fn changes(old: &Chain, new: &Chain) -> Vec<Change> {
    let change = |member: &Member| {
        let from = old.state_of(member.target)?;
        let to = member.state;
        (from != to).then_some(Change { target: member.target, from, to })
    };
    new.members.iter().filter_map(change).collect()
}

/// The state of member `at`. Members before it have their new state already; since those that serve
/// come first, it is known who serves when the others are decided.
fn next_state(members: &[Member], at: usize, local: LocalState) -> PublicState {
    use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};
    let others = |state| members.iter().enumerate().any(|(i, m)| i != at && m.state == state);
    match (members[at].state, local) {
        (Serving, LocalState::UpToDate | LocalState::Online) => Serving,
        (Serving, LocalState::Offline) => {
            let first = !members[..at].iter().any(|member| member.state == LastServing);
            if first {
                mark("a target is the last that served");
                LastServing
            } else {
                mark("several targets of a chain fail at once");
                Offline
            }
        }
        (LastServing, _) if others(Serving) => Offline,
        (LastServing, local) => {
            if local.is_alive() {
                mark("the last that served is back");
                Serving
            } else {
                LastServing
            }
        }
        (Waiting | Offline, LocalState::Online) if planted("a stale target serves") => Serving,
        (Waiting | Offline, LocalState::Online)
            if !others(Serving) && planted("a waiting target takes over") =>
        {
            Serving
        }
        (Syncing, LocalState::UpToDate) => Serving,
        (Syncing, LocalState::Online) if others(Serving) => Syncing,
        (Waiting | Offline, LocalState::Online) if others(Serving) && !others(Syncing) => Syncing,
        (Syncing | Waiting | Offline, LocalState::Offline) => Offline,
        (Syncing | Waiting | Offline, _) => Waiting,
    }
}

fn serves(members: &[Member]) -> bool {
    members.iter().any(|member| member.state == PublicState::Serving)
}

/// Checks what a chain that was stored or received must be.
///
/// # Errors
/// `Corrupt`, with what is wrong.
pub fn validate(chain: &Chain) -> Result<()> {
    let count = |state| chain.members.iter().filter(|member| member.state == state).count();
    let (serving, last) = (count(PublicState::Serving), count(PublicState::LastServing));
    let mut targets: Vec<_> = chain.members.iter().map(|member| member.target).collect();
    targets.sort_unstable();
    let wrong = if targets.is_empty() {
        "no members"
    } else if targets.windows(2).any(|two| two[0] == two[1]) {
        "a member twice"
    } else if !chain.members.is_sorted_by_key(|member| member.state) {
        "members that are not in the order of their states"
    } else if (serving > 0 && last > 0) || last > 1 {
        "a last server beside another one"
    } else if count(PublicState::Syncing) > 1 {
        "two members that sync"
    } else if serving + last == 0 {
        "no member that holds its data"
    } else {
        return Ok(());
    };
    Err(Error::corrupt(format!("chain {} has {wrong}", chain.id)))
}

/// What must hold between a chain and its successor.
fn check(old: &Chain, new: &Chain) {
    let count = |chain: &Chain, state| chain.members.iter().filter(|m| m.state == state).count();
    let (serving, last) = (count(new, PublicState::Serving), count(new, PublicState::LastServing));
    assert_eq!(old.members.len(), new.members.len(), "members never come or go by themselves");
    assert!(last <= 1, "chain {}: {last} last servers", new.id);
    assert!(serving == 0 || last == 0, "chain {}: serving beside a last server", new.id);
    let syncing = count(new, PublicState::Syncing);
    assert!(syncing <= 1 || count(old, PublicState::Syncing) > 1, "{syncing} members sync");
    let had = count(old, PublicState::Serving) + count(old, PublicState::LastServing);
    assert!(had == 0 || serving + last > 0, "chain {}: nobody keeps the data", new.id);
    for change in changes(old, new) {
        let may_serve = matches!(change.from, PublicState::Syncing | PublicState::LastServing);
        let serves = matches!(change.to, PublicState::Serving);
        assert!(!serves || may_serve, "chain {}: {change} without the data", new.id);
    }
}
