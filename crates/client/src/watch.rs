//! What other clients change: asked of every living metadata server, merged into one.
//!
//! To ask a server for the next changes is to say that the last ones are in no cache any more: it answers those who
//! made them only then, or when this client has been silent for so long that it keeps nothing ([`VALID`]).

use crate::client::Client;
use crate::closing::Closing;
use kiln_env::{Env, Task};
use kiln_net::{Call, ConnectionPool, PoolOptions, Transport};
use kiln_rpc::convert::id_bytes;
use kiln_rpc::metadata::{CLAIM, WATCH, decode, request};
use kiln_rpc::v1;
use kiln_types::{
    ClientId, Code, Deadline, Error, InodeId, Node, NodeId, Result, RoutingInfo, ServiceKind,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Answers of servers that may wait for the receiver: one of each is under way.
const QUEUE: usize = 64;
/// What is in a cache counts for so long after the last question that a server has answered; the server waits a
/// second longer.
const VALID: Duration = Duration::from_secs(3);
/// How long a server may take for a page of what is open.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
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
/// A change is committed before it is told, and its maker gets the answer when it was [heard](Heard::done). An
/// answer to a call that was under way when a change arrived may be older than that change: it must
/// not be kept.
pub struct Changes {
    queue: mpsc::Receiver<Heard>,
    connected: watch::Receiver<bool>,
    _task: Task<()>,
}

/// Changes, and who waits until they are in no cache any more.
#[derive(Debug)]
pub struct Heard {
    /// What changed.
    pub changes: Vec<Change>,
    done: oneshot::Sender<()>,
}

impl Heard {
    /// Nothing of it is in a cache any more.
    pub fn done(self) {
        // An error: the server is not asked any more.
        let _ = self.done.send(());
    }
}

impl Changes {
    /// The next changes. [`Change::Everything`] comes whenever a server is reached (again).
    ///
    /// # Errors
    /// `Cancelled` when the client that was watched for is gone.
    pub async fn next(&mut self) -> Result<Heard> {
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
            transport: Arc::clone(&self.transport),
            routing: self.routing.clone(),
            queue: sender,
            closing: Arc::clone(&self.closing),
            followed: Mutex::default(),
            standing,
        };
        let task = self.env.spawn("watch", Arc::new(watching).run());
        Changes { queue, connected, _task: task }
    }
}

/// The questions of one [`Changes`].
struct Watching {
    env: Env,
    client: ClientId,
    transport: Arc<dyn Transport>,
    routing: watch::Receiver<Arc<RoutingInfo>>,
    queue: mpsc::Sender<Heard>,
    closing: Arc<Closing>,
    /// The servers that answer, and whether they know that there are others.
    followed: Mutex<BTreeMap<NodeId, bool>>,
    standing: watch::Sender<bool>,
}

fn servers(routing: &RoutingInfo) -> impl Iterator<Item = &Node> {
    routing.nodes.values().filter(|node| node.kind == ServiceKind::Meta)
}

/// One server's answers.
struct Stream {
    node: NodeId,
    address: String,
    connections: Arc<ConnectionPool>,
    watch: u64,
    seen: u64,
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
            self.set_followed(|followed| followed.retain(|node, _| known.contains(node)));
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

    /// Whether one metadata server is all there is: then it knows what this client may have in a cache.
    fn is_only(&self) -> bool {
        servers(&self.routing.borrow()).count() == 1
    }

