//! The manager's state in a key-value store: what is committed comes back, torn changes do no harm.
#![allow(clippy::unwrap_used, reason = "tests")]

use async_trait::async_trait;
use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_chain::membership;
use kiln_config::BootstrapConfig;
use kiln_env::{Env, Executor, Task};
use kiln_kv::{KeyWriter, Kv, MemoryKv, Transaction};
use kiln_mgmtd::{Manager, Options, Seat, State, Store};
use kiln_rpc::{Move, Reason, Retired};
use kiln_types::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId(5);

/// A state with `chains` chains of three targets, all in one table.
fn state(chains: u64) -> State {
    let mut state = State::new(CLUSTER);
    let routing = &mut state.routing;
    routing.version = RoutingVersion(9);
    for chain in (1..=chains).map(ChainId) {
        let targets: Vec<_> = (0..3).map(|i| TargetId(chain.0 * 3 + i)).collect();
        for (i, id) in targets.iter().enumerate() {
            let node = NodeId(100 + i as u64);
            let disk = DiskId(u128::from(id.0) << 64);
            let target = Target { id: *id, chain, node, disk, local: LocalState::UpToDate };
            routing.targets.insert(*id, target);
        }
        let member = |target: &TargetId| Member { target: *target, state: PublicState::Serving };
        let members = targets.iter().map(member).collect();
        let version = ChainVersion(chain.0);
        routing
            .chains
            .insert(chain, Chain { id: chain, version, members, min_serving: 2, replicas: 3 });
    }
    let all = routing.chains.keys().copied().collect();
    let table = ChainTable { id: ChainTableId(1), version: 1, chains: all };
    routing.tables.insert((table.id, table.version), table);
    routing.nodes.insert(
        NodeId(100),
        Node {
            id: NodeId(100),
            kind: ServiceKind::Storage,
            address: "a:1".into(),
            incarnation: Incarnation(3),
            alive: true,
            tags: BTreeMap::from([("rack".into(), "7".into())]),
        },
    );
    routing.credentials.push(CredentialRecord {
        name: "admin".into(),
        key: KeyId(1),
        revoked: false,
        limits: CredentialLimits::default(),
    });
    state.planned = true;
    state
}

fn simulate<F: Future<Output = ()> + Send + 'static>(body: impl FnOnce(Env, Arc<MemoryKv>) -> F) {
    let executor = Executor::new(1);
    let env = executor.env();
    let kv = Arc::new(MemoryKv::new(&env));
    executor.run(body(env, kv));
}

async fn open<K: Kv + 'static>(kv: &Arc<K>, env: &Env) -> Result<(Store, State)> {
    let seat = Seat::take(kv.clone(), env.clone(), "a:1", |_| {}).await?;
    Store::open(seat, CLUSTER).await
}

#[test]
fn what_is_committed_comes_back() {
    simulate(|env, kv| async move {
        let (store, empty) = open(&kv, &env).await.unwrap();
        assert_eq!(empty, State::new(CLUSTER));
        let first = state(20_000);
        store.commit(&empty, &first).await.unwrap();
        let (store, loaded) = open(&kv, &env).await.unwrap();
        assert_eq!(loaded, first);

        let mut second = first.clone();
        second.routing.version.0 += 1;
        second.routing.credentials[0].revoked = true;
        second.routing.chains.get_mut(&ChainId(4)).unwrap().version.0 += 1;
        second.routing.nodes.clear();
        let before = kv.key_count();
        store.commit(&first, &second).await.unwrap();
        assert_eq!(kv.key_count(), before - 1);
        let (_, loaded) = open(&kv, &env).await.unwrap();
        assert_eq!(loaded, second);

        let seat = Seat::take(kv, env, "a:1", |_| {}).await.unwrap();
        let other = Store::open(seat, ClusterId(6)).await.err().unwrap();
        assert_eq!(other.code(), Code::WrongCluster);
    });
}

/// Before members of chains could change, the head record did not count targets.
#[test]
fn a_head_record_that_counts_no_targets_is_read() {
    simulate(|env, kv| async move {
        let (store, empty) = open(&kv, &env).await.unwrap();
        let mut first = state(2);
        first.next_target = TargetId(77);
        store.commit(&empty, &first).await.unwrap();
        let body = Encoder::new().u128(CLUSTER.0).u64(9).u8(1).finish();
        let record = Encoder::new().u8(1).u8(1).bytes(&body).finish();
        let mut transaction = kv.begin().await.unwrap();
        transaction.set(&KeyWriter::new().rest(b"mgmtd/").u8(1).finish(), &record);
        transaction.commit().await.unwrap();
        let (_, loaded) = open(&kv, &env).await.unwrap();
        let last = first.routing.targets.keys().next_back().unwrap();
        assert_eq!(loaded, State { next_target: TargetId(last.0 + 1), ..first.clone() });
    });
}

