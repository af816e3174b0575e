//! A client that watches: asks again and again, as [`kiln_client`] does, and keeps what it is told.

use crate::store::Store;
use crate::watch::{Ask, Changes};
use kiln_env::{Env, Task};
use kiln_types::ClientId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Watcher {
    heard: Arc<Mutex<Changes>>,
    _task: Task<()>,
}

impl Watcher {
    /// Begins to watch; `take` gets each message before the next one is asked for.
    pub(crate) fn passing_on(
        env: &Env,
        store: &Arc<Store>,
        client: u128,
        (only, confined): (bool, bool),
        mut take: impl FnMut(&Changes) + Send + 'static,
    ) -> Self {
        let heard = Arc::new(Mutex::new(Changes::default()));
        let (into, store, watch) = (Arc::clone(&heard), Arc::clone(store), env.random_u64());
        let env_of_task = env.clone();
        let task = env.spawn("watcher", async move {
            let mut seen = 0;
            loop {
                let ask = Ask { watch, seen, only, confined };
                let (number, changes) = match store.watch(ClientId(client), "", ask).await {
                    Ok(message) => message,
                    // Its store may not answer; it has not begun then.
                    Err(_) if seen == 0 => {
                        env_of_task.sleep(Duration::from_millis(1)).await;
                        continue;
                    }
                    Err(_) => return into.lock().extend(&Changes::anything()),
                };
                assert_eq!(number, seen + 1);
                seen = number;
                take(&changes);
                into.lock().extend(&changes);
            }
        });
        Self { heard, _task: task }
    }

    /// Watches, and has heard the first message.
    pub(crate) async fn new(env: &Env, store: &Arc<Store>, client: u128, only: bool) -> Self {
        let watcher = Self::passing_on(env, store, client, (only, false), |_| {});
        watcher.first(env).await;
        watcher
    }

    /// Waits for the first message.
    pub(crate) async fn first(&self, env: &Env) {
        while !self.take().is_lost() {
            env.sleep(Duration::from_millis(1)).await;
        }
    }

    /// What was told since this was asked last.
    pub(crate) fn take(&self) -> Changes {
        std::mem::take(&mut *self.heard.lock())
    }
}
