//! A copy of everything while it is in use, page by page.

use crate::store::Store;
use kiln_kv::dump::{Pair, rest};
use kiln_kv::optimistic::Snapshot;
use kiln_kv::{RangeOptions, transact};
use kiln_types::{Code, Error, Monotonic, Result, Timestamp};
use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// A page is full when it has so many bytes; with one more pair it still fits into a frame.
const PAGE_BYTES: usize = 100 << 10;
/// Nobody goes on with a backup that was not asked for this long.
const IDLE: Duration = Duration::from_secs(60);

/// The backup that is being made, at most one.
#[derive(Default)]
pub(crate) struct Backups(Mutex<Option<Backup>>);

#[derive(Clone)]
struct Backup {
    id: u128,
    begun: Timestamp,
    view: Arc<dyn Snapshot>,
    asked: Monotonic,
}

/// The next pairs of a backup; none at the end.
pub(crate) struct BackupPage {
    pub(crate) id: u128,
    pub(crate) begun: Timestamp,
    pub(crate) pairs: Vec<Pair>,
}

impl Store {
    /// The pairs behind the key `after` of backup `id`, or of a new one.
    ///
    /// # Errors
    /// `Unsupported` when the engine has backups of its own, `Busy` while another one is made, `StaleHandle` for one
    /// that ended, or what kv reports.
    pub(crate) async fn backup(&self, id: Option<u128>, after: &[u8]) -> Result<BackupPage> {
        let backup = match id {
            Some(id) => self.go_on(id)?,
            None => self.begin_backup().await?,
        };
        let range = rest(&self.keys.all(), Some(after).filter(|after| !after.is_empty()));
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        let mut take = |key: &[u8], value: &[u8]| {
            bytes += key.len() + value.len();
            pairs.push((key.to_vec(), value.to_vec()));
            if bytes >= PAGE_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        backup.view.scan(&range, RangeOptions::default(), &mut take).await?;
        if pairs.is_empty() {
            self.backups.0.lock().take_if(|ended| ended.id == backup.id);
        }
        Ok(BackupPage { id: backup.id, begun: backup.begun, pairs })
    }

    /// Lets go of a backup that nobody goes on with: its view keeps what was removed since.
    pub(crate) fn forget_idle_backup(&self) {
        let now = self.env.now();
        self.backups.0.lock().take_if(|backup| now.since(backup.asked) >= IDLE);
    }

    async fn begin_backup(&self) -> Result<Backup> {
        // Whoever may not serve the tree may not copy it.
        let check =
            transact(&*self.kv, &self.env, "backup", |kv| Box::pin(crate::moving::check(kv)));
        check.await?;
        let Some(view) = self.kv.view()? else {
            let text = "the metadata is in an engine that has backups of its own";
            let hint = "pg_basebackup or pg_dump for a PostgreSQL, fdbbackup for a FoundationDB";
            return Err(Error::new(Code::Unsupported, text).with_hint(hint));
        };
        let (id, begun, asked) = (self.env.random_u128(), self.env.wall(), self.env.now());
        let backup = Backup { id, begun, view, asked };
        let mut current = self.backups.0.lock();
        if current.as_ref().is_some_and(|other| asked.since(other.asked) < IDLE) {
            let error = Error::new(Code::Busy, "another backup of the metadata is being made");
            return Err(error.with_hint("try again in a minute"));
        }
        *current = Some(backup.clone());
        Ok(backup)
    }

    fn go_on(&self, id: u128) -> Result<Backup> {
        let mut current = self.backups.0.lock();
        let Some(backup) = current.as_mut().filter(|backup| backup.id == id) else {
            let error =
                Error::new(Code::StaleHandle, "the backup was given up, or its server began anew");
            return Err(error.with_hint("begin it again"));
        };
        backup.asked = self.env.now();
        Ok(backup.clone())
    }
}
