//! The one task of an engine that writes: groups of transactions, one transaction of PostgreSQL each.
//!
//! Whoever commits takes the turn first, a lock that PostgreSQL gives back when the transaction or its
//! connection ends. So the commits of all engines follow each other, each sees what those before it left,
//! and the version of the last one orders them all.

use crate::connection::{Connector, Failure};
use crate::group::{self, Found, Need};
use crate::writer::{Turn, Writer};
use kiln_env::Env;
use kiln_kv::optimistic::Commit;
use kiln_telemetry::metrics::{KV_COMMITS, KV_CONFLICTS, KV_GROUP, KV_SYNC_DURATION};
use kiln_types::{Code, Result};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// The most transactions, and about the most bytes, that share one commit.
const GROUP_MAX: usize = 512;
const GROUP_BYTES_MAX: usize = 8 << 20;

/// A commit that waits for its group.
pub(crate) struct Request {
    pub(crate) commit: Commit,
    pub(crate) answer: oneshot::Sender<Result<()>>,
    pub(crate) _room: OwnedSemaphorePermit,
}

pub(crate) struct Committer {
    connector: Connector,
    schema: String,
    queue: mpsc::Receiver<Request>,
    writer: Option<Writer>,
    env: Env,
}

impl Committer {
    pub(crate) fn new(
        connector: Connector,
        schema: &str,
        queue: mpsc::Receiver<Request>,
        env: &Env,
    ) -> Self {
        let (schema, env) = (schema.to_string(), env.clone());
        Self { connector, schema, queue, writer: None, env }
    }

    /// Runs until every sender is gone and the queue is empty.
    pub(crate) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let group = self.group(first);
            // Whoever gave up waiting has been told `MaybeCommitted`: let it not happen.
            let group: Vec<_> = group.into_iter().filter(|one| !one.answer.is_closed()).collect();
            if let Some(each) = self.commit(group).await {
                for one in each {
                    self.commit(vec![one]).await;
                }
            }
        }
    }

    /// Takes what waits.
    fn group(&mut self, first: Request) -> Vec<Request> {
        let mut bytes = first.commit.writes.bytes();
        let mut requests = vec![first];
        while requests.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(request) = self.queue.try_recv() else { break };
            bytes += request.commit.writes.bytes();
            requests.push(request);
        }
        requests
    }

    /// Commits a group and answers its members; gives it back when only its members alone can be decided.
    async fn commit(&mut self, group: Vec<Request>) -> Option<Vec<Request>> {
        if group.is_empty() {
            return None;
        }
        let outcomes = match Box::pin(self.attempt(&group)).await {
            Ok(Some(outcomes)) => outcomes,
            Ok(None) => return Some(group),
            Err(error) => group.iter().map(|_| Err(error.clone())).collect(),
        };
        count(&outcomes);
        for (request, outcome) in group.into_iter().zip(outcomes) {
            let _ = request.answer.send(outcome);
        }
        None
    }

    /// The outcome of each member, or the error of all; `None` when the group is too large to decide.
    async fn attempt(&mut self, group: &[Request]) -> Result<Option<Vec<Result<()>>>> {
        let commits = || group.iter().map(|request| &request.commit);
        let start = self.env.now();
        let (turn, found) = self.turn(&Need::of(commits())).await?;
        if found.is_cut() && group.len() > 1 {
            self.writer = Some(turn.give_back());
            return Ok(None);
        }
        let decided = group::decide(found, commits());
        if !decided.any() {
            self.writer = Some(turn.give_back());
            return Ok(Some(decided.outcomes));
        }
        let written = turn.commit(&decided).await;
        KV_SYNC_DURATION.record_duration(self.env.now().since(start));
        let mut outcomes = decided.outcomes;
        match written {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => {
                for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(error.clone());
                }
            }
        }
        Ok(Some(outcomes))
    }

    /// Takes the turn to commit, and reads what the group needs.
    async fn turn(&mut self, need: &Need) -> Result<(Turn, Found)> {
        if let Some(writer) = self.writer.take().filter(Writer::is_usable) {
            match writer.begin(need).await {
                // The server restarted while this connection was idle.
                Err(failure) if failure.is_lost => {}
                begun => return begun.map_err(Failure::before_commit),
            }
        }
        let writer = Writer::open(&self.connector, &self.schema).await?;
        writer.begin(need).await.map_err(Failure::before_commit)
    }
}

fn count(outcomes: &[Result<()>]) {
    let committed = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
    let is_conflict =
        |outcome: &&Result<()>| outcome.as_ref().is_err_and(|error| error.code() == Code::Conflict);
    let conflicts = outcomes.iter().filter(is_conflict).count() as u64;
    KV_COMMITS.add(committed);
    KV_CONFLICTS.add(conflicts);
    if committed > 0 {
        KV_GROUP.record(committed);
    }
}
