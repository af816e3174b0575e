//! One run: a cluster, its workload, the faults, and the judgement at the end.

use crate::board::Board;
use crate::command::{Outcome, Setting};
use crate::faults::{Fault, Kind};
use crate::judge::{Judge, panics};
use crate::report::{Window, stalls};
use crate::servers::Servers;
use crate::workload::{Load, Workload};
use kiln_env::Env;
use kiln_launch::Stop;
use kiln_types::{Code, Error, Monotonic, Result};
use std::sync::Arc;
use std::time::Duration;

const LOAD: Load = Load { files: 28, writers: 3, readers: 2 };
const TICK: Duration = Duration::from_millis(50);

/// Runs a cluster for `time` under faults of these kinds. To be called on a thread that lives as long as
/// the process.
///
/// # Errors
/// What kept it from being run: that says nothing about the cluster.
pub async fn run(setting: &Setting, time: Duration, kinds: &[Kind]) -> Result<Outcome> {
    let env = Env::real();
    let mut stop = Stop::on_any()?;
    let mut servers = Servers::start(&setting.dir, &setting.program, &env).await?;
    let board = Arc::new(Board::new(env));
    let workload = Workload::start(&servers.access, &board, setting.seed, LOAD).await?;
    let mut run = Run {
        random: fastrand::Rng::with_seed(setting.seed),
        windows: Vec::new(),
        faults: 0,
        remarks: Vec::new(),
        board,
        workload,
    };
    let all = run.all(time, kinds, &mut servers);
    tokio::select! {
        biased;
        () = stop.requested() => return Err(Error::new(Code::Cancelled, "stopped by a signal")),
        done = all => done?,
    }
    Ok(run.outcome(setting.seed, time))
}

struct Run {
    board: Arc<Board>,
    workload: Workload,
    random: fastrand::Rng,
    windows: Vec<Window>,
    faults: u32,
    remarks: Vec<String>,
}

impl Run {
    async fn all(&mut self, time: Duration, kinds: &[Kind], servers: &mut Servers) -> Result<()> {
        self.become_whole(servers, "the start").await?;
        let end = self.board.env.deadline_after(time);
        while !end.passed(self.board.env.now()) && self.board.violations().is_empty() {
            self.calm(servers).await?;
            if self.random.u8(..10) < 7 {
                self.one(kinds, servers).await?;
            } else {
                self.two(kinds, servers).await?;
            }
        }
        // Who was killed last starts again.
        self.wait(servers, TICK * 4).await?;
        self.judge(servers).await
    }

    /// Nothing happens for a moment.
    async fn calm(&mut self, servers: &mut Servers) -> Result<()> {
        let from = self.board.env.now();
        let pause = Duration::from_millis(self.random.u64(500..2500));
        self.wait(servers, pause).await?;
        let to = self.board.env.now();
        self.windows.push(Window { kind: None, from, healed: to, to });
        Ok(())
    }

    /// One fault, until all is whole again.
    async fn one(&mut self, kinds: &[Kind], servers: &mut Servers) -> Result<()> {
        let Some(fault) = self.draw(kinds, servers, &[]) else { return Ok(()) };
        let from = self.begin(&fault, servers)?;
        self.wait(servers, fault.hold).await?;
        let healed = self.end(&fault, servers)?;
        let to = self.become_whole(servers, fault.kind.name()).await?;
        self.windows.push(Window { kind: Some(fault.kind), from, healed, to });
        Ok(())
    }

