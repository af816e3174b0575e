//! How evenly the reads of a failed server fall on the others: a measure, and a search that evens it out.
//!
//! A chain's reads are spread over its members, so when a server fails, each other one takes over reads
//! in proportion to the chains that the two share. The ideal is a balanced incomplete block design: all
//! pairs of servers share equally many.

use kiln_types::NodeId;
use std::collections::BTreeMap;

/// How the reads of a failed server are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecoveryLoad {
    /// The largest share of a failed server's reads that one other server takes over, whichever fails.
    pub worst: f64,
    /// The least that this could be for so many servers and chains.
    pub best: f64,
}

/// The recovery load of chains, each given as the servers of its members; `None` without replicas.
pub fn recovery_load(chains: &[Vec<NodeId>]) -> Option<RecoveryLoad> {
    let mut shared: BTreeMap<NodeId, BTreeMap<NodeId, f64>> = BTreeMap::new();
    let mut all: BTreeMap<NodeId, (f64, usize)> = BTreeMap::new();
    for chain in chains.iter().filter(|chain| chain.len() > 1) {
        for failed in chain {
            let (reads, partners) = all.entry(*failed).or_default();
            (*reads, *partners) = (*reads + 1.0, *partners + chain.len() - 1);
            for other in chain.iter().filter(|other| *other != failed) {
                *shared.entry(*failed).or_default().entry(*other).or_default() +=
                    1.0 / (chain.len() - 1) as f64;
            }
        }
    }
    let others = all.len().checked_sub(1).filter(|others| *others > 0)?;
    let (mut worst, mut best) = (0.0f64, 0.0f64);
    for (failed, (reads, partners)) in all {
        let most = shared.get(&failed)?.values().copied().fold(0.0, f64::max);
        worst = worst.max(most / reads);
        best = best.max(partners.div_ceil(others) as f64 / partners as f64);
    }
    Some(RecoveryLoad { worst, best: best.min(worst) })
}

/// A chain under way: (server index, disk index).
pub(crate) type Draft = Vec<(usize, usize)>;

/// Tries for each chain, as long as the ideal is not reached.
const TRIES_PER_CHAIN: usize = 2000;
const TRIES_MAX: usize = 400_000;

/// Exchanges members of chains until all pairs of servers share equally many, as far as a search
/// of bounded length gets: each exchange leaves as many targets on each disk and keeps groups
/// apart. It accepts small steps back, ever smaller ones, and keeps the best that it saw.
pub(crate) fn even_out(chains: &mut Vec<Draft>, group: &[usize], shared: Vec<Vec<usize>>) {
    let Some(replicas) = chains.iter().map(Vec::len).min().filter(|replicas| *replicas > 1) else {
        return;
    };
    if chains.len() < 2 {
        return;
    }
    let tries = (chains.len() * TRIES_PER_CHAIN).min(TRIES_MAX);
    let mut search = Search { chains: chains.clone(), group, shared, cost: 0 };
    search.cost = search.full_cost();
    let ideal = search.ideal();
    let (mut best, mut random) = (search.cost, Random(0x9e37_79b9_7f4a_7c15));
    // What was exchanged since the best was seen.
    let mut since = Vec::new();
    for round in 0..tries {
        if best <= ideal {
            break;
        }
        let [one, other] = [0; 2].map(|_| (random.below(chains.len()), random.below(replicas)));
        let patience = 4 * (tries - round) as i64 / tries as i64;
        if search.exchange(one, other, patience) {
            since.push((one, other));
            if search.cost < best {
                best = search.cost;
                since.clear();
            }
        }
    }
    for ((a, at_a), (b, at_b)) in since.into_iter().rev() {
        swap(&mut search.chains, (a, at_a), (b, at_b));
    }
    *chains = search.chains;
}

fn swap(chains: &mut [Draft], (a, at_a): (usize, usize), (b, at_b): (usize, usize)) {
    let member = chains[a][at_a];
    chains[a][at_a] = std::mem::replace(&mut chains[b][at_b], member);
}

