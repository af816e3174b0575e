//! What is seen: one sample of the cluster, as a table or as JSON.

use super::rates::{Activity, Role, Standing};
use crate::output;
use kiln_types::RoutingInfo;
use serde::Serialize;

/// The cluster at one time.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    /// Seconds that the rates are about.
    pub(super) interval_s: f64,
    pub(super) chains: Chains,
    pub(super) servers: Vec<Row>,
    pub(super) mounts: Vec<Row>,
}

/// How whole the data is.
#[derive(Debug, Serialize)]
pub(super) struct Chains {
    all: usize,
    degraded: usize,
    read_only: usize,
}

/// One process.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: &'static str,
    /// Why there are no numbers.
    pub(super) trouble: Option<String>,
    pub(super) standing: Option<Standing>,
    pub(super) activity: Option<Activity>,
}

impl Chains {
    pub(super) fn of(routing: &RoutingInfo) -> Self {
        let chains = || routing.chains.values();
        let degraded = chains().filter(|chain| chain.serving().count() < chain.members.len());
        let few = |chain: &&kiln_types::Chain| chain.serving().count() < chain.min_serving as usize;
        Self {
            all: chains().count(),
            degraded: degraded.count(),
            read_only: chains().filter(few).count(),
        }
    }

    fn text(&self) -> String {
        let Self { all, degraded, read_only } = self;
        match (degraded, read_only) {
            (0, 0) => format!("{all} chains, all whole"),
            (_, 0) => format!("{all} chains, {degraded} lack a copy"),
            _ => format!("{all} chains, {degraded} lack a copy, {read_only} TAKE NO WRITES"),
        }
    }
}

impl Sample {
    /// For people.
    pub(super) fn text(&self) -> String {
        let sum = |of: fn(&Activity) -> f64| -> f64 {
            self.servers.iter().filter_map(|row| row.activity.as_ref()).map(of).sum()
        };
        let answer = self.servers.iter().filter(|row| row.standing.is_some()).count();
        let mut text = format!(
            "{answer} of {} servers answer; {}\n\
             clients read {}, write {}; {} requests/s, {} errors/s, {} slow/s\n\n",
            self.servers.len(),
            self.chains.text(),
            rate(sum(|a| a.client_read_bytes)),
            rate(sum(|a| a.client_written_bytes)),
            number(sum(|a| a.requests)),
            number(sum(|a| a.errors)),
            number(sum(|a| a.slow)),
        );
        text += &table(Role::Server, &self.servers);
        if !self.mounts.is_empty() {
            text.push('\n');
            text += &table(Role::Mount, &self.mounts);
        }
        for row in self.servers.iter().chain(&self.mounts) {
            if let Some(trouble) = &row.trouble {
                text += &format!("\n{}: {trouble}", row.name);
            }
        }
        text.trim_end().to_string() + "\n"
    }
}

fn table(role: Role, rows: &[Row]) -> String {
    let header: [&str; 14] = match role {
        Role::Server => [
            "SERVER", "STATE", "REQ/S", "ERR/S", "~P50", "~P99", "NOW", "QUEUE", "IN/S", "OUT/S",
            "DISK R/S", "DISK W/S", "CPU", "MEMORY",
        ],
        Role::Mount => [
            "MOUNT", "STATE", "OPS/S", "ERR/S", "~P50", "~P99", "NOW", "", "WRITE/S", "READ/S", "",
            "", "CPU", "MEMORY",
        ],
    };
    let last = if role == Role::Server { "SPACE" } else { "DIRTY" };
    let header: Vec<_> = header.into_iter().chain([last]).collect();
    let numbers: Vec<usize> = (2..header.len()).collect();
    output::table(&header, &numbers, rows.iter().map(|row| cells(role, row)).collect())
}

fn cells(role: Role, row: &Row) -> Vec<String> {
    let mut cells = vec![row.name.clone(), row.state.into()];
    let done =
        |show: &dyn Fn(&Activity) -> String| row.activity.as_ref().map_or_else(|| "-".into(), show);
    let now =
        |show: &dyn Fn(&Standing) -> String| row.standing.as_ref().map_or_else(|| "-".into(), show);
    let server = role == Role::Server;
    let only_server = |text: String| if server { text } else { String::new() };
    cells.extend([
        done(&|a| number(a.requests)),
        done(&|a| number(a.errors)),
        done(&|a| seconds(a.p50_s)),
        done(&|a| seconds(a.p99_s)),
        now(&|s| number(s.under_way)),
        only_server(now(&|s| number(s.queued))),
        done(&|a| amount(a.in_bytes)),
        done(&|a| amount(a.out_bytes)),
        only_server(done(&|a| amount(a.disk_read_bytes))),
        only_server(done(&|a| amount(a.disk_written_bytes))),
        done(&|a| format!("{:.0}%", a.cpu * 100.0)),
        now(&|s| amount(s.memory_bytes)),
        now(&|s| if server { space(s) } else { amount(s.dirty_bytes) }),
    ]);
    cells
}

fn space(standing: &Standing) -> String {
    if standing.capacity_bytes == 0.0 {
        return String::new();
    }
    let (used, capacity) = (standing.used_bytes, standing.capacity_bytes);
    format!("{} of {}", amount(used), amount(capacity))
}

fn amount(bytes: f64) -> String {
    output::bytes(bytes as u64)
}

fn rate(bytes: f64) -> String {
    amount(bytes) + "/s"
}

fn number(value: f64) -> String {
    if value == 0.0 || value >= 9.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 1e-3 => format!("{:.0} us", value * 1e6),
        Some(value) if value < 0.0995 => format!("{:.1} ms", value * 1e3),
        Some(value) if value < 1.0 => format!("{:.0} ms", value * 1e3),
        Some(value) => format!("{value:.1} s"),
    }
}
