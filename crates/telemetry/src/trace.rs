//! Where the time of a request goes: phases, recorded by whoever waits, in the request's own task
//! or, with [`Trace::scope`], in others that work for it.

use crate::slow;
use kiln_env::Env;
use kiln_types::{ChainId, ChunkId, InodeId, Monotonic, NodeId, TargetId};
use parking_lot::Mutex;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Others that came first.
    Queue,
    /// A read of a disk.
    DiskRead,
    /// A write to a disk.
    DiskWrite,
    /// Its log record to be durable.
    Sync,
    /// The next replica of the chain.
    Forward,
    /// The commit point's word on what is committed.
    CommitPoint,
    /// A read of the key-value store.
    KvRead,
    /// A commit of the key-value store.
    KvCommit,
    /// The pause after a conflict of transactions.
    Conflict,
    /// The metadata server's answer.
    Meta,
    /// A storage server's answer.
    Storage,
    /// The pause before another attempt.
    Pause,
    /// Bytes that were written before to be stored.
    WriteBack,
    /// Bytes that are being read ahead.
    ReadAhead,
}

impl Phase {
    const ALL: [Self; 14] = [
        Self::Queue,
        Self::DiskRead,
        Self::DiskWrite,
        Self::Sync,
        Self::Forward,
        Self::CommitPoint,
        Self::KvRead,
        Self::KvCommit,
        Self::Conflict,
        Self::Meta,
        Self::Storage,
        Self::Pause,
        Self::WriteBack,
        Self::ReadAhead,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::DiskRead => "disk read",
            Self::DiskWrite => "disk write",
            Self::Sync => "sync",
            Self::Forward => "forward",
            Self::CommitPoint => "commit point",
            Self::KvRead => "kv read",
            Self::KvCommit => "kv commit",
            Self::Conflict => "conflict pause",
            Self::Meta => "metadata call",
            Self::Storage => "storage call",
            Self::Pause => "retry pause",
            Self::WriteBack => "write-back",
            Self::ReadAhead => "read-ahead",
        }
    }
}

/// What a request is about, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The inode.
    pub inode: Option<InodeId>,
    /// The chunk.
    pub chunk: Option<ChunkId>,
    /// Its chain.
    pub chain: Option<ChainId>,
    /// The server that was asked last.
    pub node: Option<NodeId>,
    /// The target that was asked last.
    pub target: Option<TargetId>,
    /// Bytes read or written.
    pub bytes: Option<u64>,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |what: fmt::Arguments<'_>| {
            let begun = f.write_str(std::mem::replace(&mut separator, ", "));
            begun.and_then(|()| f.write_fmt(what))
        };
        if let Some(inode) = self.inode {
            part(format_args!("inode {inode}"))?;
        }
        if let Some(chunk) = self.chunk {
            part(format_args!("chunk {chunk}"))?;
        }
        if let Some(chain) = self.chain {
            part(format_args!("chain {chain}"))?;
        }
        if let Some(node) = self.node {
            part(format_args!("node {node}"))?;
        }
        if let Some(target) = self.target {
            part(format_args!("target {target}"))?;
        }
        if let Some(bytes) = self.bytes {
            part(format_args!("{bytes} bytes"))?;
        }
        Ok(())
    }
}

/// The record of one request; clones share it. It is empty where slow requests are not logged:
/// everything does nothing then.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Mutex<Record>>>);

#[derive(Debug, Default)]
struct Record {
    about: About,
    phases: [Spent; Phase::ALL.len()],
}

/// The time in which at least one of a request's tasks was in a phase.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    total: Duration,
    times: u32,
    inside: u32,
    since: Monotonic,
}

tokio::task_local! {
    static CURRENT: Trace;
}

impl Trace {
    /// The record of a new request.
    pub(crate) fn begin() -> Self {
        Self(slow::threshold().map(|_| Arc::default()))
    }

