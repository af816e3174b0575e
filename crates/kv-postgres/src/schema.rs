//! The tables of one cluster: made once, recognised ever after.
//!
//! | table | rows |
//! | --- | --- |
//! | `meta` | one: what this is and in which format; its lock is the turn to commit |
//! | `head` | one: the version of the last commit |
//! | `log` | the last [`LOG_COMMITS`] commits, slot = version modulo that: which ranges each wrote |
//! | `pairs` | the keys and values, in byte order |

use crate::connection::Connection;
use kiln_types::{Code, Error, Result};

/// The commits that the log remembers; a transaction that reads longer than that is too old.
pub(crate) const LOG_COMMITS: i64 = 4096;

const TYPE: &str = "kiln-kv-postgres";
const FORMAT: i32 = 1;

/// Opens the schema, or makes it when it is missing or empty; servers that do it at once take turns.
pub(crate) async fn open(connection: &Connection, schema: &str) -> Result<()> {
    // An advisory lock of this name, so that nothing is needed beforehand.
    let turn = "BEGIN; SELECT pg_advisory_xact_lock(hashtext('kiln-kv-postgres'))";
    connection.batch("turn to open the schema", turn).await?;
    let opened = open_locked(connection, schema).await;
    let end = if opened.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = connection.batch("open of the schema", end).await;
    opened.and(ended)
}

async fn open_locked(connection: &Connection, schema: &str) -> Result<()> {
    let tables = format!(
        "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = '{schema}' AND c.relkind = 'r' ORDER BY c.relname = 'meta' DESC"
    );
    let tables = connection.texts("list of the tables", &tables).await?;
    match tables.first().and_then(|row| row.first()).map(String::as_str) {
        None => connection.batch("making of the tables", &making(schema)).await,
        Some("meta") => check(connection, schema).await,
        Some(other) => {
            let text = format!("the schema '{schema}' holds a table '{other}' but no store");
            Err(Error::invalid(text).with_hint("give the cluster a schema of its own"))
        }
    }
}

async fn check(connection: &Connection, schema: &str) -> Result<()> {
    let meta = format!("SELECT type, format::text FROM {schema}.meta");
    let rows = connection.texts("format of the store", &meta).await?;
    let format = match rows.as_slice() {
        [row] if row.first().is_some_and(|name| name == TYPE) => row.get(1),
        _ => {
            let text = format!("the table '{schema}.meta' is not one of this engine");
            return Err(Error::corrupt(text).with_hint("is it the schema of something else?"));
        }
    };
    match format.and_then(|format| format.parse::<i32>().ok()) {
        Some(FORMAT) => Ok(()),
        other => {
            let other = other.map_or_else(|| "?".into(), |format| format.to_string());
            let text = format!("schema '{schema}': format {other}; this build knows {FORMAT}");
            Err(Error::new(Code::Unsupported, text).with_hint("start the build that wrote it"))
        }
    }
}

/// Rows that are written again and again in place have room beside them, so that no index changes.
fn making(schema: &str) -> String {
    format!(
        "CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE TABLE {schema}.meta (type text NOT NULL, format int NOT NULL);
         CREATE TABLE {schema}.head (version bigint NOT NULL) WITH (fillfactor = 10);
         CREATE TABLE {schema}.log (slot int PRIMARY KEY, version bigint NOT NULL,
             starts bytea[] NOT NULL, ends bytea[] NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE {schema}.pairs (key bytea PRIMARY KEY, value bytea NOT NULL);
         INSERT INTO {schema}.meta VALUES ('{TYPE}', {FORMAT});
         INSERT INTO {schema}.head VALUES (0);"
    )
}
