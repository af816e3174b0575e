//! Plans of many shapes: disks evenly full, heads balanced, no shared hosts, pairs spread.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::placement::{Place, Places, Server, Shape, plan, plan_beside};
use kiln_types::{Code, DiskId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

fn servers(count: u64, disks: u64, host: impl Fn(u64) -> Option<String>) -> Vec<Server> {
    let server = |n| Server {
        node: NodeId(100 + n),
        tags: host(n).map(|host| ("host".to_string(), host)).into_iter().collect(),
        disks: (0..disks).map(|d| DiskId(u128::from(n * 100 + d))).collect(),
    };
    (0..count).map(server).collect()
}

fn count_by<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    keys.for_each(|key| *counts.entry(key).or_insert(0) += 1);
    counts
}

fn spread<K>(counts: &BTreeMap<K, usize>) -> usize {
    counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0)
}

fn check_even(chains: &[Places], count: u64, disks: u64, shape: Shape) {
    let slots = (count * disks) as usize * shape.targets_per_disk;
    assert_eq!(chains.len(), slots / shape.replicas);
    for chain in chains {
        assert_eq!(chain.len(), shape.replicas);
        let nodes: BTreeSet<_> = chain.iter().map(|place| place.node).collect();
        assert_eq!(nodes.len(), shape.replicas, "{chain:?}");
    }
    let by_disk = count_by(chains.iter().flatten().map(|place| place.disk));
    assert!(by_disk.values().all(|used| *used <= shape.targets_per_disk));
    let heads = count_by(chains.iter().map(|chain| chain[0].node));
    assert!(spread(&heads) <= 1, "{heads:?}");
}

#[test]
fn even_clusters_of_many_sizes() {
    for replicas in 1..=5 {
        for count in replicas as u64..=13 {
            for (disks, targets_per_disk) in [(1, 6), (2, 6), (4, 5), (3, 1)] {
                let shape = Shape { replicas, targets_per_disk };
                let chains = plan(&servers(count, disks, |_| None), shape).unwrap();
                check_even(&chains, count, disks, shape);
                assert_eq!(chains, plan(&servers(count, disks, |_| None), shape).unwrap());
            }
        }
    }
}

#[test]
fn pairs_share_chains_evenly() {
    for (count, targets_per_disk) in [(5, 6), (6, 10), (7, 6), (12, 12), (25, 12)] {
        let shape = Shape { replicas: 3, targets_per_disk };
        let chains = plan(&servers(count, 1, |_| None), shape).unwrap();
        let pairs = count_by(chains.iter().flat_map(|chain| {
            let nodes: Vec<_> = chain.iter().map(|place| place.node).collect();
            let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
            pairs.filter(|(a, b)| a < b).collect::<Vec<_>>()
        }));
        let ideal = (2 * targets_per_disk).div_ceil(count as usize - 1);
        let most = pairs.values().max().unwrap();
        // For 25 only a Steiner system is ideal, which a search does not find.
        let slack = usize::from(count == 25);
        assert!(*most <= ideal + slack, "{count} servers: {most} shared, ideal {ideal}");
    }
}

#[test]
fn further_chains_fill_the_disks_up() {
    let shape = Shape { replicas: 3, targets_per_disk: 6 };
    let there = plan(&servers(4, 2, |_| None), shape).unwrap();
    let all = servers(7, 2, |_| None);
    let shape = Shape { targets_per_disk: 9, ..shape };
    let new = plan_beside(&all, shape, &there).unwrap();
    let targets = there.iter().chain(&new).flatten();
    let by_disk = count_by(targets.map(|place| place.disk));
    assert_eq!((by_disk.len(), spread(&by_disk)), (14, 0), "{by_disk:?}");
    assert!(plan_beside(&all, shape, &[there, new].concat()).unwrap().is_empty());
}

#[test]
fn hosts_are_failure_domains_unless_there_is_one_only() {
    let shape = Shape { replicas: 3, targets_per_disk: 6 };
    let host = |n: u64| Some(format!("host-{}", n / 2));
    let all = servers(8, 1, host);
    let host_of = |place: &Place| {
        all.iter().find(|s| s.node == place.node).unwrap().tags.get("host").cloned()
    };
    let chains = plan(&all, shape).unwrap();
    assert_eq!(chains.len(), 16);
    for chain in &chains {
        assert_eq!(chain.iter().map(host_of).collect::<BTreeSet<_>>().len(), 3, "{chain:?}");
    }
    assert_eq!(plan(&servers(4, 1, host), shape).unwrap_err().code(), Code::NotReady);
    let laptop = plan(&servers(3, 1, |_| Some("laptop".into())), shape).unwrap();
    check_even(&laptop, 3, 1, shape);
}

#[test]
fn uneven_servers_are_filled_as_far_as_possible() {
    let mut all = servers(4, 2, |_| None);
    all[0].disks.push(DiskId(9000));
    all[3].disks.pop();
    all.push(Server { node: NodeId(7), tags: BTreeMap::new(), disks: vec![] });
    let chains = plan(&all, Shape { replicas: 3, targets_per_disk: 3 }).unwrap();
    // Disks 3, 2, 2, 1 with room 3 each: every chain takes one from the largest, 23 / 3 = 7.
    assert_eq!(chains.len(), 7);
    assert!(chains.iter().flatten().all(|place| place.node != NodeId(7)));
}

#[test]
fn impossible_wishes_are_refused() {
    let shape = Shape { replicas: 3, targets_per_disk: 6 };
    assert_eq!(plan(&servers(2, 4, |_| None), shape).unwrap_err().code(), Code::NotReady);
    let mut twice = servers(3, 1, |_| None);
    twice[0].disks = twice[1].disks.clone();
    assert_eq!(plan(&twice, shape).unwrap_err().code(), Code::Invalid);
    let none = Shape { replicas: 0, targets_per_disk: 6 };
    assert_eq!(plan(&servers(3, 1, |_| None), none).unwrap_err().code(), Code::Invalid);
}
