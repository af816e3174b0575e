use super::*;
use crate::records::Garbage;
use kiln_types::{InodeId, Layout, Redundancy, TruncateEpoch};
use std::collections::HashMap;

fn task(inode: u64, writable_until: Timestamp) -> Task {
    let layout = Layout {
        table: 1.into(),
        table_version: 1,
        chunk_bytes: 1 << 20,
        stripe: 3,
        base: 0,
        seed: 0,
        redundancy: Redundancy::Replicated,
    };
    let garbage = Garbage { layout, first: 0, end: u64::MAX, writable_until };
    Task { inode: InodeId(inode), epoch: TruncateEpoch(7), garbage }
}

/// What has to be true: no chain has two sweeps under way, and a task is collected once each of its
/// chains was swept after nobody could write any more.
#[derive(Default)]
struct Model {
    chains: HashMap<Name, BTreeSet<ChainId>>,
    /// Chains of a task that are not swept for the last time.
    open: HashMap<Name, BTreeSet<ChainId>>,
    /// Sweeps under way, and when they began.
    under_way: Vec<(ChainId, Vec<Task>, Timestamp)>,
    seconds: u64,
}

impl Model {
    fn now(&self) -> (Monotonic, Timestamp) {
        (Monotonic(self.seconds * 1_000_000_000), Timestamp(self.seconds as i64 * 1_000_000_000))
    }

    fn add(&mut self, collector: &mut Collector, random: &mut fastrand::Rng) {
        let (_, wall) = self.now();
        let until = Timestamp(wall.0 + random.i64(-50..50) * 1_000_000_000);
        let task = task(random.u64(1..2000), until);
        if collector.knows(task.name()) {
            return;
        }
        let mut chains = BTreeSet::new();
        while chains.len() < 3 {
            chains.insert(ChainId(random.u64(..5)));
        }
        self.chains.insert(task.name(), chains.clone());
        self.open.insert(task.name(), chains.clone());
        collector.add(task, chains, wall);
    }

    fn start(&mut self, collector: &mut Collector) {
        let (now, wall) = self.now();
        while let Some(task) = collector.wake(wall) {
            collector.add(task, self.chains[&task.name()].clone(), wall);
        }
        while let Some((chain, tasks)) = collector.start(now) {
            assert!(self.under_way.iter().all(|(busy, ..)| *busy != chain), "{chain} is busy");
            assert!(tasks.is_sorted_by_key(Task::name) && !tasks.is_empty());
            assert!(tasks.len() <= SWEEP_MAX);
            self.under_way.push((chain, tasks, wall));
        }
    }

    fn end_one(&mut self, collector: &mut Collector, random: &mut fastrand::Rng, away: ChainId) {
        if self.under_way.is_empty() {
            return;
        }
        let (chain, tasks, began) =
            self.under_way.swap_remove(random.usize(..self.under_way.len()));
        let fails = |_: &Task| chain == away || random.u8(..8) == 0;
        let (failed, swept): (Vec<_>, Vec<_>) = tasks.into_iter().partition(fails);
        for task in &swept {
            if began >= task.garbage.writable_until {
                self.open.get_mut(&task.name()).expect("it is open").remove(&chain);
            }
        }
        let names = |tasks: &[Task]| tasks.iter().map(Task::name).collect::<Vec<_>>();
        collector.swept(chain, &names(&swept), &names(&failed), self.now().0);
        let collected = collector.collected();
        for name in &collected {
            let left = self.open.remove(name).expect("collected once");
            assert_eq!(left, BTreeSet::new(), "{name:?}");
        }
        collector.ended(&collected);
    }
}

#[test]
fn everything_is_swept_everywhere_whatever_fails() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut collector, mut model) = (Collector::default(), Model::default());
        let mut away = ChainId(0);
        for step in 0..2000 {
            if step < 300 {
                model.add(&mut collector, &mut random);
            }
            if step == 1000 {
                // All but its own is done.
                let waits = |name: &Name| model.chains[name].contains(&away);
                assert!(!model.open.is_empty() && model.open.keys().all(waits));
                away = ChainId(99);
            }
            model.start(&mut collector);
            model.end_one(&mut collector, &mut random, away);
            model.seconds += random.u64(..2);
        }
        assert_eq!((collector.tasks.len(), model.open.len()), (0, 0), "something is left");
    }
}

#[test]
fn what_waits_for_a_chain_that_is_away_makes_room() {
    let mut collector = Collector::of(100);
    let (gone, here) = (ChainId(1), ChainId(2));
    let (now, mut collected) = (Monotonic(5), 0);
    for inode in 0..1000 {
        assert!(collector.has_room(), "for inode {inode}");
        let chains = if inode % 2 == 0 { [gone, here].into() } else { [here].into() };
        collector.add(task(inode, Timestamp(0)), chains, Timestamp(5));
        while let Some((chain, tasks)) = collector.start(now) {
            let names: Vec<_> = tasks.iter().map(Task::name).collect();
            let (swept, failed): (&[_], &[_]) =
                if chain == gone { (&[], &names) } else { (&names, &[]) };
            let is_news = collector.swept(chain, swept, failed, now);
            assert!(!is_news || (chain == gone && collected < 2), "told once");
        }
        let done = collector.collected();
        collector.ended(&done);
        collected += done.len();
    }
    assert_eq!(collected, 500);
    // Those that could be swept are never forgotten.
    for inode in 2000..2100 {
        collector.add(task(inode, Timestamp(0)), [here].into(), Timestamp(5));
    }
    collector.has_room();
    let (_, tasks) = collector.start(now).expect("work");
    assert_eq!(tasks.len(), 100);
}
