//! Goal: whatever comes to a listening port, the server refuses it clearly, counts it, and goes on.
//! Method: speak to a real server over plain sockets, with the pure machines of `kiln_wire` where a
//! part of the protocol is kept.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use kiln_env::Env;
use kiln_memory::Buffer;
use kiln_net::{
    Authority, Counters, Credit, Handler, Identity, Purpose, Server, ServerOptions, Serving,
    TcpTransport, Terms, Transport,
};
use kiln_types::{ClusterId, Code, Error, KeyId, Result, Secret};
use kiln_wire::{
    Connecting, FRAME_HEADER_BYTES, FrameHeader, FrameKind, HANDSHAKE_PREFIX_BYTES, decode_error,
    handshake_bytes,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn rig() -> Rig {
    let env = Env::real();
    let server = TcpTransport::new(Identity::Server(server_key(9)), env.clone());
    let client = TcpTransport::new(client(), env.clone());
    let address = "127.0.0.1:0".into();
    Rig { env, server: Arc::new(server), client: Arc::new(client), address }
}

impl Rig {
    fn options_quick(&self) -> ServerOptions {
        ServerOptions { handshake_timeout: Duration::from_millis(200), ..self.options() }
    }

    /// The server still answers whoever may ask.
    async fn assert_alive(&self, running: &Running) {
        let connection = self.connect(running).await;
        connection.call(self.call(ECHO, 1)).await.unwrap();
    }

    async fn counted(
        &self,
        running: &Running,
        counter: impl Fn(&Counters) -> &AtomicU64,
        count: u64,
    ) {
        let counters = running.serving.counters();
        let counted = || counter(counters).load(Ordering::Relaxed) == count;
        self.eventually("it is counted", counted).await;
    }
}

async fn socket(running: &Running) -> TcpStream {
    TcpStream::connect(running.serving.address()).await.unwrap()
}

async fn receive(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut prefix = [0; HANDSHAKE_PREFIX_BYTES];
    socket.read_exact(&mut prefix).await?;
    let mut message = vec![0; handshake_bytes(&prefix).unwrap()];
    message[..HANDSHAKE_PREFIX_BYTES].copy_from_slice(&prefix);
    socket.read_exact(&mut message[HANDSHAKE_PREFIX_BYTES..]).await?;
    Ok(message)
}

/// A handshake by hand.
async fn shake(
    socket: &mut TcpStream,
    identity: Identity,
    terms: Terms,
    purpose: Purpose,
) -> Result<()> {
    let (connecting, hello) = Connecting::start(identity, terms, purpose, None, [5; 32]);
    socket.write_all(&hello).await.unwrap();
    let (proving, proof) = connecting.challenge(&receive(socket).await.unwrap())?;
    socket.write_all(&proof).await.unwrap();
    proving.welcome(&receive(socket).await.unwrap()).map(|_| ())
}

async fn frame(socket: &mut TcpStream) -> Result<(FrameHeader, Vec<u8>)> {
    let mut header = [0; FRAME_HEADER_BYTES];
    let lost = |error: std::io::Error| Error::local("read", &error);
    socket.read_exact(&mut header).await.map_err(lost)?;
    let header = FrameHeader::decode(&header)?;
    let mut body = vec![0; header.body_bytes as usize];
    socket.read_exact(&mut body).await.map_err(lost)?;
    Ok((header, body))
}

/// A connection of the data plane by hand, after its credit.
async fn raw_connection(running: &Running) -> TcpStream {
    let mut socket = socket(running).await;
    shake(&mut socket, client(), Terms::CURRENT, Purpose::Data).await.unwrap();
    let (header, body) = frame(&mut socket).await.unwrap();
    assert_eq!(header.kind, FrameKind::Credit);
    assert!(Credit::decode(&body).is_ok());
    socket
}

#[tokio::test]
async fn garbage_is_refused_and_the_server_lives() {
    let rig = rig();
    let running = rig.serve(rig.options_quick()).await;
    let mut random = vec![0; 4096];
    rig.env.fill_random(&mut random);
    random[0] = b'x';
    let http = b"GET / HTTP/1.1\r\nHost: kiln\r\n\r\n".to_vec();
    let h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let tls = [vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], vec![7; 500]].concat();
    let zeros = vec![0; 100_000];
    // A message that says it is longer than any may be.
    let long = [b"KILN\x01\x01\xff\xff".to_vec(), vec![0; 70_000]].concat();
    let all = [random, http, h2, tls, zeros, long];
    for bytes in &all {
        let mut socket = socket(&running).await;
        // The server may close before it has read all.
        let _ = socket.write_all(bytes).await;
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    }
    rig.counted(&running, |counters| &counters.refused.garbage, all.len() as u64).await;
    rig.assert_alive(&running).await;
}

