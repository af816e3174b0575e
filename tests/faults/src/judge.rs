//! What must be so when nothing is wrong any more.

use crate::access::Access;
use crate::board::Board;
use crate::workload::Workload;
use kiln_types::{Context, PublicState, Result, RoutingInfo};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// All chains have to be whole so long after the last fault: a target that has hung again and again is
/// kept out for five minutes.
const WHOLE_WITHIN: Duration = Duration::from_secs(330);
/// Removed files' chunks have to be gone, and `kiln admin check` find nothing, so long after that.
const CLEAN_WITHIN: Duration = Duration::from_secs(150);
const TICK: Duration = Duration::from_millis(50);

/// Who judges what.
pub(crate) struct Judge<'a> {
    pub(crate) board: &'a Board,
    pub(crate) workload: &'a mut Workload,
    pub(crate) access: &'a Access,
}

impl Judge<'_> {
    /// Waits until every target of every chain serves; `wait` lets time pass.
    pub(crate) async fn whole(
        &self,
        after: &str,
        mut wait: impl AsyncFnMut(Duration) -> Result<()>,
    ) -> Result<()> {
        let end = self.board.env.deadline_after(WHOLE_WITHIN);
        while let Some(lack) = lacking(&self.workload.routing()) {
            if end.passed(self.board.env.now()) {
                self.board.violate(format!("{lack} for {WHOLE_WITHIN:?} after {after} ended"));
                break;
            }
            wait(TICK).await?;
        }
        Ok(())
    }

    /// Ends the workload: everything that was acknowledged has to be there, and nothing else.
    pub(crate) async fn end(
        &mut self,
        mut wait: impl AsyncFnMut(Duration) -> Result<()>,
    ) -> Result<()> {
        self.workload.finish().await;
        if let Err(error) = self.workload.verify().await {
            self.board.violate(format!("reading everything at the end: {error}"));
        }
        let end = self.board.env.deadline_after(CLEAN_WITHIN);
        loop {
            let check = self.access.kiln(&["admin", "check", "--read"])?;
            if check.status.success() {
                return Ok(());
            }
            if end.passed(self.board.env.now()) {
                let said = String::from_utf8_lossy(&check.stdout).into_owned();
                let complained = String::from_utf8_lossy(&check.stderr).into_owned();
                self.board.violate(format!("kiln admin check --read: {said}{complained}"));
                return Ok(());
            }
            wait(Duration::from_secs(2)).await?;
        }
    }

    /// Writes down in the directory `logs` what the cluster says of itself.
    pub(crate) fn keep_state(&self, logs: &Path) -> Result<()> {
        for what in ["nodes", "targets", "chains", "check"] {
            let said = self.access.kiln(&["admin", what])?;
            let file = logs.join(format!("admin-{what}.txt"));
            std::fs::write(&file, [said.stdout, said.stderr].concat()).context(file.display())?;
        }
        Ok(())
    }
}

/// What lacks until every chain is whole.
fn lacking(routing: &RoutingInfo) -> Option<String> {
    if routing.chains.is_empty() {
        return Some("there are no chains".into());
    }
    let members = routing.chains.values().flat_map(|chain| &chain.members);
    let idle = members.filter(|member| member.state != PublicState::Serving);
    let count = idle.count();
    (count > 0).then(|| format!("{count} targets do not serve"))
}

/// What no server may ever log.
pub(crate) fn panics(logs: &Path) -> Result<Vec<String>> {
    logged(logs, "panicked at")
}

/// The lines of all logs that contain this, each with its file, and once.
pub(crate) fn logged(logs: &Path, what: &str) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(logs).context(logs.display())? {
        let path = entry.context(logs.display())?.path();
        let text = std::fs::read(&path).context(path.display())?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| line.contains(what));
        found.extend(lines.map(|line| format!("{}: {line}", path.display())));
    }
    Ok(found.into_iter().collect())
}
