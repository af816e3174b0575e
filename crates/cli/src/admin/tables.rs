//! `kiln admin chain-table`: the chains of each table, and how a failed server's reads fall on the others.

use crate::output;
use kiln_chain::spread::{RecoveryLoad, recovery_load};
use kiln_types::{ChainId, ChainTable, NodeId, RoutingInfo};
use serde::Serialize;

/// A table, and its recovery load.
#[derive(Serialize)]
pub(super) struct View<'a> {
    #[serde(flatten)]
    table: &'a ChainTable,
    /// The largest share of a failed server's reads that one other server takes over.
    recovery_load: Option<f64>,
    /// The least that it could be.
    recovery_load_best: Option<f64>,
}

pub(super) fn views(routing: &RoutingInfo) -> impl Iterator<Item = View<'_>> {
    routing.tables.values().map(|table| {
        let nodes = |chain: &ChainId| -> Option<Vec<NodeId>> {
            let members = routing.chains.get(chain)?.members.iter();
            Some(members.filter_map(|m| Some(routing.targets.get(&m.target)?.node)).collect())
        };
        let chains: Vec<_> = table.chains.iter().filter_map(nodes).collect();
        let load = recovery_load(&chains);
        let share = |of: fn(&RecoveryLoad) -> f64| load.as_ref().map(of);
        View { table, recovery_load: share(|l| l.worst), recovery_load_best: share(|l| l.best) }
    })
}

pub(super) fn table(views: &[View<'_>]) -> String {
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0))
    };
    let row = |view: &View<'_>| {
        let table = view.table;
        let chains: Vec<_> = table.chains.iter().map(ToString::to_string).collect();
        vec![
            table.id.to_string(),
            table.version.to_string(),
            chains.len().to_string(),
            percent(view.recovery_load),
            percent(view.recovery_load_best),
            chains.join(" "),
        ]
    };
    let header = ["TABLE", "VERSION", "COUNT", "LOAD", "BEST", "CHAINS"];
    output::table(&header, &[0, 1, 2, 3, 4], views.iter().map(row).collect())
}
