//! Reading at one moment: a transaction of PostgreSQL on a connection of a small pool.

use crate::connection::{ANSWER_TIME_MAX, Connection, Connector};
use crate::errors;
use async_trait::async_trait;
use futures_util::TryStreamExt;
use kiln_env::Env;
use kiln_kv::optimistic::{Snapshot, Visit};
use kiln_kv::{KeyRange, RangeOptions, successor};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

/// How long a transaction waits for a connection of its own.
const TURN_TIME_MAX: Duration = Duration::from_secs(1);
/// Pairs that are asked for at once, beside the limit of a read.
const PAGE_MORE: usize = 8;
const PAGE_MAX: usize = 1024;

/// The connections that read; bounded, each used by one transaction at a time.
pub(crate) struct Pool {
    connector: Connector,
    schema: String,
    idle: Mutex<Vec<Reader>>,
    turns: Arc<Semaphore>,
    env: Env,
}

/// A connection with the statements of a reader.
struct Reader {
    connection: Connection,
    version: Statement,
    get: Statement,
    forwards: Statement,
    backwards: Statement,
}

/// The store as it was when the view began; ends with the view.
pub(crate) struct View {
    version: u64,
    /// Until the view is dropped.
    reader: Option<Reader>,
    pool: Arc<Pool>,
    _turn: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(connector: Connector, schema: &str, connections: u32, env: &Env) -> Self {
        let turns = Arc::new(Semaphore::new(connections.max(1) as usize));
        let (schema, idle) = (schema.to_string(), Mutex::new(Vec::new()));
        Self { connector, schema, idle, turns, env: env.clone() }
    }

    /// A view of everything that is committed now.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<View> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let turn = self.env.timeout(TURN_TIME_MAX, "a connection", turn).await.map_err(|_| {
            let text = format!("no connection to PostgreSQL was free within {TURN_TIME_MAX:?}");
            Error::new(Code::Overloaded, text).with_hint("give the engine more connections")
        })?;
        let turn = turn.map_err(|_| crate::closed())?;
        loop {
            let idle = self.idle.lock().pop();
            let was_idle = idle.is_some();
            let reader = match idle {
                Some(reader) if !reader.connection.is_usable() => continue,
                Some(reader) => reader,
                None => Reader::open(&self.connector, &self.schema).await?,
            };
            match reader.begin().await {
                Ok(version) => {
                    let (reader, pool) = (Some(reader), Arc::clone(self));
                    return Ok(View { version, reader, pool, _turn: turn });
                }
                // The server restarted while it was idle.
                Err(failure) if failure.is_lost && was_idle => {}
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Lets go of all connections; those in use go when their transactions end.
    pub(crate) fn close(&self) {
        self.turns.close();
        self.idle.lock().clear();
    }
}

impl Reader {
    async fn open(connector: &Connector, schema: &str) -> Result<Self> {
        let connection = connector.reconnect().await?;
        // A reader that its process forgot does not hold back the clean-up of old rows.
        connection.batch("settings of a reader", "SET statement_timeout = '4s'").await?;
        let pairs = format!("SELECT key, value FROM {schema}.pairs WHERE key >= $1 AND key < $2");
        let statements = connection.prepare([
            format!("SELECT version FROM {schema}.head"),
            format!("SELECT value FROM {schema}.pairs WHERE key = $1"),
            format!("{pairs} ORDER BY key LIMIT $3"),
            format!("{pairs} ORDER BY key DESC LIMIT $3"),
        ]);
        let [version, get, forwards, backwards] = statements.await?;
        Ok(Self { connection, version, get, forwards, backwards })
    }

    async fn begin(&self) -> Result<u64, crate::connection::Failure> {
        let client = &self.connection.client;
        let both = async {
            // Sent in this order, answered together. The first query fixes the view.
            let (begun, version) = tokio::join!(
                biased;
                client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
                client.query_one(&self.version, &[]),
            );
            begun.and_then(|()| version?.try_get::<_, i64>(0))
        };
        let version = self.connection.ask("begin", ANSWER_TIME_MAX, both).await?;
        Ok(version.cast_unsigned())
    }
}

impl View {
    fn reader(&self) -> Result<&Reader> {
        self.reader.as_ref().ok_or_else(|| errors::gone("read"))
    }

    /// Shows one page; returns the last key when there may be more behind it.
    async fn page(
        &self,
        range: &KeyRange,
        reverse: bool,
        most: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let reader = self.reader()?;
        let statement = if reverse { &reader.backwards } else { &reader.forwards };
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let parameters: [&(dyn ToSql + Sync); 3] = [&range.start, &range.end, &limit];
        let reading = async {
            let rows = reader.connection.client.query_raw(statement, parameters).await?;
            let (mut rows, mut count, mut last) = (pin!(rows), 0, None);
            while let Some(row) = rows.try_next().await? {
                let key: &[u8] = row.try_get(0)?;
                if visit(key, row.try_get(1)?).is_break() {
                    return Ok(None);
                }
                count += 1;
                if count == most {
                    last = Some(key.to_vec());
                }
            }
            Ok(last)
        };
        let read = reader.connection.ask("range read", ANSWER_TIME_MAX, reading).await;
        read.map_err(crate::connection::Failure::before_commit)
    }
}

#[async_trait]
impl Snapshot for View {
    fn version(&self) -> u64 {
        self.version
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let reader = self.reader()?;
        let parameters: [&(dyn ToSql + Sync); 1] = [&key];
        let reading = async {
            let row = reader.connection.client.query_opt(&reader.get, &parameters).await?;
            row.map(|row| row.try_get(0)).transpose()
        };
        let read = reader.connection.ask("read", ANSWER_TIME_MAX, reading).await;
        read.map_err(crate::connection::Failure::before_commit)
    }

    async fn scan(
        &self,
        range: &KeyRange,
        options: RangeOptions,
        mut visit: Visit<'_>,
    ) -> Result<()> {
        let mut left = range.clone();
        // Own writes may hide a few of the first.
        let mut most = options.limit.saturating_add(PAGE_MORE).min(PAGE_MAX);
        while !left.is_empty() {
            let last = self.page(&left, options.reverse, most, &mut visit).await?;
            match last {
                None => break,
                Some(last) if options.reverse => left.end = last,
                Some(last) => left.start = successor(&last),
            }
            most = PAGE_MAX;
        }
        Ok(())
    }
}

impl Drop for View {
    /// Ends the transaction, and leaves its connection to the next one.
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        if reader.connection.is_usable() && !self.pool.turns.is_closed() {
            reader.connection.send("COMMIT");
            self.pool.idle.lock().push(reader);
        }
    }
}
