//! One run: a cluster, its workload, the faults, and the judgement at the end.

use crate::board::Board;
use crate::faults::{Fault, Kind};
use crate::report::{Window, stalls};
use crate::servers::Servers;
use crate::workload::Workload;
use kiln_env::Env;
use kiln_launch::Stop;
use kiln_types::{Code, Context, Error, Monotonic, PublicState, Result, RoutingInfo};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// All chains have to be whole so long after the last fault: a target that has hung again and again is
/// kept out for five minutes.
const WHOLE_WITHIN: Duration = Duration::from_secs(330);
/// Removed files' chunks have to be gone, and `kiln admin check` find nothing, so long after that.
const CLEAN_WITHIN: Duration = Duration::from_secs(150);
const TICK: Duration = Duration::from_millis(50);

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long faults happen.
    pub time: Duration,
    /// Decides which, when and for how long.
    pub seed: u64,
    /// Of which kinds.
    pub kinds: Vec<Kind>,
    /// The `kiln` binary.
    pub program: PathBuf,
    /// The directory of the cluster.
    pub dir: PathBuf,
}

/// What came of it.
pub struct Outcome {
    /// What must not have happened, and did.
    pub violations: Vec<String>,
    /// What was measured.
    pub report: String,
    /// What was run, in a line.
    pub summary: String,
}

/// Runs it. To be called on a thread that lives as long as the process.
///
/// # Errors
/// What kept it from being run: that says nothing about the cluster.
pub async fn run(options: &Options) -> Result<Outcome> {
    let env = Env::real();
    let mut stop = Stop::on_any()?;
    let mut servers = Servers::start(&options.dir, &options.program, &env).await?;
    let board = Arc::new(Board::new(env));
    let workload = Workload::start(&servers, &board, options.seed).await?;
    let mut run = Run {
        random: fastrand::Rng::with_seed(options.seed),
        windows: Vec::new(),
        faults: 0,
        remarks: Vec::new(),
        board,
        workload,
    };
    let all = run.all(options, &mut servers);
    tokio::select! {
        biased;
        () = stop.requested() => return Err(Error::new(Code::Cancelled, "stopped by a signal")),
        done = all => done?,
    }
    Ok(run.outcome(options))
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
    async fn all(&mut self, options: &Options, servers: &mut Servers) -> Result<()> {
        self.become_whole(servers, "the start").await?;
        let end = self.board.env.deadline_after(options.time);
        while !end.passed(self.board.env.now()) && self.board.violations().is_empty() {
            self.calm(servers).await?;
            if self.random.u8(..10) < 7 {
                self.one(options, servers).await?;
            } else {
                self.two(options, servers).await?;
            }
        }
        // Who was killed last starts again.
        self.wait(servers, TICK * 4).await?;
        self.judge(options, servers).await
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
    async fn one(&mut self, options: &Options, servers: &mut Servers) -> Result<()> {
        let Some(fault) = self.draw(options, servers, &[]) else { return Ok(()) };
        let from = self.begin(&fault, servers)?;
        self.wait(servers, fault.hold).await?;
        let healed = self.end(&fault, servers)?;
        let to = self.become_whole(servers, fault.kind.name()).await?;
        self.windows.push(Window { kind: Some(fault.kind), from, healed, to });
        Ok(())
    }

    /// Two faults that overlap; often all is whole again before the next one.
    async fn two(&mut self, options: &Options, servers: &mut Servers) -> Result<()> {
        let Some(first) = self.draw(options, servers, &[]) else { return Ok(()) };
        self.begin(&first, servers)?;
        let delay = first.hold.mul_f64(self.random.f64());
        self.wait(servers, delay).await?;
        let second = self.draw(options, servers, first.victims());
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

    fn draw(&mut self, options: &Options, servers: &Servers, busy: &[usize]) -> Option<Fault> {
        self.faults += 1;
        let (number, random) = (self.faults, &mut self.random);
        (0..20).find_map(|_| Fault::draw(&options.kinds, number, servers, busy, random))
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

    /// Waits, and starts again meanwhile what has ended.
    async fn wait(&mut self, servers: &mut Servers, time: Duration) -> Result<()> {
        let end = self.board.env.deadline_after(time);
        loop {
            self.revive(servers)?;
            let left = end.left(self.board.env.now());
            if left.is_zero() {
                return Ok(());
            }
            self.board.env.sleep(left.min(TICK)).await;
        }
    }

    fn revive(&mut self, servers: &mut Servers) -> Result<()> {
        for ended in servers.revive()? {
            tracing::warn!("{ended}");
            self.remarks.push(ended);
        }
        Ok(())
    }

    /// Waits until every target of every chain serves, and says when that was.
    async fn become_whole(&mut self, servers: &mut Servers, after: &str) -> Result<Monotonic> {
        let end = self.board.env.deadline_after(WHOLE_WITHIN);
        while let Some(lack) = lacking(&self.workload.routing()) {
            if end.passed(self.board.env.now()) {
                self.board.violate(format!("{lack} for {WHOLE_WITHIN:?} after {after} ended"));
                break;
            }
            self.wait(servers, TICK).await?;
        }
        Ok(self.board.env.now())
    }

    /// Nothing is wrong any more: everything that was acknowledged has to be there.
    async fn judge(&mut self, options: &Options, servers: &mut Servers) -> Result<()> {
        tracing::info!("no more faults");
        if self.board.violations().is_empty() {
            self.become_whole(servers, "all faults").await?;
        }
        if !self.board.violations().is_empty() {
            // While it is fresh.
            return keep_state(options, servers);
        }
        self.workload.finish().await;
        if let Err(error) = self.workload.verify().await {
            self.board.violate(format!("reading everything at the end: {error}"));
        }
        let end = self.board.env.deadline_after(CLEAN_WITHIN);
        loop {
            let check = servers.kiln(&["admin", "check", "--read"])?;
            if check.status.success() {
                break;
            }
            if end.passed(self.board.env.now()) {
                let said = String::from_utf8_lossy(&check.stdout).into_owned();
                let complained = String::from_utf8_lossy(&check.stderr).into_owned();
                self.board.violate(format!("kiln admin check --read: {said}{complained}"));
                break;
            }
            self.wait(servers, Duration::from_secs(2)).await?;
        }
        servers.panics().into_iter().for_each(|panic| self.board.violate(panic));
        Ok(())
    }

    fn outcome(self, options: &Options) -> Outcome {
        let mut report = stalls(&self.windows, &self.board.slow());
        report +=
            "promised after one failure: the lease (5 s), a heartbeat (0.5 s), a client's retry\n";
        let mut total = 0;
        for ((work, how), count) in self.board.counts() {
            report += &format!("{work:?} {how}: {count}\n");
            total += count;
        }
        let mut remarks = self.remarks;
        remarks.sort_unstable();
        remarks.dedup();
        remarks.iter().for_each(|remark| report += &format!("remark: {remark}\n"));
        let violations = self.board.violations();
        let summary = format!(
            "seed {}, {} s: {} faults, {total} operations, {} violations",
            options.seed,
            options.time.as_secs(),
            self.faults,
            violations.len()
        );
        Outcome { violations, report, summary }
    }
}

/// Writes down what the cluster says of itself, beside its logs.
fn keep_state(options: &Options, servers: &Servers) -> Result<()> {
    for what in ["nodes", "targets", "chains", "check"] {
        let said = servers.kiln(&["admin", what])?;
        let file = options.dir.join("logs").join(format!("admin-{what}.txt"));
        std::fs::write(&file, [said.stdout, said.stderr].concat()).context(file.display())?;
    }
    Ok(())
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
