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
        let degraded = chains().filter(|chain| chain.is_degraded());
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
    let header = match role {
        Role::Server => [
            "SERVER", "STATE", "REQ/S", "ERR/S", "~P50", "~P99", "NOW", "QUEUE", "IN/S", "OUT/S",
            "CPU", "MEM", "USED", "OF", "DISK R/S", "DISK W/S",
        ]
        .as_slice(),
        Role::Mount => &[
            "MOUNT", "STATE", "OPS/S", "ERR/S", "~P50", "~P99", "NOW", "DIRTY", "WRITE/S",
            "READ/S", "CPU", "MEM",
        ],
    };
    let numbers: Vec<usize> = (2..header.len()).collect();
    output::table(header, &numbers, rows.iter().map(|row| cells(role, row)).collect())
}

fn cells(role: Role, row: &Row) -> Vec<String> {
    let mut cells = vec![row.name.clone(), row.state.into()];
    let done =
        |show: &dyn Fn(&Activity) -> String| row.activity.as_ref().map_or_else(|| "-".into(), show);
    let now =
        |show: &dyn Fn(&Standing) -> String| row.standing.as_ref().map_or_else(|| "-".into(), show);
    let store = |bytes: f64| if bytes > 0.0 { amount(bytes) } else { String::new() };
    cells.extend([
        done(&|a| number(a.requests)),
        done(&|a| number(a.errors)),
        done(&|a| seconds(a.p50_s)),
        done(&|a| seconds(a.p99_s)),
        now(&|s| number(s.under_way)),
        now(&|s| match role {
            Role::Server => number(s.queued),
            Role::Mount => amount(s.dirty_bytes),
        }),
        done(&|a| amount(a.in_bytes)),
        done(&|a| amount(a.out_bytes)),
        done(&|a| format!("{:.0}%", a.cpu * 100.0)),
        now(&|s| amount(s.memory_bytes)),
    ]);
    if role == Role::Server {
        cells.extend([
            now(&|s| store(s.used_bytes)),
            now(&|s| store(s.capacity_bytes)),
            done(&|a| amount(a.disk_read_bytes)),
            done(&|a| amount(a.disk_written_bytes)),
        ]);
    }
    cells
}

/// Bytes as in "317M": tables are wide.
fn amount(bytes: f64) -> String {
    let text = output::bytes(bytes as u64);
    text.trim_end_matches('B').trim_end_matches('i').replace(' ', "")
}

fn rate(bytes: f64) -> String {
    output::bytes(bytes as u64) + "/s"
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