struct Search<'a> {
    chains: Vec<Draft>,
    group: &'a [usize],
    shared: Vec<Vec<usize>>,
    /// The sum of the squares of what all pairs share: the less, the more even.
    cost: i64,
}

impl Search<'_> {
    fn full_cost(&self) -> i64 {
        self.pairs().map(|count| (count * count) as i64).sum()
    }

    /// What pairs of servers share that may be in one chain.
    fn pairs(&self) -> impl Iterator<Item = usize> {
        let apart = |i: &usize, j: &usize| self.group[*i] != self.group[*j];
        let all = 0..self.shared.len();
        all.flat_map(move |i| (0..i).filter(move |j| apart(&i, j)).map(move |j| self.shared[i][j]))
    }

    /// The cost if all pairs shared equally many, give or take one.
    fn ideal(&self) -> i64 {
        let (sum, count) = self.pairs().fold((0, 0), |(sum, count), one| (sum + one, count + 1));
        if count == 0 {
            return 0;
        }
        let (each, more) = (sum / count, sum % count);
        ((count - more) * each * each + more * (each + 1) * (each + 1)) as i64
    }

    /// Exchanges two members of two chains, unless that costs more than `patience`.
    fn exchange(&mut self, one: (usize, usize), other: (usize, usize), patience: i64) -> bool {
        let ((a, at_a), (b, at_b)) = (one, other);
        let (x, y) = (self.chains[a][at_a].0, self.chains[b][at_b].0);
        if a == b || x == y || !self.takes(a, at_a, y) || !self.takes(b, at_b, x) {
            return false;
        }
        let before = self.cost;
        self.shift(a, at_a, x, y);
        self.shift(b, at_b, y, x);
        if self.cost - before > patience {
            self.shift(a, at_a, y, x);
            self.shift(b, at_b, x, y);
            return false;
        }
        swap(&mut self.chains, one, other);
        true
    }

    /// Whether a server may take a place of a chain.
    fn takes(&self, chain: usize, at: usize, server: usize) -> bool {
        let mut others = self.chains[chain].iter().enumerate().filter(|(i, _)| *i != at);
        others.all(|(_, (other, _))| self.group[*other] != self.group[server])
    }

    /// A place of a chain goes from one server to another.
    fn shift(&mut self, chain: usize, at: usize, from: usize, to: usize) {
        for i in (0..self.chains[chain].len()).filter(|i| *i != at) {
            let other = self.chains[chain][i].0;
            let (less, more) = (self.shared[from][other], self.shared[to][other]);
            self.cost += 2 * (more as i64 - less as i64) + 2;
            for (server, count) in [(from, less.saturating_sub(1)), (to, more + 1)] {
                self.shared[server][other] = count;
                self.shared[other][server] = count;
            }
        }
    }
}

/// Numbers that look random, the same for every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_that_of_the_busiest_survivor() {
        let load = |chains: &[&[u64]]| {
            let chain = |nodes: &&[u64]| nodes.iter().map(|node| NodeId(*node)).collect();
            recovery_load(&chains.iter().map(chain).collect::<Vec<_>>())
        };
        let of = |worst, best| Some(RecoveryLoad { worst, best });
        assert_eq!(load(&[&[1], &[2]]), None, "no replicas");
        assert_eq!(load(&[&[1, 2], &[3, 4]]), of(1.0, 1.0), "one chain each");
        assert_eq!(load(&[&[1, 2], &[1, 2], &[3, 4], &[3, 4]]), of(1.0, 0.5), "pairs of servers");
        assert_eq!(load(&[&[1, 2], &[2, 3], &[3, 1]]), of(0.5, 0.5));
        assert_eq!(
            load(&[&[1, 2, 3], &[1, 2, 4], &[1, 3, 4], &[2, 3, 4]]),
            of(1.0 / 3.0, 1.0 / 3.0)
        );
    }
}