#[tokio::test]
async fn the_refusal_of_garbage_can_be_read() {
    let rig = rig();
    let running = rig.serve(rig.options_quick()).await;
    let mut socket = socket(&running).await;
    socket.write_all(b"12345678").await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("KILN") && text.contains("not kiln's protocol"), "{text}");
}

#[tokio::test]
async fn half_handshakes_end_in_time() {
    let rig = rig();
    let running = rig.serve(rig.options_quick()).await;
    let (_, hello) = Connecting::start(client(), Terms::CURRENT, Purpose::Data, None, [5; 32]);
    // Some hang up in the middle, some stay and say nothing more, some send a byte now and then.
    for cut in [0, 1, 7, 8, 50] {
        let mut socket = socket(&running).await;
        socket.write_all(&hello[..cut]).await.unwrap();
    }
    rig.counted(&running, |counters| &counters.refused.hung_up, 5).await;
    let mut silent = Vec::new();
    for cut in [0, 5, 30] {
        let mut socket = socket(&running).await;
        socket.write_all(&hello[..cut]).await.unwrap();
        silent.push(socket);
    }
    let mut slow = socket(&running).await;
    for byte in &hello {
        if slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        rig.env.sleep(Duration::from_millis(5)).await;
    }
    rig.counted(&running, |counters| &counters.refused.timed_out, 4).await;
    rig.assert_alive(&running).await;
}

#[tokio::test]
async fn open_handshakes_are_bounded_and_the_oldest_goes() {
    let rig = rig();
    let options = ServerOptions { handshakes_max: 10, ..rig.options() };
    let running = rig.serve(options).await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(socket(&running).await);
    }
    rig.counted(&running, |counters| &counters.refused.crowded, 40).await;
    rig.assert_alive(&running).await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let rig = rig();
    let running = rig.serve(ServerOptions { connections_max: 2, ..rig.options() }).await;
    let (first, _second) = (rig.connect(&running).await, rig.connect(&running).await);
    assert!(rig.try_connect(&running).await.is_err());
    rig.counted(&running, |counters| &counters.refused.crowded, 1).await;
    drop(first);
    rig.counted(&running, |counters| &counters.open, 1).await;
    rig.assert_alive(&running).await;
}

#[tokio::test]
async fn strangers_hear_why() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    running.ring.set_credentials(&[record("laptop", false), record("old", true)]);
    let credential = |secret, name| kiln_wire::credential(&server_key(secret), name).unwrap();
    let foreign = {
        let mut key = server_key(9);
        key.cluster = ClusterId(0xc2);
        Identity::Server(key)
    };
    let rotated = {
        let mut key = server_key(9);
        key.id = KeyId(4);
        Identity::Server(key)
    };
    let newer = Terms { version_min: 8, version_max: 9, ..Terms::CURRENT };
    let cases = [
        (foreign, Terms::CURRENT, Code::WrongCluster, "this server belongs to cluster 0000"),
        (rotated, Terms::CURRENT, Code::NotAuthenticated, "does not know server key 4"),
        (client(), newer, Code::ProtocolMismatch, "this server speaks 1 to 1, the caller 8 to 9"),
        (
            Identity::Client(credential(8, "laptop")),
            Terms::CURRENT,
            Code::NotAuthenticated,
            "the secret of credential 'laptop' is wrong",
        ),
        (
            Identity::Client(credential(9, "old")),
            Terms::CURRENT,
            Code::NotAuthorized,
            "credential 'old' was revoked",
        ),
    ];
    for (identity, terms, code, words) in cases {
        let transport = TcpTransport::new(identity, rig.env.clone()).with_terms(terms);
        let error = transport.connect(running.serving.address(), rig.soon()).await.err().unwrap();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(words), "{error}");
        assert!(error.message().contains(running.serving.address()), "{error}");
    }
    let refused = &running.serving.counters().refused;
    let counts = refused.by_reason().map(|(_, count)| count);
    assert_eq!(counts, [0, 0, 0, 1, 1, 2, 1, 0, 0]);
    rig.assert_alive(&running).await;
}

