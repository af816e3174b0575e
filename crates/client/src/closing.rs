//! Sessions with nothing left to report: ended soon, many in one call.

use crate::meta::Meta;
use crate::reads::Reads;
use kiln_env::Env;
use kiln_rpc::convert::id_bytes;
use kiln_rpc::v1;
use kiln_types::ClientId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Sessions in one call.
const BATCH: usize = 64;
/// How long others may join a session that ends.
const PAUSE: Duration = Duration::from_millis(20);

/// The sessions that wait for their end. There are never more than there were open files.
#[derive(Default)]
pub(crate) struct Closing {
    /// What is open for reading.
    pub(crate) reads: Reads,
    waiting: Mutex<Vec<Vec<u8>>>,
    bell: Notify,
}

impl Closing {
    /// Ends a session soon.
    pub(crate) fn end(&self, session: Vec<u8>) {
        self.reads.remove(&session);
        self.waiting.lock().push(session);
        self.bell.notify_one();
    }

    /// Ends what comes. What the metadata service does not hear of it ends itself, with the client.
    pub(crate) async fn run(self: Arc<Self>, env: Env, meta: Arc<Meta>, client: ClientId) {
        loop {
            self.bell.notified().await;
            env.sleep(PAUSE).await;
            while let Some(sessions) = self.batch() {
                let sessions = sessions.into_iter().map(Into::into).collect();
                let request = v1::EndSessionsRequest { client: id_bytes(client), sessions };
                if let Err(error) = meta.end_sessions(request).await {
                    tracing::warn!(%error, "closed files stay open at the metadata service");
                }
            }
        }
    }

    fn batch(&self) -> Option<Vec<Vec<u8>>> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(BATCH);
        (count > 0).then(|| waiting.drain(..count).collect())
    }
}
