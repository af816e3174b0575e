//! What other clients change: a stream from every living metadata server, merged into one.

use crate::client::Client;
use kiln_env::{Env, Task};
use kiln_net::{Identity, control_channel};
use kiln_rpc::convert::id_bytes;
use kiln_rpc::error_from_status;
use kiln_rpc::v1::{self, meta_client::MetaClient};
use kiln_types::{ClientId, Code, Error, InodeId, Node, NodeId, Result, RoutingInfo, ServiceKind};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Changes that may wait for the receiver. A server that has to wait for it says in the end that
/// something was lost.
const QUEUE: usize = 1024;
/// A server that says nothing for so long is gone; it says something every second.
const SILENCE_MAX: Duration = Duration::from_secs(4);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Something that is not any more as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The attributes of an inode, or the inode is gone; with `content`, what is in the file, too.
    Inode {
        /// The inode.
        inode: InodeId,
        /// Not only attributes.
        content: bool,
    },
    /// What a directory has under a name: it was made, removed, or leads to something else.
    Name {
        /// The directory.
        parent: InodeId,
        /// The name in it.
        name: Vec<u8>,
    },
    /// Locks on an inode ended that somebody waits for.
    Unlocked {
        /// The inode.
        inode: InodeId,
    },
    /// Another client wants to append to an inode: who has the right to gives it back.
    Append {
        /// The inode.
        inode: InodeId,
    },
    /// Anything: changes were or may have been missed.
    Everything,
}

/// The changes that other clients make, for who keeps anything in a cache.
///
/// A change is committed before it is told, and told about when its maker gets the answer. So an
/// answer to a call that was under way when a change arrived may be older than that change: it must
/// not be kept.
pub struct Changes {
    queue: mpsc::Receiver<Change>,
    connected: watch::Receiver<bool>,
    _task: Task<()>,
}

impl Changes {
    /// The next change. [`Change::Everything`] comes whenever a server is reached (again).
    ///
    /// # Errors
    /// `Cancelled` when the client that was watched for is gone.
    pub async fn next(&mut self) -> Result<Change> {
        let ended = || Error::new(Code::Cancelled, "the client has ended");
        self.queue.recv().await.ok_or_else(ended)
    }

    /// Whether changes arrive now: from every living metadata server, none of them silent for more
    /// than a few seconds. While it is `false`, answers must not be kept.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }
}

impl Client {
    /// Begins to tell what other clients change. This client's own changes are left out.
    pub fn watch(&self) -> Changes {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (standing, connected) = watch::channel(false);
        let watching = Watching {
            env: self.env.clone(),
            client: self.id(),
            identity: self.identity.clone(),
            routing: self.routing.clone(),
            queue: sender,
            followed: Mutex::default(),
            standing,
        };
        let task = self.env.spawn("watch", Arc::new(watching).run());
        Changes { queue, connected, _task: task }
    }
}

/// The streams of one [`Changes`].
struct Watching {
    env: Env,
    client: ClientId,
    identity: Identity,
    routing: watch::Receiver<Arc<RoutingInfo>>,
    queue: mpsc::Sender<Change>,
    /// The servers from which changes arrive.
    followed: Mutex<BTreeSet<NodeId>>,
    standing: watch::Sender<bool>,
}

fn servers(routing: &RoutingInfo) -> impl Iterator<Item = &Node> {
    routing.nodes.values().filter(|node| node.kind == ServiceKind::Meta)
}

impl Watching {
    /// Follows every metadata server that is known.
    async fn run(self: Arc<Self>) {
        let mut routing = self.routing.clone();
        let mut streams: BTreeMap<NodeId, Task<()>> = BTreeMap::new();
        loop {
            let known: BTreeSet<NodeId> =
                servers(&routing.borrow_and_update()).map(|n| n.id).collect();
            streams.retain(|node, _| known.contains(node));
            self.set_followed(|followed| followed.retain(|node| known.contains(node)));
            for node in known {
                streams.entry(node).or_insert_with(|| {
                    self.env.spawn("watch of a server", Arc::clone(&self).follow(node))
                });
            }
            if routing.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn set_followed(&self, change: impl FnOnce(&mut BTreeSet<NodeId>)) {
        let routing = Arc::clone(&self.routing.borrow());
        let mut followed = self.followed.lock();
        change(&mut followed);
        let mut living = servers(&routing).filter(|node| node.alive).peekable();
        let is_up = living.peek().is_some() && living.all(|node| followed.contains(&node.id));
        self.standing.send_if_modified(|standing| std::mem::replace(standing, is_up) != is_up);
    }

    async fn follow(self: Arc<Self>, node: NodeId) {
        let mut pause = PAUSE_MIN;
        loop {
            let mut was_up = false;
            if let Err(error) = self.follow_once(node, &mut was_up).await {
                tracing::debug!(%node, %error, "no changes are heard of");
            }
            self.set_followed(|followed| {
                followed.remove(&node);
            });
            pause = if was_up { PAUSE_MIN } else { PAUSE_MAX.min(pause * 2) };
            self.env.sleep(self.env.jittered(pause)).await;
        }
    }

    async fn follow_once(&self, node: NodeId, was_up: &mut bool) -> Result<()> {
        let address = self.routing.borrow().nodes.get(&node).map(|node| node.address.clone());
        let address = address.ok_or_else(|| Error::from(Code::UnknownMember))?;
        // A connection of its own: changes that wait for the receiver hold up no calls.
        let channel = control_channel(&address, self.identity.clone(), self.env.clone())?;
        let mut server = MetaClient::new(channel);
        let request = server.watch(v1::WatchRequest { client: id_bytes(self.client) });
        let stream = self.env.timeout(SILENCE_MAX, "watch", request).await?;
        let mut stream = stream.map_err(|status| error_from_status(&status))?.into_inner();
        loop {
            let message = self.env.timeout(SILENCE_MAX, "changes", stream.message()).await?;
            let message = message.map_err(|status| error_from_status(&status))?;
            let ended = || Error::new(Code::ConnectionLost, "the server ended the stream");
            self.pass_on(message.ok_or_else(ended)?).await?;
            if !*was_up {
                *was_up = true;
                self.set_followed(|followed| {
                    followed.insert(node);
                });
            }
        }
    }

    async fn pass_on(&self, changes: v1::Changes) -> Result<()> {
        let everything = changes.lost.then_some(Change::Everything);
        let inodes = changes.inodes.into_iter().map(|changed| Change::Inode {
            inode: InodeId(changed.inode),
            content: changed.content,
        });
        let names = changes.names.into_iter().map(|changed| Change::Name {
            parent: InodeId(changed.parent),
            name: changed.name.to_vec(),
        });
        let unlocked = changes.unlocked.into_iter();
        let unlocked = unlocked.map(|inode| Change::Unlocked { inode: InodeId(inode) });
        let appends = changes.appends.into_iter();
        let appends = appends.map(|inode| Change::Append { inode: InodeId(inode) });
        let locks = unlocked.chain(appends);
        for change in everything.into_iter().chain(inodes).chain(names).chain(locks) {
            let gone = |_| Error::new(Code::Cancelled, "nobody takes the changes");
            self.queue.send(change).await.map_err(gone)?;
        }
        Ok(())
    }
}