#[tokio::test]
async fn what_is_no_kiln_server_is_named() {
    let rig = rig();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let web = rig.env.spawn("web", async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut start = [0; 16];
            socket.read_exact(&mut start).await.unwrap();
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    let error = rig.client.connect(&address, rig.soon()).await.err().unwrap();
    assert_eq!(error.code(), Code::ProtocolMismatch);
    assert!(error.message().contains("is not a kiln server"), "{error}");
    drop(web);
}

#[tokio::test]
async fn a_silent_server_ends_the_attempt() {
    let rig = rig();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let start = rig.env.now();
    let error = rig.client.connect(&address, rig.within(100)).await.err().unwrap();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(rig.env.now().since(start) < Duration::from_secs(2));
}

#[tokio::test]
async fn addresses_that_cannot_be_had_are_explained() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    let bind = |address: &str| {
        let options = ServerOptions { address: address.into(), ..rig.options() };
        let ring: Arc<dyn Authority> = Arc::clone(&running.ring) as _;
        Server::bind(options, ring, rig.env.clone())
    };
    let error = bind(running.serving.address()).await.err().unwrap();
    assert_eq!(error.code(), Code::Busy);
    let port = running.serving.address().rsplit_once(':').unwrap().1;
    assert!(error.to_string().contains(&format!("port {port} on 127.0.0.1 is in use")), "{error}");
    let error = bind("192.0.2.1:7").await.err().unwrap();
    assert!(error.message().contains("192.0.2.1 is not an address of this machine"), "{error}");
    assert_eq!(bind("nonsense").await.err().unwrap().code(), Code::Invalid);
    let error = rig.client.connect("nonsense", rig.soon()).await.err().unwrap();
    assert_eq!(error.code(), Code::Invalid);
    // The port of a server that stopped is free at once.
    let address = running.serving.address().to_owned();
    rig.assert_alive(&running).await;
    running.serving.shutdown(Duration::from_secs(1)).await;
    let options = ServerOptions { address, ..rig.options() };
    rig.serve(options).await;
}

#[tokio::test]
async fn broken_frames_end_their_connection_only() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    let witness = rig.connect(&running).await;
    let good = FrameHeader {
        operation: ECHO,
        deadline_ms: 1000,
        payload_bytes: 100,
        ..FrameHeader::new(FrameKind::Request, 1, b"body")
    };
    let valid = good.encode().to_vec();
    let mut flipped = valid.clone();
    flipped[20] ^= 4;
    let reply = FrameHeader { kind: FrameKind::Reply, payload_bytes: 0, ..good }.encode().to_vec();
    let cases = [
        ("flipped bit in the header", flipped),
        ("another body", [valid.clone(), b"bodY".to_vec(), vec![0; 100]].concat()),
        ("a reply from a client", [reply, b"body".to_vec()].concat()),
        ("random bytes", (0..200u8).map(|i| i.wrapping_mul(37)).collect()),
    ];
    for (what, bytes) in cases {
        let mut socket = raw_connection(&running).await;
        socket.write_all(&bytes).await.unwrap();
        let (header, body) = frame(&mut socket).await.unwrap();
        assert_eq!(header.kind, FrameKind::Goodbye, "{what}");
        let error = decode_error(header.status, &body);
        assert_eq!(error.code(), Code::Corrupt, "{what}: {error}");
        assert!(error.message().contains("breaks the protocol"), "{what}: {error}");
        assert!(frame(&mut socket).await.is_err(), "{what}: it is closed");
    }
    // A frame that is cut short is the end, too.
    let mut socket = raw_connection(&running).await;
    socket.write_all(&[&valid[..], b"bo"].concat()).await.unwrap();
    socket.shutdown().await.unwrap();
    let (header, _) = frame(&mut socket).await.unwrap();
    assert_eq!(header.kind, FrameKind::Goodbye);
    assert!(frame(&mut socket).await.is_err());
    witness.call(rig.call(ECHO, 1)).await.unwrap();
    assert_eq!(Face::get(&running.face.started), 1);
}

#[tokio::test]
async fn a_payload_that_stops_is_given_up() {
    let rig = rig();
    let options = ServerOptions { stall: Duration::from_millis(200), ..rig.options() };
    let running = rig.serve(options).await;
    let mut socket = raw_connection(&running).await;
    let header = FrameHeader {
        operation: SUM,
        deadline_ms: 60_000,
        payload_bytes: 500_000,
        ..FrameHeader::new(FrameKind::Request, 1, b"")
    };
    socket.write_all(&header.encode()).await.unwrap();
    socket.write_all(&[1; 1000]).await.unwrap();
    rig.counted(&running, |counters| &counters.open, 0).await;
    rig.counted(&running, |counters| &counters.in_flight, 0).await;
}