    /// The record of the request that this task works on.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Runs `work` for this request.
    pub async fn scope<T>(&self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), work).await
    }

    /// Notes what the request is about.
    pub fn about(&self, note: impl FnOnce(&mut About)) {
        if let Some(record) = &self.0 {
            note(&mut record.lock().about);
        }
    }

    /// The phase begins. What is not left again counts until the request ends.
    pub fn enter(&self, env: &Env, phase: Phase) {
        let Some(record) = &self.0 else { return };
        let now = env.now();
        let spent = &mut record.lock().phases[phase as usize];
        if spent.inside == 0 {
            spent.since = now;
        }
        (spent.inside, spent.times) = (spent.inside + 1, spent.times + 1);
    }

    /// The phase ends.
    pub fn leave(&self, env: &Env, phase: Phase) {
        let Some(record) = &self.0 else { return };
        let now = env.now();
        let spent = &mut record.lock().phases[phase as usize];
        spent.inside = spent.inside.saturating_sub(1);
        if spent.inside == 0 {
            spent.total += now.since(spent.since);
        }
    }

    /// What the request was about, and where its time went, the longest phase first.
    pub(crate) fn tell(&self, took: Duration, now: Monotonic) -> (About, String) {
        let Some(record) = &self.0 else { return Default::default() };
        let Record { about, phases } = *record.lock();
        let spent = |phase: Phase| {
            let Spent { total, times, inside, since } = phases[phase as usize];
            let rest = if inside > 0 { now.since(since) } else { Duration::ZERO };
            (phase.name(), total + rest, times)
        };
        let mut spent: Vec<_> = Phase::ALL.into_iter().map(spent).collect();
        let known: Duration = spent.iter().map(|(_, time, _)| *time).sum();
        spent.push(("other", took.saturating_sub(known), 1));
        spent.retain(|(_, time, _)| *time >= took / 100);
        spent.sort_by_key(|(_, time, _)| std::cmp::Reverse(*time));
        let mut text = String::new();
        for (name, time, times) in spent {
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{name} {time:.1?}");
            if times > 1 {
                let _ = write!(text, " ({times} times)");
            }
        }
        (about, text)
    }
}

/// Runs `work` as a phase of the request that this task works on.
pub async fn phase<T>(env: &Env, phase: Phase, work: impl Future<Output = T>) -> T {
    let trace = Trace::current();
    if trace.0.is_none() {
        return work.await;
    }
    trace.enter(env, phase);
    let _left = Leaving { trace, env, phase };
    work.await
}

/// Notes what the request that this task works on is about.
pub fn about(note: impl FnOnce(&mut About)) {
    let _ = CURRENT.try_with(|trace| trace.about(note));
}

/// Leaves the phase, also when the work is dropped.
struct Leaving<'a> {
    trace: Trace,
    env: &'a Env,
    phase: Phase,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.trace.leave(self.env, self.phase);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_env::Executor;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn phases_add_up_over_tasks_and_what_is_under_way_counts() {
        let executor = Executor::new(1);
        let env = executor.env();
        executor.run(async move {
            let (trace, start) = (Trace(Some(Arc::default())), env.now());
            let work = async {
                about(|about| about.inode = Some(InodeId(7)));
                phase(&env, Phase::DiskRead, env.sleep(SECOND)).await;
                let (helper_env, trace) = (env.clone(), Trace::current());
                let helper = env.spawn("helper", async move {
                    let sleep = helper_env.sleep(2 * SECOND);
                    trace.scope(phase(&helper_env, Phase::DiskRead, sleep)).await;
                });
                let both = phase(&env, Phase::DiskRead, env.sleep(SECOND));
                both.await;
                let late = phase(&env, Phase::Sync, std::future::pending::<()>());
                assert!(env.timeout(3 * SECOND, "", late).await.is_err());
                helper.join().await.unwrap();
                Trace::current().enter(&env, Phase::Forward);
                env.sleep(SECOND).await;
            };
            trace.scope(work).await;
            let now = env.now();
            assert_eq!(now.since(start), 6 * SECOND);
            let (about, text) = trace.tell(now.since(start), now);
            assert_eq!(about.to_string(), "inode 7");
            assert_eq!(text, "disk read 3.0s (3 times), sync 3.0s, forward 1.0s");
        });
    }

    #[test]
    fn outside_of_a_request_nothing_is_recorded() {
        let executor = Executor::new(1);
        let env = executor.env();
        executor.run(async move {
            about(|_| panic!("there is no request"));
            assert_eq!(phase(&env, Phase::Sync, async { 5 }).await, 5);
        });
    }
}
