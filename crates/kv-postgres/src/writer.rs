//! The connection that commits: taking the turn, reading what decides, writing, in two round trips.

use crate::connection::{ANSWER_TIME_MAX, Connection, Connector, Failure};
use crate::group::{Decided, Found, Logged, Need};
use crate::schema::LOG_COMMITS;
use kiln_kv::CLEARED_KEYS_MAX;
use kiln_types::{Code, Error, Result};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

/// How long a commit may take before its outcome counts as unknown.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(5);

type DbResult<T> = Result<T, tokio_postgres::Error>;

/// A connection with the statements of a committer.
pub(crate) struct Writer {
    connection: Connection,
    begin: String,
    head: Statement,
    log: Statement,
    values: Statement,
    cleared: Statement,
    put: Statement,
    remove: Statement,
    move_head: Statement,
    add_log: Statement,
}

/// The turn to commit: nobody else commits until it is given back or its connection ends.
pub(crate) struct Turn(Writer);

impl Writer {
    pub(crate) async fn open(connector: &Connector, schema: &str) -> Result<Self> {
        let connection = connector.reconnect().await?;
        // A cancelled commit may be visible before it is safe: none is cancelled by the server.
        connection.batch("settings of a writer", "SET statement_timeout = 0").await?;
        let statements = connection.prepare(statements(schema)).await?;
        let [head, log, values, cleared, put, remove, move_head, add_log] = statements;
        // The lock comes before the transaction's view is fixed, so that it sees every commit before it.
        let begin = format!(
            "BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE {schema}.meta IN EXCLUSIVE MODE"
        );
        Ok(Self { connection, begin, head, log, values, cleared, put, remove, move_head, add_log })
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.connection.is_usable()
    }

    /// Takes the turn. A failure ends the connection, and nothing was written.
    pub(crate) async fn begin(self, need: &Need) -> Result<(Turn, Found), Failure> {
        let found = self.find(need);
        let found = self.connection.ask("turn to commit", ANSWER_TIME_MAX, found).await?;
        Ok((Turn(self), found))
    }

    /// All is sent in this order, and answered together.
    async fn find(&self, need: &Need) -> DbResult<Found> {
        let client = &self.connection.client;
        let (starts, ends) = &need.cleared;
        let since = need.since.unwrap_or_default().cast_signed();
        let (begun, head, log, values, cleared) = tokio::join!(
            biased;
            client.batch_execute(&self.begin),
            client.query_one(&self.head, &[]),
            query(client, &self.log, [&since], need.since.is_some()),
            query(client, &self.values, [&need.merged], !need.merged.is_empty()),
            query(client, &self.cleared, [starts, ends], !starts.is_empty()),
        );
        begun?;
        Ok(Found {
            head: head?.try_get::<_, i64>(0)?.cast_unsigned(),
            log: log?.iter().map(logged).collect::<DbResult<_>>()?,
            values: values?
                .iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                .collect::<DbResult<_>>()?,
            cleared: cleared?.iter().map(|row| row.try_get(0)).collect::<DbResult<_>>()?,
        })
    }
}

fn statements(schema: &str) -> [String; 8] {
    let log = format!(
        "SELECT l.version, l.starts, l.ends FROM {schema}.head h,
             generate_series(greatest($1::bigint + 1, h.version + 1 - {LOG_COMMITS}), h.version) v
             JOIN {schema}.log l ON l.slot = (v % {LOG_COMMITS})::int AND l.version = v
         ORDER BY v"
    );
    let cleared = format!(
        "SELECT p.key FROM unnest($1::bytea[], $2::bytea[]) AS r (a, b),
             LATERAL (SELECT key FROM {schema}.pairs WHERE key >= r.a AND key < r.b) p
         LIMIT {}",
        CLEARED_KEYS_MAX + 1
    );
    let put = format!(
        "INSERT INTO {schema}.pairs (key, value) SELECT * FROM unnest($1::bytea[], $2::bytea[])
         ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    );
    let add_log = format!(
        "INSERT INTO {schema}.log VALUES (($1::bigint % {LOG_COMMITS})::int, $1::bigint, $2, $3)
         ON CONFLICT (slot) DO UPDATE
         SET version = excluded.version, starts = excluded.starts, ends = excluded.ends"
    );
    [
        format!("SELECT version FROM {schema}.head"),
        log,
        format!("SELECT key, value FROM {schema}.pairs WHERE key = ANY($1)"),
        cleared,
        put,
        format!("DELETE FROM {schema}.pairs WHERE key = ANY($1)"),
        format!("UPDATE {schema}.head SET version = $1"),
        add_log,
    ]
}

