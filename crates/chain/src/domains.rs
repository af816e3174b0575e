//! Failure domains: what fails together. Replicas of a chain never share one.

use kiln_types::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The tags that name failure domains, widest first.
pub const DOMAIN_TAGS: [&str; 3] = ["power", "rack", "host"];

/// The domain of each server, as a small number: that of the widest tag which all of them have, with a
/// different value for each of `replicas` at least. Otherwise `host` decides, and a server without it is
/// a domain of its own. When all are on one host, as on a laptop, each server is one.
pub fn domains<'a>(
    servers: impl IntoIterator<Item = (NodeId, &'a BTreeMap<String, String>)>,
    replicas: usize,
) -> BTreeMap<NodeId, usize> {
    let servers: BTreeMap<_, _> = servers.into_iter().collect();
    let values = |tag: &str| -> Option<BTreeSet<&String>> {
        servers.values().map(|tags| tags.get(tag)).collect()
    };
    let wide = |tag: &&str| values(tag).is_some_and(|values| values.len() >= replicas.max(2));
    let tag = DOMAIN_TAGS.into_iter().find(wide).unwrap_or("host");
    let mut known = BTreeMap::new();
    let mut found: BTreeMap<_, _> = BTreeMap::new();
    for (node, tags) in &servers {
        let key = match tags.get(tag) {
            Some(value) => (Some(value), None),
            None => (None, Some(*node)),
        };
        let next = known.len();
        found.insert(*node, *known.entry(key).or_insert(next));
    }
    if known.len() == 1 {
        found.values_mut().enumerate().for_each(|(i, domain)| *domain = i);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tags: &[&[(&str, &str)]], replicas: usize) -> Vec<usize> {
        let tags: Vec<BTreeMap<String, String>> = tags
            .iter()
            .map(|tags| tags.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
            .collect();
        let servers = tags.iter().enumerate().map(|(i, tags)| (NodeId(i as u64), tags));
        domains(servers, replicas).into_values().collect()
    }

    #[test]
    fn the_widest_tag_that_all_have_and_that_is_enough_decides() {
        let [a, b] = [("host", "a"), ("host", "b")];
        let [x, y] = [("rack", "x"), ("rack", "y")];
        assert_eq!(found(&[&[a], &[b], &[a]], 2), [0, 1, 0]);
        assert_eq!(found(&[&[a, x], &[b, x], &[("host", "c"), y]], 2), [0, 0, 1], "racks");
        assert_eq!(found(&[&[a, x], &[b, x], &[("host", "c"), y]], 3), [0, 1, 2], "too few racks");
        assert_eq!(found(&[&[a, x], &[b], &[a, y]], 2), [0, 1, 0], "one has no rack");
        assert_eq!(found(&[&[], &[], &[a], &[a]], 2), [0, 1, 2, 2], "no tag: on its own");
        assert_eq!(found(&[&[a], &[a], &[a]], 3), [0, 1, 2], "a laptop");
        assert_eq!(found(&[&[a, x], &[a, x]], 1), [0, 1]);
    }
}
