//! How far files reach that are written for long: told from time to time, many in one call.

use crate::file::Shared;
use crate::many::Batches;
use crate::meta::Meta;
use kiln_env::Env;
use kiln_rpc::v1;
use kiln_types::{Action, Attr, Caller, Result};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard};

/// For about how long something may be written that others do not see.
const PERIOD: Duration = Duration::from_secs(5);
/// Files in one call.
const BATCH: usize = 128;

/// The files of which there is something to tell. There are never more than there are open files.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Vec<Weak<Shared>>>,
    bell: Notify,
}

/// A file, held while what it has to tell is told, and how much that is if it is all.
struct Told {
    file: Arc<Shared>,
    noted: Option<u64>,
    _one: OwnedMutexGuard<()>,
}

impl Reports {
    /// There is something to tell of `file`.
    pub(crate) fn soon(&self, file: &Arc<Shared>) {
        if !file.set_waiting(true) {
            self.waiting.lock().push(Arc::downgrade(file));
            self.bell.notify_one();
        }
    }

    /// Tells what comes. What fails is told with the next report, or by fsync and close.
    pub(crate) async fn run(self: Arc<Self>, env: Env, meta: Arc<Meta>) {
        loop {
            self.bell.notified().await;
            env.sleep(env.jittered(PERIOD)).await;
            let waiting = std::mem::take(&mut *self.waiting.lock());
            let mut files: Vec<_> = waiting.iter().filter_map(Weak::upgrade).collect();
            files.iter().for_each(|file| _ = file.set_waiting(false));
            while let Some(first) = files.first() {
                // As whom it is told decides about set-user-id bits.
                let caller = first.session.caller().clone();
                let mine = |file: &mut Arc<Shared>| *file.session.caller() == caller;
                let batch: Vec<_> = files.extract_if(.., mine).collect();
                self.tell(&meta, &caller, &batch).await;
            }
        }
    }

    async fn tell(&self, meta: &Meta, caller: &Caller, files: &[Arc<Shared>]) {
        let (mut told, mut messages) = (Vec::new(), Vec::new());
        for file in files {
            let Ok(_one) = Arc::clone(&file.reporting).try_lock_owned() else {
                // It is told of now, perhaps not of everything.
                self.soon(file);
                continue;
            };
            let Some((message, noted)) = file.told() else { continue };
            messages.push(message);
            told.push(Told { file: Arc::clone(file), noted, _one });
        }
        let mut batches = Batches::new(&messages, BATCH);
        while let Some(batch) = batches.next() {
            batches.answered(batch, report(meta, caller, batch).await);
        }
        for (Told { file, noted, .. }, result) in told.iter().zip(batches.results) {
            match result {
                Ok(attr) => {
                    noted.iter().for_each(|noted| file.note_reported(*noted));
                    file.session.take_attr(attr.clone());
                    *file.told.lock() = Some(attr);
                }
                Err(error) => {
                    if matches!(error.action(), Action::Retry | Action::Refresh) {
                        self.soon(file);
                    }
                    tracing::debug!(%error, "the length of an open file is not told");
                }
            }
        }
    }
}

async fn report(
    meta: &Meta,
    caller: &Caller,
    files: &[v1::FileReport],
) -> Result<Vec<Result<Attr>>> {
    let turn = meta.turn(caller);
    let request = v1::ReportRequest { origin: turn.origin(), files: files.to_vec() };
    meta.report(request).await?.of(files.len())
}
