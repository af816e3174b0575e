//! A client's place on a host: connects anew when its incarnation was given up.

use crate::board::{Board, Work};
use crate::namespaces::Host;
use kiln_client::{Client, File, NewFile, OpenMode, Options};
use kiln_env::Env;
use kiln_types::{Attr, Caller, Code, Context, Credential, Error, InodeId, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Event loops whose threads, and so their sockets, are on `host`.
pub(crate) fn runtime(host: &Host) -> Result<Runtime> {
    let host = host.clone();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all();
    builder.on_thread_start(move || host.take_thread().expect("invariant: the host is there"));
    builder.build().context("event loops of a client")
}

/// How to become a client.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) manager: String,
    pub(crate) credential: Credential,
    pub(crate) options: Options,
}

impl Entry {
    async fn connect(&self, env: &Env) -> Result<Arc<Client>> {
        let (managers, credential) = (vec![self.manager.clone()], self.credential.clone());
        let connect = Client::connect(env, managers, credential, self.options.clone());
        Box::pin(connect).await.map(Arc::new)
    }

    /// Tries until it is one.
    pub(crate) async fn enter(&self, board: &Board) -> Arc<Client> {
        loop {
            match self.connect(&board.env).await {
                Ok(client) => return client,
                Err(error) => tracing::debug!("no client yet: {error}"),
            }
            board.env.sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What several workers share.
pub(crate) struct Seat {
    pub(crate) board: Arc<Board>,
    entry: Entry,
    client: Mutex<Arc<Client>>,
    renewing: tokio::sync::Mutex<()>,
}

impl Seat {
    pub(crate) async fn take(board: Arc<Board>, entry: Entry) -> Arc<Self> {
        let client = Mutex::new(entry.enter(&board).await);
        Arc::new(Self { board, entry, client, renewing: tokio::sync::Mutex::default() })
    }

    pub(crate) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.lock())
    }

    /// After an error of `client`: a new incarnation, when this one was given up.
    pub(crate) async fn recover(&self, client: &Arc<Client>, error: &Error) {
        self.board.env.sleep(Duration::from_millis(100)).await;
        if error.code() != Code::ClientEvicted {
            return;
        }
        let _one = self.renewing.lock().await;
        if Arc::ptr_eq(&self.client(), client) {
            let fresh = self.entry.enter(&self.board).await;
            *self.client.lock() = fresh;
        }
    }

    /// Makes a file that was not there.
    pub(crate) async fn create(&self, parent: InodeId, name: &str) -> Result<File> {
        let client = self.client();
        let open = OpenMode::EDIT;
        let new = NewFile { parent, name: name.as_bytes(), mode: 0o644, exclusive: true, open };
        let caller = Caller::root();
        let created = client.create(&caller, &new);
        self.board.time(Work::Names, || format!("create {name}"), created).await
    }

    pub(crate) async fn open(&self, inode: InodeId, mode: OpenMode) -> Result<File> {
        let (client, caller) = (self.client(), Caller::root());
        let opened = client.open(&caller, inode, mode);
        self.board.time(Work::Names, || format!("open {inode}"), opened).await
    }

    /// The entry of a name, when there is one.
    pub(crate) async fn lookup(&self, parent: InodeId, name: &str) -> Result<Option<Attr>> {
        let (client, caller) = (self.client(), Caller::root());
        let found = async {
            match client.lookup(&caller, parent, name.as_bytes()).await {
                Ok(attr) => Ok(Some(attr)),
                Err(error) if error.code() == Code::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.board.time(Work::Names, || format!("lookup {name}"), found).await
    }

    /// A pause between two operations.
    pub(crate) async fn breathe(&self, random: &mut fastrand::Rng) {
        self.board.env.sleep(Duration::from_millis(random.u64(2..20))).await;
    }
}