    /// Two faults that overlap; often all is whole again before the next one.
    async fn two(&mut self, kinds: &[Kind], servers: &mut Servers) -> Result<()> {
        let Some(first) = self.draw(kinds, servers, &[]) else { return Ok(()) };
        self.begin(&first, servers)?;
        let delay = first.hold.mul_f64(self.random.f64());
        self.wait(servers, delay).await?;
        let second = self.draw(kinds, servers, first.victims());
        if let Some(second) = &second {
            self.begin(second, servers)?;
        }
        let left = first.hold - delay;
        let other = second.as_ref().map_or(Duration::ZERO, |second| second.hold);
        self.wait(servers, left.min(other)).await?;
        // In the order in which they were to end.
        let mut ends: Vec<_> = [(left, &first)].into();
        ends.extend(second.as_ref().map(|second| (other, second)));
        ends.sort_by_key(|(when, _)| *when);
        let mut now = left.min(other);
        for (when, fault) in ends {
            self.wait(servers, when.saturating_sub(now)).await?;
            self.end(fault, servers)?;
            now = now.max(when);
        }
        if self.random.u8(..10) < 6 {
            self.become_whole(servers, "two faults").await?;
        }
        Ok(())
    }

    fn draw(&mut self, kinds: &[Kind], servers: &Servers, busy: &[usize]) -> Option<Fault> {
        self.faults += 1;
        let (number, random) = (self.faults, &mut self.random);
        (0..20).find_map(|_| Fault::draw(kinds, number, servers, busy, random))
    }

    fn begin(&self, fault: &Fault, servers: &mut Servers) -> Result<Monotonic> {
        tracing::info!("FAULT {}", fault.show(servers));
        let now = self.board.env.now();
        fault.begin(servers)?;
        Ok(now)
    }

    fn end(&self, fault: &Fault, servers: &mut Servers) -> Result<Monotonic> {
        fault.end(servers)?;
        tracing::info!("ended: {}", fault.kind.name());
        Ok(self.board.env.now())
    }

    async fn wait(&mut self, servers: &mut Servers, time: Duration) -> Result<()> {
        wait(&self.board, servers, &mut self.remarks, time).await
    }

    /// Waits until every target of every chain serves, and says when that was.
    async fn become_whole(&mut self, servers: &mut Servers, after: &str) -> Result<Monotonic> {
        let Self { board, workload, remarks, .. } = self;
        let access = Arc::clone(&servers.access);
        let judge = Judge { board, workload, access: &access };
        let wait = async |time| wait(board, servers, remarks, time).await;
        judge.whole(after, wait).await?;
        Ok(board.env.now())
    }

    /// Nothing is wrong any more: everything that was acknowledged has to be there.
    async fn judge(&mut self, servers: &mut Servers) -> Result<()> {
        tracing::info!("no more faults");
        if self.board.violations().is_empty() {
            self.become_whole(servers, "all faults").await?;
        }
        let Self { board, workload, remarks, .. } = self;
        let access = Arc::clone(&servers.access);
        let mut judge = Judge { board, workload, access: &access };
        if !board.violations().is_empty() {
            // While it is fresh.
            return judge.keep_state(&servers.logs());
        }
        judge.end(async |time| wait(board, servers, remarks, time).await).await?;
        panics(&servers.logs())?.into_iter().for_each(|panic| board.violate(panic));
        Ok(())
    }

    fn outcome(self, seed: u64, time: Duration) -> Outcome {
        let mut report = stalls(&self.windows, &self.board.slow());
        report +=
            "promised after one failure: the lease (5 s), a heartbeat (0.5 s), a client's retry\n";
        let (counts, operations) = self.board.report();
        report += &counts;
        let mut remarks = self.remarks;
        remarks.sort_unstable();
        remarks.dedup();
        remarks.iter().for_each(|remark| report += &format!("remark: {remark}\n"));
        let violations = self.board.violations();
        let summary = format!(
            "seed {seed}, {} s: {} faults, {operations} operations, {} violations",
            time.as_secs(),
            self.faults,
            violations.len()
        );
        Outcome { violations, report, summary }
    }
}

/// Waits, and starts again meanwhile what has ended.
async fn wait(
    board: &Board,
    servers: &mut Servers,
    remarks: &mut Vec<String>,
    time: Duration,
) -> Result<()> {
    let end = board.env.deadline_after(time);
    loop {
        for ended in servers.revive()? {
            tracing::warn!("{ended}");
            remarks.push(ended);
        }
        let left = end.left(board.env.now());
        if left.is_zero() {
            return Ok(());
        }
        board.env.sleep(left.min(TICK)).await;
    }
}
