//! What the tests of this crate share: keys, a handler with many faces, and a rig to run it on.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_net::{
    Call, Connection, Handler, Identity, KeyRing, Peer, Request, Response, ServerOptions, Serving,
    Terms, Transport,
};
use kiln_types::{
    ClusterId, Code, CredentialLimits, CredentialRecord, Deadline, Error, KeyId, NodeId, Result,
    Secret, ServerKey, crc32c,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

pub const CLUSTER: ClusterId = ClusterId(0xc1);

pub fn server_key(secret: u8) -> ServerKey {
    ServerKey { cluster: CLUSTER, id: KeyId(1), secret: Secret([secret; 32]) }
}

pub fn record(name: &str, revoked: bool) -> CredentialRecord {
    let limits = CredentialLimits::default();
    CredentialRecord { name: name.into(), key: KeyId(1), revoked, limits }
}

/// A ring that knows the client `laptop`.
pub fn ring() -> Arc<KeyRing> {
    let ring = KeyRing::new(server_key(9));
    ring.set_credentials(&[record("laptop", false)]);
    Arc::new(ring)
}

pub fn client() -> Identity {
    Identity::Client(kiln_wire::credential(&server_key(9), "laptop").unwrap())
}

pub fn terms(node: u64) -> Terms {
    Terms { node: Some(NodeId(node)), ..Terms::CURRENT }
}

pub const ECHO: u16 = 1;
/// Answers with a pattern as long as the body says (u32).
pub const FILL: u16 = 2;
/// Answers with the payload's CRC32C.
pub const SUM: u16 = 3;
/// Answers after as many milliseconds as the body says (u32).
pub const SLEEP: u16 = 4;
pub const FAIL: u16 = 5;
pub const PANIC: u16 = 6;
/// Waits for [`Face::release`] before it answers.
pub const HOLD: u16 = 7;
/// Like FILL, but waits like HOLD first.
pub const HOLD_FILL: u16 = 8;
/// Answers with the hop and the name of the peer.
pub const WHO: u16 = 9;

/// The handler of the tests.
pub struct Face {
    pub env: Env,
    pub started: AtomicUsize,
    pub finished: AtomicUsize,
    pub held: AtomicUsize,
    pub held_max: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub gate: Semaphore,
}

impl Face {
    pub fn new(env: &Env) -> Arc<Self> {
        Arc::new(Self {
            env: env.clone(),
            started: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            held_max: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        })
    }

    pub fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    pub fn get(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    async fn hold(&self, request: &Request) {
        let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
        self.held_max.fetch_max(held, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.held.fetch_sub(1, Ordering::SeqCst);
        if request.cancelled.get() {
            self.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn answer(&self, peer: &Peer, mut request: Request) -> Result<Response> {
        match request.operation {
            ECHO => {
                let payload = request.payload.take().await?;
                let payload =
                    payload.slice(0..payload.len().min(request.receive_capacity as usize));
                Ok(Response::new(request.body).with_payload(payload))
            }
            FILL | HOLD_FILL => {
                if request.operation == HOLD_FILL {
                    self.hold(&request).await;
                }
                let bytes = pattern(number(&request.body) as usize);
                Ok(Response::new(request.body).with_payload(bytes))
            }
            SUM => {
                let crc = crc32c(&request.payload.take().await?);
                Ok(Response::new(crc.to_le_bytes().to_vec()))
            }
            SLEEP => {
                self.env.sleep(Duration::from_millis(u64::from(number(&request.body)))).await;
                Ok(Response::new(request.body))
            }
            FAIL => Err(Error::new(Code::StaleEpoch, "the file was cut").with_hint("look again")),
            PANIC => panic!("a handler that panics, on purpose"),
            HOLD => {
                self.hold(&request).await;
                Ok(Response::new(request.body))
            }
            WHO => Ok(Response::new(format!("{} {peer}", request.hop).into_bytes())),
            operation => Err(Error::new(Code::Unsupported, format!("operation {operation}"))),
        }
    }
}

#[async_trait]
impl Handler for Face {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let result = self.answer(peer, request).await;
        self.finished.fetch_add(1, Ordering::SeqCst);
        result
    }
}

fn number(body: &[u8]) -> u32 {
    u32::from_le_bytes(body.try_into().unwrap())
}

/// Bytes that differ by position.
pub fn pattern(length: usize) -> Bytes {
    let mut buffer = Buffer::zeroed(length);
    for (i, byte) in buffer.iter_mut().enumerate() {
        *byte = (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
    }
    buffer.freeze()
}

/// One server and one client on some transport.
pub struct Rig {
    pub env: Env,
    pub server: Arc<dyn Transport>,
    pub client: Arc<dyn Transport>,
    /// An address of the server's host with port 0.
    pub address: String,
}

/// A served rig.
pub struct Running {
    pub face: Arc<Face>,
    pub ring: Arc<KeyRing>,
    pub serving: Box<dyn Serving>,
}

impl Rig {
    pub fn options(&self) -> ServerOptions {
        ServerOptions { address: self.address.clone(), terms: terms(7), ..Default::default() }
    }

    pub async fn serve(&self, options: ServerOptions) -> Running {
        let (face, ring) = (Face::new(&self.env), ring());
        let handler: Arc<dyn Handler> = Arc::clone(&face) as _;
        let serving = self.server.serve(options, Arc::clone(&ring) as _, handler).await.unwrap();
        Running { face, ring, serving }
    }

    pub async fn connect(&self, running: &Running) -> Connection {
        self.try_connect(running).await.unwrap()
    }

    pub async fn try_connect(&self, running: &Running) -> Result<Connection> {
        self.client.connect(running.serving.address(), self.soon()).await
    }

    pub fn within(&self, millis: u64) -> Deadline {
        self.env.deadline_after(Duration::from_millis(millis))
    }

    pub fn soon(&self) -> Deadline {
        self.within(10_000)
    }

    pub fn call(&self, operation: u16, number: u32) -> Call {
        Call::new(operation, number.to_le_bytes().to_vec(), self.soon())
    }

    /// Waits until `done` says so.
    pub async fn eventually(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..5000 {
            if done() {
                return;
            }
            self.env.sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}");
    }

    /// Starts a call beside the caller.
    pub fn start(
        &self,
        connection: &Connection,
        call: Call,
    ) -> kiln_env::Task<Result<kiln_net::Answer>> {
        let connection = connection.clone();
        self.env.spawn("call", async move { connection.call(call).await })
    }
}
