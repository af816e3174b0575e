//! A cluster whose power is cut, again and again.

use crate::board::Board;
use crate::command::{Outcome, Setting};
use crate::judge::{Judge, logged, panics};
use crate::machine::{ENDED, Machine};
use crate::volatile::Lost;
use crate::workload::{Load, Workload};
use kiln_env::Env;
use kiln_launch::Stop;
use kiln_types::{Code, Context, Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The processors of the machine are slow.
const LOAD: Load = Load { files: 14, writers: 2, readers: 1 };
const TICK: Duration = Duration::from_millis(50);
/// The machine starts in that time, on a busy host too, and the servers in it.
const SERVES_WITHIN: Duration = Duration::from_secs(180);
/// So many acknowledged writes show that chains serve.
const WRITES: u64 = 10;
/// From when the machine is switched on or the chains are whole, to the cut.
const CUT_AFTER: std::ops::Range<u64> = 0..12_000;

/// Cuts the power of a cluster so many times; `vm` is the directory with the virtual machine's parts. Its
/// disks may lie: then they ignore flushes. To be called on a thread that lives as long as the process.
///
/// # Errors
/// What kept it from being run, `Unsupported` when that is the machine's parts; it says nothing about the
/// cluster.
pub async fn cut_power(setting: &Setting, cuts: u32, vm: &Path, lies: bool) -> Result<Outcome> {
    if let Some(file) = Machine::lacking(vm) {
        let why = format!("there is no virtual machine: no {file} in {}", vm.display());
        return Err(Error::new(Code::Unsupported, why)
            .with_hint("tests/faults/vm/fetch.sh DIR makes one; --vm DIR says where it is"));
    }
    let vm = vm.canonicalize().context(vm.display())?;
    let env = Env::real();
    let mut stop = Stop::on_any()?;
    let mut machine = Machine::make(setting, &vm, lies, &env).await?;
    machine.boot()?;
    let board = Arc::new(Board::new(env));
    let random = fastrand::Rng::with_seed(setting.seed);
    let all = async {
        let workload = Workload::start(&machine.access, &board, setting.seed, LOAD).await?;
        let mut power = Power { board, workload, machine, random, cuts: 0, lost: Lost::default() };
        power.all(cuts).await?;
        power.outcome(setting.seed)
    };
    tokio::select! {
        biased;
        () = stop.requested() => Err(Error::new(Code::Cancelled, "stopped by a signal")),
        outcome = all => outcome,
    }
}

struct Power {
    board: Arc<Board>,
    workload: Workload,
    machine: Machine,
    random: fastrand::Rng,
    cuts: u32,
    lost: Lost,
}

impl Power {
    async fn all(&mut self, cuts: u32) -> Result<()> {
        self.become_whole("the start").await?;
        for number in 1..=cuts {
            let time = Duration::from_millis(self.random.u64(CUT_AFTER));
            self.board.env.sleep(time).await;
            if self.random.u8(..4) > 0 {
                self.machine.await_pending(&mut self.random, &self.board.env).await;
            }
            let lost = self.machine.cut(&mut self.random)?;
            tracing::info!("CUT {number} after {time:?}: {lost:?}");
            self.cuts = number;
            for disk in lost {
                self.lost.pending += disk.pending;
                self.lost.lost += disk.lost;
            }
            self.machine.boot()?;
            // The next cut may come in the midst of a start.
            if self.random.u8(..4) > 0 || number == cuts {
                self.become_whole("a power cut").await?;
            }
            if !self.board.violations().is_empty() {
                break;
            }
        }
        let (board, machine, workload) = (&self.board, &mut self.machine, &mut self.workload);
        let access = Arc::clone(&machine.access);
        let mut judge = Judge { board, workload, access: &access };
        if board.violations().is_empty() {
            judge.end(async |time| wait(machine, &board.env, time).await).await?;
        } else {
            judge.keep_state(&machine.logs())?;
        }
        panics(&machine.logs())?.into_iter().for_each(|panic| board.violate(panic));
        Ok(())
    }

    /// Waits until the cluster serves again, and all of it.
    async fn become_whole(&mut self, after: &str) -> Result<()> {
        let (board, machine, workload) = (&self.board, &mut self.machine, &mut self.workload);
        let access = Arc::clone(&machine.access);
        // What clients know of the chains is from before the cut until then.
        let (before, end) = (board.acknowledged(), board.env.deadline_after(SERVES_WITHIN));
        while board.acknowledged() < before + WRITES {
            if end.passed(board.env.now()) {
                board.violate(format!("no writes for {SERVES_WITHIN:?} after {after}"));
                return Ok(());
            }
            wait(machine, &board.env, TICK).await?;
        }
        let judge = Judge { board, workload, access: &access };
        judge.whole(after, async |time| wait(machine, &board.env, time).await).await
    }

    fn outcome(self, seed: u64) -> Result<Outcome> {
        let (mut report, operations) = self.board.report();
        // Servers that ended while there was power.
        for ended in logged(&self.machine.logs(), ENDED)? {
            report += &format!("remark: {ended}\n");
        }
        let violations = self.board.violations();
        let Self { cuts, lost: Lost { pending, lost }, .. } = self;
        let summary = format!(
            "seed {seed}: {cuts} power cuts, which took {lost} of {pending} writes of disks that were \
             not flushed; {operations} operations, {} violations",
            violations.len()
        );
        Ok(Outcome { violations, report, summary })
    }
}

/// Lets time pass, if the machine runs.
async fn wait(machine: &mut Machine, env: &Env, time: Duration) -> Result<()> {
    if !machine.runs()? {
        let why = format!("the virtual machine has ended: see {}", machine.logs().display());
        return Err(Error::new(Code::Local, why));
    }
    env.sleep(time.max(TICK)).await;
    Ok(())
}