#[test]
fn only_the_manager_that_took_the_seat_last_writes() {
    simulate(|env, kv| async move {
        let (old, empty) = open(&kv, &env).await.unwrap();
        let (new, _) = open(&kv, &env).await.unwrap();
        let refused = old.commit(&empty, &state(1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotPrimary);
        new.commit(&empty, &state(1)).await.unwrap();
    });
}

/// An engine whose process dies at the commit of one of its transactions.
struct Dying {
    kv: Arc<MemoryKv>,
    commits_left: AtomicU64,
}

struct DyingTransaction {
    inner: Box<dyn Transaction>,
    dies: bool,
}

#[async_trait]
impl Kv for Dying {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let left = self
            .commits_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
        Ok(Box::new(DyingTransaction { inner: self.kv.begin().await?, dies: left == Ok(0) }))
    }
}

#[async_trait]
impl Transaction for DyingTransaction {
    async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.get(key).await
    }
    async fn snapshot_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.snapshot_get(key).await
    }
    async fn range(
        &mut self,
        range: kiln_kv::KeyRange,
        options: kiln_kv::RangeOptions,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.inner.range(range, options).await
    }
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.inner.set(key, value);
    }
    fn clear(&mut self, key: &[u8]) {
        self.inner.clear(key);
    }
    fn clear_range(&mut self, range: kiln_kv::KeyRange) {
        self.inner.clear_range(range);
    }
    fn add(&mut self, key: &[u8], delta: i64) {
        self.inner.add(key, delta);
    }
    fn max(&mut self, key: &[u8], value: u64) {
        self.inner.max(key, value);
    }
    fn add_read_conflict(&mut self, range: kiln_kv::KeyRange) {
        self.inner.add_read_conflict(range);
    }
    fn add_write_conflict(&mut self, range: kiln_kv::KeyRange) {
        self.inner.add_write_conflict(range);
    }
    async fn commit(self: Box<Self>) -> Result<()> {
        match self.dies {
            true => Err(Error::new(Code::DiskFailed, "the process died")),
            false => self.inner.commit().await,
        }
    }
}

#[test]
fn a_torn_change_leaves_no_half_plan_and_no_half_table() {
    for commits in 0..8 {
        simulate(move |env, kv| async move {
            let (store, empty) = open(&kv, &env).await.unwrap();
            let mut planned = state(20_000);
            planned.routing.chains.clear();
            planned.routing.tables.clear();
            drop(store);
            let dying = Arc::new(Dying { kv: kv.clone(), commits_left: AtomicU64::new(100) });
            let (store, _) = open(&dying, &env).await.unwrap();
            dying.commits_left.store(commits, Ordering::SeqCst);
            let done = store.commit(&empty, &planned).await.is_ok();
            let (store, loaded) = open(&kv, &env).await.unwrap();
            assert_eq!(loaded, if done { planned.clone() } else { State::new(CLUSTER) });
            if !done {
                store.commit(&empty, &planned).await.unwrap();
            }

            let complete = state(20_000);
            dying.commits_left.store(100, Ordering::SeqCst);
            let (store, _) = open(&dying, &env).await.unwrap();
            dying.commits_left.store(commits, Ordering::SeqCst);
            let done = store.commit(&planned, &complete).await.is_ok();
            let (_, loaded) = open(&kv, &env).await.unwrap();
            assert_eq!(loaded.routing.targets, complete.routing.targets);
            match loaded.routing.tables.values().next() {
                Some(table) => assert_eq!(table.chains.len(), 20_000),
                None => assert!(!done),
            }
        });
    }
}

fn options() -> Options {
    let state = state(1);
    Options {
        own: Node {
            id: NodeId(1),
            kind: ServiceKind::Mgmtd,
            ..state.routing.nodes[&NodeId(100)].clone()
        },
        lease: LeaseTimes::SERVER,
        patience: Patience::default(),
        bootstrap: BootstrapConfig::default(),
        key: KeyId(1),
        rebuild_after: Duration::ZERO,
    }
}

/// Every chain's first target moves: the new one is there, and then the old one gone.
fn moved(before: &State, finished: bool) -> State {
    let mut state = before.clone();
    state.routing.version.0 += 1;
    for chain in state.routing.chains.values_mut() {
        let from = chain.members[0].target;
        let to = state.next_target;
        state.next_target.0 += 1;
        let old = state.routing.targets[&from].clone();
        let new = Target { id: to, disk: DiskId(7), local: LocalState::Offline, ..old.clone() };
        let what = Move {
            from,
            chain: chain.id,
            node: new.node,
            disk: new.disk,
            to: Some(to),
            reason: Reason::Drain,
            cancelled: false,
        };
        *chain = membership::add(chain, to).unwrap();
        state.routing.targets.insert(to, new);
        if finished {
            chain.members.remove(0);
            state.routing.targets.remove(&from);
            let Target { id: target, chain, node, disk, .. } = old;
            state.retired.insert(from, Retired { target, chain, node, disk });
        } else {
            state.moves.insert(from, what);
        }
    }
    state
}

