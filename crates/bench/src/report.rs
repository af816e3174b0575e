//! What was measured, for people and for scripts.

use crate::limits::WORDS;
use crate::machine::Machine;
use crate::run::{Group, Options};
use crate::sample::{Figure, Sample};
use serde::Serialize;
use std::fmt;

/// The name under which kiln's own figures are kept.
pub(crate) const KILN: &str = "kiln";

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes for each second.
    BytesPerSecond,
    /// Requests for each second.
    PerSecond,
}

/// What is measured, through kiln and beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) group: Group,
    pub(crate) name: String,
    pub(crate) unit: Unit,
}

impl Workload {
    pub(crate) fn new(group: Group, name: impl Into<String>, unit: Unit) -> Self {
        Self { group, name: name.into(), unit }
    }
}

/// Who did it, and the measurements.
type Series = (String, Vec<Sample>);

/// The measurements of a run, in the order in which they were made first.
#[derive(Default)]
pub(crate) struct Tally {
    series: Vec<(Workload, Vec<Series>)>,
    notes: Vec<String>,
}

/// One workload.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The workload.
    pub name: String,
    /// What the figures count.
    pub unit: Unit,
    /// Through kiln.
    pub kiln: Option<Figure>,
    /// Without it.
    pub beside: Vec<Beside>,
}

/// The same workload without kiln.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// What does it.
    pub name: String,
    /// How fast.
    pub figure: Figure,
    /// kiln's median / this one's.
    pub ratio: Option<f64>,
}

/// The workloads of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The group.
    pub group: Group,
    /// Its workloads.
    pub rows: Vec<Row>,
}

/// All of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// Bytes of the test files.
    pub size: u64,
    /// How long a measurement without a size lasted, in seconds.
    pub seconds: f64,
    /// How often everything was measured.
    pub rounds: usize,
    /// Copies of each byte in the cluster.
    pub replicas: usize,
    /// The figures.
    pub tables: Vec<Table>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, workload: &Workload, who: &str, sample: Sample) {
        let at = self.series.iter().position(|(known, _)| known == workload);
        let at = at.unwrap_or_else(|| {
            self.series.push((workload.clone(), Vec::new()));
            self.series.len() - 1
        });
        let by = &mut self.series[at].1;
        match by.iter_mut().find(|(known, _)| known == who) {
            Some((_, samples)) => samples.push(sample),
            None => by.push((who.to_string(), vec![sample])),
        }
    }

    /// Notes what could not be measured; once.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(crate) fn report(self, machine: Machine, options: &Options) -> Report {
        let mut tables: Vec<Table> = Vec::new();
        for (workload, by) in self.series {
            let group = workload.group;
            let row = row(workload, by);
            match tables.iter_mut().find(|table| table.group == group) {
                Some(table) => table.rows.push(row),
                None => tables.push(Table { group, rows: vec![row] }),
            }
        }
        Report {
            machine,
            size: options.size,
            seconds: options.time.as_secs_f64(),
            rounds: options.rounds,
            replicas: options.replicas,
            tables,
            notes: self.notes,
        }
    }
}

fn row(workload: Workload, by: Vec<Series>) -> Row {
    let (mut kiln, mut beside) = (None, Vec::new());
    for (name, samples) in by {
        match Figure::of(&samples) {
            Some(figure) if name == KILN => kiln = Some(figure),
            Some(figure) => beside.push(Beside { name, figure, ratio: None }),
            None => {}
        }
    }
    if let Some(kiln) = &kiln {
        for other in &mut beside {
            other.ratio = Some(kiln.median / other.figure.median.max(1e-9));
        }
    }
    Row { name: workload.name, unit: workload.unit, kiln, beside }
}

impl Unit {
    /// A figure in words.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.0} MB/s", figure / 1e6),
            Self::PerSecond => format!("{figure:.0}/s"),
        }
    }

    fn with_spread(self, figure: &Figure) -> String {
        let shown = self.show(figure.median);
        match figure.runs {
            0 | 1 => shown,
            _ => format!("{shown} ±{:.0}%", figure.spread() * 100.0),
        }
    }
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Library => "Client library",
            Self::Mount => "Mount",
            Self::Metadata => "Mount: names and small files",
            Self::LibraryMetadata => "Client library: names and small files",
        }
    }
}

fn latencies(figure: &Figure) -> String {
    let show = |us: f64| match us {
        us if us < 995.0 => format!("{us:.0} us"),
        us => format!("{:.1} ms", us / 1e3),
    };
    match (figure.p50_us, figure.p99_us) {
        (Some(p50), Some(p99)) => format!("{}, {}", show(p50), show(p99)),
        _ => String::new(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, memory_bytes, kernel, disk, load } = &self.machine;
        let gib = memory_bytes >> 30;
        writeln!(f, "{cores} cores ({processor}), {gib} GiB, Linux {kernel}, {disk}, load {load}")?;
        let (mib, rounds) = (self.size >> 20, self.rounds);
        writeln!(f, "{mib} MiB, {} copies; median of {rounds}, ± half the range", self.replicas)?;
        for table in &self.tables {
            write!(f, "\n{table}")?;
        }
        let shown = |name: &str| {
            let mut rows = self.tables.iter().flat_map(|table| &table.rows);
            rows.any(|row| row.beside.iter().any(|beside| beside.name == name))
        };
        writeln!(f)?;
        for (name, words) in WORDS.iter().filter(|(name, _)| shown(name)) {
            writeln!(f, "{name}: {words}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.group.title();
        let [kiln, limit, ratio, beside, p50] = ["kiln", "limit", "ratio", "beside", "p50, p99"];
        writeln!(f, "{title:<45} {kiln:>16} {p50:>17} {limit:>16} {p50:>17} {ratio:>6}  {beside}")?;
        for row in &self.rows {
            let own = row.kiln.as_ref();
            let mut name = row.name.as_str();
            let mut kiln = own.map_or_else(String::new, |own| row.unit.with_spread(own));
            let mut took = own.map_or_else(String::new, latencies);
            if row.beside.is_empty() {
                writeln!(f, "{name:<45} {kiln:>16} {took:>17}")?;
            }
            for beside in &row.beside {
                let limit = row.unit.with_spread(&beside.figure);
                let (its, ratio) = (latencies(&beside.figure), beside.ratio);
                let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
                write!(f, "{name:<45} {kiln:>16} {took:>17} {limit:>16} {its:>17} {ratio:>6}")?;
                writeln!(f, "  {}", beside.name)?;
                name = "";
                kiln.clear();
                took.clear();
            }
        }
        Ok(())
    }
}