    fn set_followed(&self, change: impl FnOnce(&mut BTreeMap<NodeId, bool>)) {
        let routing = Arc::clone(&self.routing.borrow());
        let only = self.is_only();
        let mut followed = self.followed.lock();
        change(&mut followed);
        let mut living = servers(&routing).filter(|node| node.alive).peekable();
        let follows = |node: &Node| followed.get(&node.id).is_some_and(|knows| *knows || only);
        let is_up = living.peek().is_some() && living.all(follows);
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

    async fn follow_once(self: &Arc<Self>, node: NodeId, was_up: &mut bool) -> Result<()> {
        let address = self.routing.borrow().nodes.get(&node).map(|node| node.address.clone());
        let address = address.ok_or_else(|| Error::from(Code::UnknownMember))?;
        // A connection of its own: calls that wait hold up no changes.
        let transport = Arc::clone(&self.transport);
        let connections = ConnectionPool::new(transport, PoolOptions::default(), self.env.clone());
        let connections = Arc::new(connections);
        let watch = self.env.random_u64();
        let mut stream = Stream { node, address, connections, watch, seen: 0 };
        let mut valid_until = self.env.deadline_after(VALID);
        let mut claims = None;
        loop {
            let only = self.is_only();
            let sent = self.env.now();
            let changes = self.ask(&mut stream, only, valid_until).await?;
            valid_until = Deadline(sent.plus(VALID));
            self.require_known(&changes)?;
            if claims.is_none() {
                let way = (Arc::clone(&stream.connections), stream.address.clone());
                claims = Some(self.env.spawn("claims", Arc::clone(self).claim(way)));
            }
            self.pass_on(changes, valid_until).await?;
            *was_up = true;
            self.set_followed(|followed| {
                followed.insert(node, !only);
            });
        }
    }

    /// Tells a server what is open for reading, until it has heard: it may have started anew.
    async fn claim(self: Arc<Self>, (connections, address): (Arc<ConnectionPool>, String)) {
        while let Err(error) = self.claim_once(&connections, &address).await {
            if error.code() == Code::Unsupported {
                return;
            }
            tracing::debug!(%error, "what is open is not told yet");
            self.env.sleep(PAUSE_MAX).await;
        }
    }

    async fn claim_once(&self, connections: &ConnectionPool, address: &str) -> Result<()> {
        let mut pages = self.closing.reads.claims();
        let last = pages.pop().unwrap_or_default();
        let pages = pages.into_iter().map(|page| (page, false)).chain([(last, true)]);
        for (claims, all) in pages {
            let ask = v1::ClaimRequest { client: id_bytes(self.client), claims, all };
            let deadline = self.env.deadline_after(CLAIM_TIMEOUT);
            let call = Call::new(CLAIM, request(self.client, &ask), deadline);
            let told = connections.call(address, call).await;
            self.closing.reads.end_closed(&ask.claims, &self.closing);
            told?;
        }
        Ok(())
    }

    async fn ask(&self, stream: &mut Stream, only: bool, until: Deadline) -> Result<v1::Changes> {
        let ask = v1::WatchRequest { watch: stream.watch, seen: stream.seen, only };
        let call = Call::new(WATCH, request(self.client, &ask), until);
        let answer = stream.connections.call(&stream.address, call).await?;
        let changes: v1::Changes = decode(&answer.body)?;
        stream.seen += 1;
        if changes.number != stream.seen {
            let text =
                format!("message {} of {}, not {}", changes.number, stream.node, stream.seen);
            return Err(Error::new(Code::ConnectionLost, text));
        }
        Ok(changes)
    }

    /// A server that this client does not know of yet may change things unheard.
    fn require_known(&self, changes: &v1::Changes) -> Result<()> {
        let routing = self.routing.borrow();
        let is_known = |id: &u64| routing.nodes.contains_key(&NodeId(*id));
        match changes.servers.iter().all(is_known) {
            true => Ok(()),
            false => Err(Error::new(Code::NotReady, "there is a metadata server not known yet")),
        }
    }

    /// Ends when nothing of it is in a cache any more.
    async fn pass_on(&self, changes: v1::Changes, until: Deadline) -> Result<()> {
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
        let changes: Vec<_> =
            everything.into_iter().chain(inodes).chain(names).chain(locks).collect();
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || Error::new(Code::Cancelled, "nobody takes the changes");
        let (done, heard) = oneshot::channel();
        let heard = async {
            self.queue.send(Heard { changes, done }).await.map_err(|_| gone())?;
            heard.await.map_err(|_| gone())
        };
        self.env.until(until, "caches", heard).await?
    }
}
