//! The key-value engine over a PostgreSQL that several servers share.
//!
//! A transaction reads in a `REPEATABLE READ` transaction of PostgreSQL, remembers what it read, and
//! buffers its writes. To commit, an engine takes the turn (a lock that all engines share), validates a
//! group of transactions against what was written since their views, which the log of commits tells, and
//! writes the group and its place in the log in one `SERIALIZABLE` transaction. PostgreSQL's own conflict
//! detection would refuse too much (two additions to one number) and too little (a transaction may commit
//! although what it read is old); it guards the tables against those who do not take the turn.
//!
//! Nothing is exclusive: any number of engines may be open, on any number of machines. A server that was
//! replaced must be told so by what it reads in its transactions.
//!
//! Invariants: what is visible is durable by PostgreSQL's word, and [`PostgresKv::open`] refuses settings
//! under which that word is not kept; a commit whose answer is lost is `MaybeCommitted`, and no later
//! commit of any engine comes before it.
#![forbid(unsafe_code)]

mod committer;
mod connection;
mod durability;
mod errors;
mod group;
mod options;
mod schema;
mod view;
mod writer;

pub use options::{Allow, Options, SCHEMA};

use crate::committer::{Committer, Request};
use crate::connection::{Connection, Connector};
use crate::durability::Settings;
use crate::view::{Pool, View};
use async_trait::async_trait;
use kiln_env::{Env, Task};
use kiln_kv::optimistic::{Commit, Engine, OptimisticTransaction};
use kiln_kv::{Kv, Transaction};
use kiln_types::{Code, Context, Error, Result};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// What waits for the committer at most, in KiB.
const QUEUE_KIB: u32 = 32 << 10;
/// How long a commit waits for room in the queue.
const ROOM_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a commit waits for its outcome.
const OUTCOME_TIME_MAX: Duration = Duration::from_secs(10);

/// A store in a schema of a PostgreSQL.
pub struct PostgresKv {
    shared: Arc<Shared>,
    committer: Mutex<Option<Task<()>>>,
}

/// What transactions share.
struct Shared {
    env: Env,
    pool: Arc<Pool>,
    queue: RwLock<Option<mpsc::Sender<Request>>>,
    /// Room in the queue.
    room: Arc<Semaphore>,
}

impl PostgresKv {
    /// Whether a store could be opened there; changes nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for what is in the schema.
    pub async fn check(options: Options, env: &Env) -> Result<()> {
        connect(Arc::new(options), env).await.map(drop)
    }

    /// Opens the store, or creates it when its schema is empty or missing.
    ///
    /// # Errors
    /// `NotPermitted` for settings that may lose data and for a network without encryption, unless they
    /// are allowed; `Unsupported` for a format of another version, `Invalid` for a schema with something
    /// else in it, `NotAuthenticated`, `NotFound` for a database, `Corrupt` or `Unreachable`.
    pub async fn open(options: Options, env: &Env) -> Result<Self> {
        let options = Arc::new(options);
        let (connector, connection) = connect(Arc::clone(&options), env).await?;
        schema::open(&connection, &options.schema).await?;
        drop(connection);
        let (sender, queue) = mpsc::channel(QUEUE_KIB as usize);
        let pool = Pool::new(connector.clone(), &options.schema, options.connections, env);
        let committer = Committer::new(connector, &options.schema, queue, env);
        let committer = Mutex::new(Some(env.spawn("kv-commit", committer.run())));
        let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
        let queue = RwLock::new(Some(sender));
        let shared = Shared { env: env.clone(), pool: Arc::new(pool), queue, room };
        tracing::info!(schema = options.schema, "store in PostgreSQL opened");
        Ok(Self { shared: Arc::new(shared), committer })
    }

    /// Commits what waits, and lets go of the connections. Transactions that are still open see
    /// `Cancelled` when they commit.
    ///
    /// # Errors
    /// `DeadlineExceeded` when PostgreSQL does not answer.
    pub async fn close(&self) -> Result<()> {
        self.shared.queue.write().take();
        self.shared.pool.close();
        let committer = self.committer.lock().take();
        if let Some(committer) = committer {
            self.shared
                .env
                .timeout(OUTCOME_TIME_MAX * 2, "last commits", committer.join())
                .await??;
        }
        Ok(())
    }
}

/// A first connection, and where more come from.
async fn connect(options: Arc<Options>, env: &Env) -> Result<(Connector, Connection)> {
    let config = options::connect_config(&options)?;
    let connector = Connector::new(config, Arc::clone(&options), env.clone());
    let connection = connector.connect().await.context("store in PostgreSQL")?;
    Settings::read(&connection).await?.check_standbys(&options)?;
    Ok((connector, connection))
}

impl Drop for PostgresKv {
    /// The committer finishes what waits.
    fn drop(&mut self) {
        self.shared.queue.write().take();
        self.shared.pool.close();
        if let Some(committer) = self.committer.lock().take() {
            committer.detach();
        }
    }
}

#[async_trait]
impl Kv for PostgresKv {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let view = Arc::new(self.shared.pool.begin().await?);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(OptimisticTransaction::new(shared, &self.shared.env, view)))
    }
}

#[async_trait]
impl Engine for Shared {
    type Snapshot = View;

    async fn commit(&self, commit: Commit) -> Result<()> {
        let _waiting = kiln_telemetry::metrics::KV_WAITING.hold();
        let kib = u32::try_from(commit.writes.bytes() >> 10).unwrap_or(QUEUE_KIB - 1) + 1;
        let room = Arc::clone(&self.room).acquire_many_owned(kib);
        let room = self.env.timeout(ROOM_TIME_MAX, "room in the commit queue", room).await;
        let room = room.map_err(|_| {
            let message = format!("no room in the commit queue within {ROOM_TIME_MAX:?}");
            Error::new(Code::Overloaded, message)
                .with_hint("not committed; PostgreSQL is too slow or does not answer")
        })?;
        let room = room.map_err(|_| closed())?;
        let (answer, outcome) = oneshot::channel();
        let request = Request { commit, answer, _room: room };
        let Some(queue) = self.queue.read().clone() else { return Err(closed()) };
        queue.try_send(request).map_err(|_| closed())?;
        drop(queue);
        match self.env.timeout(OUTCOME_TIME_MAX, "commit", outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(closed())),
            Err(_) => {
                let message = format!("PostgreSQL did not answer within {OUTCOME_TIME_MAX:?}");
                Err(Error::new(Code::MaybeCommitted, message))
            }
        }
    }
}

fn closed() -> Error {
    Error::new(Code::Cancelled, "the store is closed")
}