#[test]
fn moves_that_are_torn_have_happened_or_not() {
    for commits in 0..5 {
        for (begun, finished) in [(false, false), (true, true)] {
            simulate(move |env, kv| async move {
                let mut first = state(3_000);
                first.next_target = TargetId(20_000);
                let before = if begun { moved(&first, false) } else { first.clone() };
                let after = moved(&first, finished);
                let dying = Arc::new(Dying { kv: kv.clone(), commits_left: AtomicU64::new(100) });
                let (store, empty) = open(&dying, &env).await.unwrap();
                store.commit(&empty, &before).await.unwrap();
                dying.commits_left.store(commits, Ordering::SeqCst);
                let done = store.commit(&before, &after).await.is_ok();
                let (_, loaded) = open(&kv, &env).await.unwrap();
                if done {
                    assert_eq!(loaded, after);
                }
                let manager = Manager::new(options(), loaded, Monotonic(1));
                let state = manager.state();
                let routing = &state.routing;
                for chain in routing.chains.values() {
                    membership::validate(chain).unwrap();
                    for member in &chain.members {
                        assert_eq!(routing.targets[&member.target].chain, chain.id);
                    }
                    let moves = state.moves.values().filter(|what| what.chain == chain.id);
                    assert_eq!(chain.members.len(), 3 + moves.count());
                }
                for target in routing.targets.values() {
                    assert!(routing.chains[&target.chain].state_of(target.id).is_some());
                    assert!(
                        target.id < state.next_target && !state.retired.contains_key(&target.id)
                    );
                }
            });
        }
    }
}

/// A store that other managers may open too, and that does not answer at times.
#[derive(Clone)]
struct Shared(MemoryKv, Arc<AtomicBool>);

#[async_trait]
impl Kv for Shared {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(Error::new(Code::Unreachable, "away")),
            false => self.0.begin().await,
        }
    }
}

fn share<F: Future<Output = ()> + Send + 'static>(body: impl FnOnce(Env, Shared) -> F) {
    let executor = Executor::new(1);
    let env = executor.env();
    let kv = Shared(MemoryKv::new(&env), Arc::default());
    executor.run(body(env, kv));
}

/// Takes the seat in a store that others share.
fn stand(env: &Env, kv: &Shared, name: &'static str) -> Task<Seat> {
    let (env, kv) = (env.clone(), Arc::new(kv.clone()));
    let taking = env.clone();
    env.spawn(name, async move { Seat::take(kv, taking, name, |_| {}).await.unwrap() })
}

/// Whether the manager may answer now; the error when it has to end.
async fn answers(seat: &Seat, env: &Env) -> Result<bool> {
    match env.timeout(Duration::from_millis(1), "a hold", seat.held()).await {
        Ok(outcome) => outcome.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[test]
fn a_manager_answers_nobody_when_its_successor_begins() {
    share(async |env, kv| {
        let start = env.now();
        let first = stand(&env, &kv, "first").join().await.unwrap();
        assert_eq!(env.now(), start, "nobody was there before");
        let others = Shared(kv.0.clone(), Arc::default());
        let second = stand(&env, &others, "second");
        env.sleep(Duration::from_millis(20_345)).await;
        assert_eq!(answers(&first, &env).await, Ok(true));
        assert!(!second.is_finished(), "the first one lives");
        // It does not reach the store any more.
        kv.1.store(true, Ordering::Relaxed);
        let cut = env.now();
        let mut last = cut;
        while !second.is_finished() {
            if answers(&first, &env).await == Ok(true) {
                last = env.now();
            }
            env.sleep(Duration::from_millis(10)).await;
        }
        assert!(env.now().since(cut) < Duration::from_millis(2500), "it is taken over soon");
        assert!(env.now().since(last) > Duration::from_millis(300), "not while it may answer");
        let second = second.join().await.unwrap();
        assert_eq!(answers(&second, &env).await, Ok(true));
        kv.1.store(false, Ordering::Relaxed);
        env.sleep(Duration::from_secs(1)).await;
        let refused = first.held().await.unwrap_err();
        assert_eq!(refused.code(), Code::NotPrimary, "{refused}");
        second.leave().await.unwrap();
        let before = env.now();
        let third = stand(&env, &others, "third").join().await.unwrap();
        assert_eq!(env.now(), before, "the second one has left");
        assert_eq!(answers(&third, &env).await, Ok(true));
    });
}

#[test]
fn a_manager_that_hears_nothing_of_its_store_answers_nobody_until_it_does() {
    share(async |env, kv| {
        let seat = stand(&env, &kv, "alone").join().await.unwrap();
        for (outage, expected) in [(1, true), (3, false), (60, false)] {
            env.sleep(Duration::from_secs(10)).await;
            assert_eq!(answers(&seat, &env).await, Ok(true));
            kv.1.store(true, Ordering::Relaxed);
            env.sleep(Duration::from_secs(outage)).await;
            assert_eq!(answers(&seat, &env).await, Ok(expected), "after {outage} s");
            kv.1.store(false, Ordering::Relaxed);
        }
    });
}
