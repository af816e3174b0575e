//! What was measured, for people and for scripts.

use crate::Options;
use serde::Serialize;
use std::fmt;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes for each second.
    BytesPerSecond,
    /// Requests for each second.
    PerSecond,
}

/// One workload.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The workload.
    pub name: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// Through kiln; `None` for a figure that only stands beside.
    pub kiln: Option<f64>,
    /// Without it.
    pub limit: f64,
    /// What the limit is.
    pub beside: &'static str,
    /// kiln / limit.
    pub ratio: Option<f64>,
}

/// All of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes of the test file.
    pub size: u64,
    /// Sequential and random requests under way.
    pub depth: (usize, usize),
    /// The workloads.
    pub rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        let depth = (options.depth, options.random_depth);
        Self { size: options.size, depth, rows: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        name: &'static str,
        unit: Unit,
        kiln: f64,
        limit: f64,
        beside: &'static str,
    ) {
        let ratio = Some(kiln / limit);
        self.rows.push(Row { name, unit, kiln: Some(kiln), limit, beside, ratio });
    }

    pub(crate) fn note(&mut self, name: &'static str, unit: Unit, limit: f64) {
        let (kiln, ratio, beside) = (None, None, "raw directory");
        self.rows.push(Row { name, unit, kiln, limit, beside, ratio });
    }
}

impl Unit {
    /// A figure in words.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.0} MB/s", figure / 1e6),
            Self::PerSecond => format!("{figure:.0}/s"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sequential, random) = self.depth;
        writeln!(f, "{} MiB, depth {sequential} and {random}", self.size >> 20)?;
        writeln!(f, "{:<20} {:>12} {:>12} {:>6}  beside", "", "kiln", "limit", "ratio")?;
        for row in &self.rows {
            let kiln = row.kiln.map_or_else(String::new, |figure| row.unit.show(figure));
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let limit = row.unit.show(row.limit);
            writeln!(f, "{:<20} {kiln:>12} {limit:>12} {ratio:>6}  {}", row.name, row.beside)?;
        }
        Ok(())
    }
}
