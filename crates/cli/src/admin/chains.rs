//! `kiln admin chains`: who serves, and how far the others are filled.

use crate::output;
use crate::remote::Remote;
use kiln_manager_link::ManagerClient;
use kiln_rpc::{FillProgress, v1};
use kiln_types::{Chain, Code, Member, Result, RoutingInfo, TargetId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A chain, and the member that is being filled.
#[derive(Serialize)]
pub(super) struct View<'a> {
    #[serde(flatten)]
    chain: &'a Chain,
    filling: Option<Filling>,
}

/// How far a target is filled.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Filling {
    target: TargetId,
    done_chunks: u64,
    total_chunks: u64,
    copied_bytes: u64,
    elapsed_seconds: f64,
    /// As long as it goes on as fast as so far.
    left_seconds: Option<f64>,
}

/// The chains, with what the manager knows of fillings. Only operators are told of those.
pub(super) async fn views<'a>(remote: &Remote, routing: &'a RoutingInfo) -> Result<Vec<View<'a>>> {
    let ask = async |mut m: ManagerClient| m.list_fills(v1::Empty {}).await;
    let fills = match remote.manager("the targets that are filled", ask).await {
        Ok(list) => list.fills,
        Err(error) if error.code() == Code::NotAuthorized => Vec::new(),
        Err(error) => return Err(error),
    };
    let fills: BTreeMap<_, _> = fills
        .iter()
        .map(FillProgress::from)
        .map(|fill| (fill.target, Filling::of(&fill)))
        .collect();
    let filling = |chain: &Chain| chain.members.iter().find_map(|m| fills.get(&m.target).copied());
    let view = |chain| View { chain, filling: filling(chain) };
    Ok(routing.chains.values().map(view).collect())
}

pub(super) fn table(routing: &RoutingInfo, views: &[View<'_>]) -> String {
    let rows = views.iter().map(|View { chain, filling }| {
        let show = |member: &Member| {
            let node = routing.targets.get(&member.target).map(|target| target.node);
            let node = node.map_or_else(|| "?".into(), |node| node.to_string());
            let filling = filling.filter(|filling| filling.target == member.target);
            let filling = filling.map_or_else(String::new, |filling| filling.show());
            format!("{}@{node} {}{filling}", member.target, member.state)
        };
        let members: Vec<_> = chain.members.iter().map(show).collect();
        vec![
            chain.id.to_string(),
            chain.version.to_string(),
            format!("{} of {}", chain.serving().count(), chain.replicas),
            chain.min_serving.to_string(),
            members.join(", "),
        ]
    });
    let header = ["CHAIN", "VERSION", "SERVING", "NEEDED", "MEMBERS (TARGET@NODE STATE)"];
    output::table(&header, &[0, 1], rows.collect())
}

impl Filling {
    pub(super) fn of(fill: &FillProgress) -> Self {
        let elapsed = fill.elapsed.as_secs_f64();
        let left = fill.total_chunks.saturating_sub(fill.done_chunks) as f64;
        let left_seconds = (fill.done_chunks > 0).then(|| left * elapsed / fill.done_chunks as f64);
        Self {
            target: fill.target,
            done_chunks: fill.done_chunks,
            total_chunks: fill.total_chunks,
            copied_bytes: fill.copied_bytes,
            elapsed_seconds: elapsed,
            left_seconds,
        }
    }

    pub(super) fn show(&self) -> String {
        let done = self.done_chunks.min(self.total_chunks);
        let percent = (done * 100).checked_div(self.total_chunks).unwrap_or(100);
        let left = self.left_seconds.map_or_else(String::new, |left| {
            let left = Duration::from_secs(left.ceil() as u64);
            format!(", {} left", humantime::format_duration(left))
        });
        format!(" ({percent} %, {} copied{left})", output::bytes(self.copied_bytes))
    }
}