/// A caller that takes no answers holds only its own share, and not for ever.
#[tokio::test]
async fn a_caller_that_does_not_read_is_given_up() {
    let rig = rig();
    let options = ServerOptions {
        stall: Duration::from_millis(300),
        in_flight_bytes: 32 << 20,
        ..rig.options()
    };
    let running = rig.serve(options).await;
    let mut socket = raw_connection(&running).await;
    for request in 1..=64 {
        let body = (8u32 << 20).to_le_bytes();
        let header = FrameHeader {
            operation: FILL,
            deadline_ms: 60_000,
            receive_bytes: 8 << 20,
            ..FrameHeader::new(FrameKind::Request, request, &body)
        };
        let _ = socket.write_all(&[&header.encode()[..], &body].concat()).await;
    }
    rig.eventually("it answers", || Face::get(&running.face.finished) > 0).await;
    // Its credit is 16 MiB, whatever the caller thinks of credit.
    assert!(Face::get(&running.face.started) <= 3);
    let connection = rig.connect(&running).await;
    let call = rig.call(FILL, 8 << 20).with_receive(Buffer::zeroed(8 << 20));
    connection.call(call).await.unwrap();
    rig.counted(&running, |counters| &counters.open, 1).await;
    rig.counted(&running, |counters| &counters.in_flight, 0).await;
}

/// A server that owes an answer says that it lives; one that says nothing is given up.
#[tokio::test]
async fn a_silent_connection_is_given_up_and_a_slow_one_is_not() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    let slow = rig.connect(&running).await;
    let held = rig.start(&slow, {
        let mut call = rig.call(HOLD, 1);
        call.deadline = rig.within(20_000);
        call
    });
    // A server by hand that answers nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mute = rig.env.spawn("mute", async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let hello = receive(&mut socket).await.unwrap();
        let key_of = |_| Some(server_key(9));
        let (accepting, challenge) =
            kiln_wire::Accepting::start(&hello, CLUSTER, terms(3), key_of, [6; 32]).unwrap();
        socket.write_all(&challenge).await.unwrap();
        let proof = receive(&mut socket).await.unwrap();
        let (_, welcome) = accepting.proof(&proof, |name| Some(record(name, false))).unwrap();
        socket.write_all(&welcome).await.unwrap();
        let credit = Credit { requests: 8, bytes: 1 << 20 }.encode();
        let header = FrameHeader::new(FrameKind::Credit, 0, &credit);
        socket.write_all(&[&header.encode()[..], &credit].concat()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let connection = rig.client.connect(&address, rig.soon()).await.unwrap();
    let start = rig.env.now();
    let mut call = rig.call(ECHO, 1);
    call.deadline = rig.within(20_000);
    let error = connection.call(call).await.unwrap_err();
    assert_eq!(error.code(), Code::ConnectionLost);
    assert!(error.message().contains("silent"), "{error}");
    assert!(rig.env.now().since(start) < Duration::from_secs(8));
    running.face.release(1);
    held.join().await.unwrap().unwrap();
    drop(mute);
}

#[tokio::test]
async fn a_handler_that_panics_answers_an_error() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    for _ in 0..200 {
        let error = connection.call(rig.call(PANIC, 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal);
    }
    connection.call(rig.call(ECHO, 1)).await.unwrap();
    rig.counted(&running, |counters| &counters.in_flight, 0).await;
}

#[tokio::test]
async fn a_server_key_can_be_rotated_while_servers_run() {
    let rig = rig();
    let running = rig.serve(rig.options()).await;
    let new = kiln_types::ServerKey { id: KeyId(2), secret: Secret([7; 32]), ..server_key(9) };
    let transport = TcpTransport::new(Identity::Server(server_key(9)), rig.env.clone());
    let address = running.serving.address();
    let old = transport.connect(address, rig.soon()).await.unwrap();
    transport.set_identity(Identity::Server(new.clone()));
    assert!(transport.connect(address, rig.soon()).await.is_err());
    running.ring.add_key(new).unwrap();
    let connection = transport.connect(address, rig.soon()).await.unwrap();
    let who = connection.call(rig.call(WHO, 0)).await.unwrap().body;
    assert!(String::from_utf8(who).unwrap().contains("server at 127.0.0.1"));
    running.ring.remove_key(KeyId(1));
    assert_eq!(old.call(rig.call(ECHO, 1)).await.unwrap_err().code(), Code::NotAuthorized);
    connection.call(rig.call(ECHO, 1)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_know_the_credentials_yet_says_come_back() {
    let rig = rig();
    let ring = Arc::new(kiln_net::KeyRing::new(server_key(9)));
    let face: Arc<dyn Handler> = Face::new(&rig.env) as _;
    let serving: Box<dyn Serving> =
        rig.server.serve(rig.options(), Arc::clone(&ring) as _, face).await.unwrap();
    let connect = || rig.client.connect(serving.address(), rig.soon());
    let error = connect().await.err().unwrap();
    assert_eq!((error.code(), error.action()), (Code::NotReady, kiln_types::Action::Retry));
    ring.set_credentials(&[record("laptop", false)]);
    connect().await.unwrap();
}
