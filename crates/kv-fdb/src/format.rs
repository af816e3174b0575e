//! The mark that says whose keys these are, and in which format.

use crate::errors::{Step, refused};
use crate::{COMMIT_TIME_MAX, Shared};
use foundationdb::RangeOption;
use kiln_kv::KEY_END;
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use std::time::Duration;

const FORMAT: &str = "kiln-kv-fdb 1";
const ATTEMPTS_MAX: usize = 20;

/// Checks the format, or writes it where there is nothing.
pub(crate) async fn open(shared: &Arc<Shared>) -> Result<()> {
    let mut attempt = 1;
    loop {
        let error = match try_open(shared).await {
            Err(error) => error,
            Ok(()) => return Ok(()),
        };
        let again =
            matches!(error.code(), Code::Conflict | Code::MaybeCommitted | Code::TransactionTooOld);
        if !again || attempt == ATTEMPTS_MAX {
            return Err(error);
        }
        shared.env.sleep(shared.env.jittered(Duration::from_millis(50))).await;
        attempt += 1;
    }
}

async fn try_open(shared: &Shared) -> Result<()> {
    let transaction = shared.transaction()?;
    let mark = shared.key(&[KEY_END]);
    let found = shared.wait("format", transaction.get(&mark, false)).await?;
    if let Some(found) = found {
        return check(&found);
    }
    let (start, end) = (shared.key(&[]), mark.clone());
    let first = RangeOption { limit: Some(1), ..RangeOption::from((start, end)) };
    if !shared.wait("first key", transaction.get_range(&first, 1, false)).await?.is_empty() {
        let error = Error::invalid("in this FoundationDB something else uses keys of that name");
        return Err(error.with_hint("give the cluster another one: kv.foundationdb.name"));
    }
    transaction.set(&mark, FORMAT.as_bytes());
    let committed = shared.env.timeout(COMMIT_TIME_MAX, "format", transaction.commit()).await;
    match committed? {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(Step::Commit, "format", *error)),
    }
}

fn check(found: &[u8]) -> Result<()> {
    if found == FORMAT.as_bytes() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(found).replace(char::is_control, "?");
    let text = format!("the store has the format '{found}'; this build knows '{FORMAT}'");
    Err(Error::new(Code::Unsupported, text).with_hint("start the build that wrote it"))
}