/// The rows of a query, or none where nothing is asked.
async fn query<const N: usize>(
    client: &Client,
    statement: &Statement,
    parameters: [&(dyn ToSql + Sync); N],
    is_needed: bool,
) -> DbResult<Vec<Row>> {
    match is_needed {
        true => client.query(statement, &parameters).await,
        false => Ok(Vec::new()),
    }
}

/// Changes rows, or nothing where there is nothing to change.
async fn execute<const N: usize>(
    client: &Client,
    statement: &Statement,
    parameters: [&(dyn ToSql + Sync); N],
    is_needed: bool,
) -> DbResult<()> {
    match is_needed {
        true => client.execute(statement, &parameters).await.map(drop),
        false => Ok(()),
    }
}

fn logged(row: &Row) -> DbResult<Logged> {
    let version: i64 = row.try_get(0)?;
    let (starts, ends) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Logged { version: version.cast_unsigned(), starts, ends })
}

impl Turn {
    /// Ends the transaction without a change.
    pub(crate) fn give_back(self) -> Writer {
        self.0.connection.send("ROLLBACK");
        self.0
    }

    /// Writes what was decided and commits it. A failure ends the connection.
    ///
    /// # Errors
    /// `MaybeCommitted` when the connection was lost, or PostgreSQL warned of the commit; anything else:
    /// not committed.
    pub(crate) async fn commit(self, decided: &Decided) -> Result<Writer> {
        let connection = &self.0.connection;
        let _ = connection.take_warning();
        let written = self.0.write(decided);
        connection.ask("commit", COMMIT_TIME_MAX, written).await.map_err(
            |failure| match failure.is_lost {
                true => unknown(failure.error.message()),
                false => failure.error,
            },
        )?;
        match connection.take_warning() {
            Some(warning) => Err(unknown(&warning)),
            None => Ok(self.0),
        }
    }
}

impl Writer {
    /// All is sent in this order, and answered together.
    async fn write(&self, decided: &Decided) -> DbResult<()> {
        let (mut keys, mut values, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in &decided.changes {
            match value {
                Some(value) => {
                    keys.push(key.as_slice());
                    values.push(value.as_slice());
                }
                None => removed.push(key.as_slice()),
            }
        }
        let client = &self.connection.client;
        let version = decided.version.cast_signed();
        let mut statements = pin!(async {
            tokio::try_join!(
                biased;
                execute(client, &self.put, [&keys, &values], !keys.is_empty()),
                execute(client, &self.remove, [&removed], !removed.is_empty()),
                execute(client, &self.move_head, [&version], true),
                execute(client, &self.add_log, [&version, &decided.starts, &decided.ends], true),
            )
        });
        // All statements are sent now, or the commit is not: what was not sent would be missing in it.
        let sent = match futures_util::poll!(statements.as_mut()) {
            Poll::Ready(outcome) => Some(outcome?),
            Poll::Pending => None,
        };
        let commit = client.batch_execute("COMMIT");
        match sent {
            Some(_) => commit.await,
            // After a statement that failed this commit is a rollback, and counts as one that succeeds.
            None => {
                let (written, committed) = tokio::join!(biased; statements, commit);
                written.and(committed)
            }
        }
    }
}

fn unknown(text: &str) -> Error {
    let error = Error::new(Code::MaybeCommitted, text);
    error.with_hint("the commit may or may not have happened")
}
