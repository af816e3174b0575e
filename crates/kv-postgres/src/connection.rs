//! One connection: its driver, deadlines on every answer, and what the server warned of.

use crate::durability::Settings;
use crate::errors;
use crate::options::Options;
use futures_util::future::try_join_all;
use kiln_env::{Env, Task};
use kiln_types::{Code, Error, Monotonic, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage, Socket, Statement};

/// How long one attempt to connect takes at most, for each address.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// How long the server has to answer, but for a commit.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);
/// How long new attempts to connect are made.
const RECONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How often it is logged that there is no connection.
const SAID_EVERY: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(300);

/// Plans that stay what they are, whatever the statistics say: every statement walks an index.
/// A process that hangs within a transaction loses it, and with it the turn to commit, before those who
/// wait for the turn give up.
const SESSION: &str = "SET client_min_messages = warning; SET jit = off;
    SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;
    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET enable_sort = off; SET lock_timeout = '3500ms';
    SET idle_in_transaction_session_timeout = '2s'";

/// Why the server did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What it said.
    pub(crate) error: Error,
    /// Whether the connection is of no more use: what was under way may have taken effect.
    pub(crate) is_lost: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// The error for a transaction of which nothing can be committed yet: when its view is gone with the
    /// connection, or it waited in vain, it may run again.
    pub(crate) fn before_commit(self) -> Error {
        match self.is_lost || self.error.code() == Code::Overloaded {
            true => Error::new(Code::TransactionTooOld, self.error.message()),
            false => self.error,
        }
    }
}

/// A connection to the server.
pub(crate) struct Connection {
    pub(crate) client: Client,
    driver: Option<Task<()>>,
    warning: Arc<Mutex<Option<String>>>,
    is_lost: AtomicBool,
    env: Env,
}

/// Where connections go.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Config,
    options: Arc<Options>,
    /// When it was said last that connections are refused.
    said: Arc<Mutex<Option<Monotonic>>>,
    env: Env,
}

impl Connector {
    pub(crate) fn new(config: Config, options: Arc<Options>, env: Env) -> Self {
        Self { config, options, said: Arc::default(), env }
    }

    /// [`connect`](Self::connect) for a store that is open: whatever refuses the connection, somebody can put
    /// that right, and nobody may take it for what the store holds, a missing database for a missing file.
    pub(crate) async fn reconnect(&self) -> Result<Connection> {
        let error = match self.connect().await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let now = self.env.now();
        let mut said = self.said.lock();
        if said.is_none_or(|said| now.since(said) >= SAID_EVERY) {
            *said = Some(now);
            tracing::warn!(%error, "no connection; trying again");
        }
        match error.code() {
            Code::Overloaded => Err(error),
            _ => Err(Error::new(Code::Unreachable, error.message())),
        }
    }

    /// A connection to a server that may write and whose settings are fit; waits for one a while, since
    /// servers restart and fail over.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let deadline = self.env.deadline_after(RECONNECT_TIME_MAX);
        let mut pause = PAUSE_FIRST;
        loop {
            let error = match self.try_connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let passes = matches!(error.code(), Code::Unreachable | Code::Overloaded);
            if !passes || deadline.passed(self.env.now()) {
                return Err(error);
            }
            self.env.sleep(self.env.jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_connect(&self) -> Result<Connection> {
        let connecting = self.env.timeout(
            CONNECT_TIME_MAX * 2,
            "connection to PostgreSQL",
            Box::pin(self.config.connect(NoTls)),
        );
        let connected = connecting.await.map_err(|late| {
            Error::new(Code::Unreachable, late.message()).with_hint("is it running and reachable?")
        })?;
        let (client, driven) = connected.map_err(|error| errors::refused("connection", &error))?;
        let warning = Arc::new(Mutex::new(None));
        let driver = self.env.spawn("postgres", drive(driven, Arc::clone(&warning)));
        let (driver, is_lost, env) = (Some(driver), AtomicBool::new(false), self.env.clone());
        let connection = Connection { client, driver, warning, is_lost, env };
        connection.batch("settings of the session", SESSION).await?;
        Settings::read(&connection).await?.check(&self.options)?;
        Ok(connection)
    }
}

/// Moves what is sent and received until the client is dropped or the connection breaks.
async fn drive(
    mut driven: tokio_postgres::Connection<Socket, NoTlsStream>,
    warning: Arc<Mutex<Option<String>>>,
) {
    loop {
        match std::future::poll_fn(|context| driven.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::warn!("PostgreSQL: {}", notice.message());
                *warning.lock() = Some(notice.message().into());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!("PostgreSQL: {}", errors::text(&error));
                return;
            }
            None => return,
        }
    }
}

impl Connection {
    /// Waits at most `time` for an answer; without one the connection is of no more use.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        time: Duration,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        let failure = match self.env.timeout(time, what, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Failure {
                is_lost: errors::ends_connection(&error),
                error: errors::refused(what, &error),
            },
            Err(late) => {
                let error =
                    Error::new(Code::Unreachable, format!("PostgreSQL, {}", late.message()));
                Failure { error, is_lost: true }
            }
        };
        if failure.is_lost {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// Runs statements without parameters.
    pub(crate) async fn batch(&self, what: &str, sql: &str) -> Result<()> {
        Ok(self.ask(what, ANSWER_TIME_MAX, self.client.batch_execute(sql)).await?)
    }

    /// The rows of a query without parameters, as text.
    pub(crate) async fn texts(&self, what: &str, sql: &str) -> Result<Vec<Vec<String>>> {
        let messages = self.ask(what, ANSWER_TIME_MAX, self.client.simple_query(sql)).await?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                let column = |at| row.get(at).unwrap_or_default().to_string();
                rows.push((0..row.len()).map(column).collect());
            }
        }
        Ok(rows)
    }

    /// Prepares statements.
    pub(crate) async fn prepare<const N: usize>(&self, sql: [String; N]) -> Result<[Statement; N]> {
        let all = try_join_all(sql.each_ref().map(|sql| self.client.prepare(sql)));
        let all = self.ask("preparation of statements", ANSWER_TIME_MAX, all).await?;
        all.try_into().map_err(|_| Error::internal("not as many statements as were prepared"))
    }

    /// Sends a statement whose answer nobody waits for; the next one comes after it.
    pub(crate) fn send(&self, sql: &str) {
        let mut sending = std::pin::pin!(self.client.batch_execute(sql));
        // A request is sent when it is polled first; its answer is dropped.
        let _ = sending.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
    }

    /// What the server warned of since the last call.
    pub(crate) fn take_warning(&self) -> Option<String> {
        self.warning.lock().take()
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.is_lost.load(Ordering::Relaxed) && !self.client.is_closed()
    }
}

impl Drop for Connection {
    /// The driver says goodbye when the client is gone; to a server that does not answer, it is not left.
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take().filter(|_| self.is_usable()) {
            driver.detach();
        }
    }
}
