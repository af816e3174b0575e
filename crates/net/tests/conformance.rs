//! Goal: every transport behaves the same. Method: one suite, run over loopback TCP on the real
//! clock and over the simulated network on several seeds.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Pool};
use kiln_net::{
    Call, ConnectionPool, Credit, Identity, PoolOptions, SimulatedNetwork, SimulatedOptions,
    TcpTransport, Terms,
};
use kiln_types::{Code, Error, crc32c};
use std::sync::Arc;
use std::time::Duration;

fn tcp_rig() -> Rig {
    let env = Env::real();
    let server = TcpTransport::new(Identity::Server(server_key(9)), env.clone());
    let client = TcpTransport::new(client(), env.clone());
    let address = "127.0.0.1:0".into();
    Rig { env, server: Arc::new(server), client: Arc::new(client), address }
}

fn simulated_rig(env: Env) -> Rig {
    let network = SimulatedNetwork::new(SimulatedOptions::default(), env.clone());
    let server = network.host("server", Identity::Server(server_key(9)), terms(7));
    let client = network.host("client", client(), Terms::CURRENT);
    let address = "server:0".into();
    Rig { env, server: Arc::new(server), client: Arc::new(client), address }
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod tcp {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::tcp_rig()).await;
                }
            )*
        }

        mod simulated {
            $(
                #[test]
                fn $name() {
                    for seed in 0..5 {
                        eprintln!("seed {seed}");
                        let executor = super::Executor::new(seed);
                        executor.run(super::$name(super::simulated_rig(executor.env())));
                    }
                }
            )*
        }
    };
}

suite![
    bodies_and_payloads_go_both_ways,
    large_payloads_arrive_whole,
    many_calls_share_a_connection,
    a_deadline_frees_the_caller_and_nobody_else,
    a_request_that_is_late_does_not_start,
    a_dropped_call_is_cancelled,
    errors_come_back_word_for_word,
    answers_that_do_not_fit_are_errors,
    calls_above_the_limits_are_refused_at_once,
    credit_bounds_requests,
    credit_bounds_bytes,
    a_flood_does_not_starve_others,
    memory_stays_with_the_connection,
    a_lost_connection_fails_what_is_outstanding,
    a_stopping_server_finishes_what_it_has,
    strangers_are_refused,
    a_revoked_credential_closes_connections,
    new_limits_make_a_client_connect_again,
    a_pool_connects_again,
    a_pool_shares_one_connection_for_each_hop,
    nobody_there_is_said_at_once,
];

async fn bodies_and_payloads_go_both_ways(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    assert_eq!(connection.peer().node, Some(kiln_types::NodeId(7)));
    for (body, payload) in [(0, 0), (1, 0), (0, 1), (5, 4096), (9000, 100_000), (64, 4095)] {
        let sent = pattern(payload);
        let call = Call::new(ECHO, pattern(body).to_vec(), rig.soon()).with_payload(sent.clone());
        let answer = connection.call(call.with_receive(Buffer::zeroed(payload + 7))).await.unwrap();
        assert_eq!(answer.body, *pattern(body));
        assert_eq!(*answer.received.unwrap(), *sent);
    }
    // Memory that is not used comes back empty; memory that was not lent does not come back.
    let answer = connection.call(rig.call(ECHO, 1).with_receive(Buffer::zeroed(10))).await.unwrap();
    assert_eq!(answer.received.unwrap().len(), 0);
    assert!(connection.call(rig.call(ECHO, 1)).await.unwrap().received.is_none());
    let mut call = rig.call(WHO, 0);
    call.hop = 2;
    let who = String::from_utf8(connection.call(call).await.unwrap().body).unwrap();
    assert!(who.starts_with("2 client 'laptop' at "), "{who}");
}

async fn large_payloads_arrive_whole(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    for length in [1 << 20, (8 << 20) + 12_345] {
        let bytes = pattern(length);
        let call = rig.call(SUM, 0).with_payload(bytes.clone());
        let answer = connection.call(call).await.unwrap();
        assert_eq!(answer.body, crc32c(&bytes).to_le_bytes());
        let call = rig.call(FILL, length as u32).with_receive(Buffer::zeroed(length));
        assert_eq!(*connection.call(call).await.unwrap().received.unwrap(), *bytes);
    }
}

async fn many_calls_share_a_connection(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let calls: Vec<_> = (0..400u32)
        .map(|i| {
            let length = (rig.env.random_below(3) * rig.env.random_below(20_000)) as usize;
            let sent = pattern(length);
            let receive = Buffer::zeroed(length);
            let call = rig.call(ECHO, i).with_payload(sent.clone()).with_receive(receive);
            (i, sent, rig.start(&connection, call))
        })
        .collect();
    for (i, sent, call) in calls {
        let answer = call.join().await.unwrap().unwrap();
        assert_eq!(answer.body, i.to_le_bytes());
        assert_eq!(*answer.received.unwrap(), *sent);
    }
    // Answers come in the order in which they are ready.
    let slow = rig.start(&connection, rig.call(SLEEP, 300));
    let start = rig.env.now();
    connection.call(rig.call(ECHO, 1)).await.unwrap();
    assert!(rig.env.now().since(start) < Duration::from_millis(250));
    slow.join().await.unwrap().unwrap();
}

async fn a_deadline_frees_the_caller_and_nobody_else(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let start = rig.env.now();
    let mut call = rig.call(HOLD, 1);
    call.deadline = rig.within(100);
    let late = connection.call(call).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    let waited = rig.env.now().since(start);
    assert!(waited >= Duration::from_millis(100) && waited < Duration::from_secs(2), "{waited:?}");
    connection.call(rig.call(ECHO, 1)).await.unwrap();
    running.face.release(1);
    rig.eventually("the handler ends", || Face::get(&running.face.held) == 0).await;
    connection.call(rig.call(ECHO, 2)).await.unwrap();
    // A deadline that has passed sends nothing.
    let before = Face::get(&running.face.started);
    let mut call = rig.call(ECHO, 3);
    call.deadline = rig.within(0);
    assert_eq!(connection.call(call).await.unwrap_err().code(), Code::DeadlineExceeded);
    connection.call(rig.call(ECHO, 4)).await.unwrap();
    assert_eq!(Face::get(&running.face.started), before + 1);
}

/// A request that waits for the server's memory until its deadline has passed is answered, not run.
async fn a_request_that_is_late_does_not_start(rig: Rig) {
    let options = kiln_net::ServerOptions { in_flight_bytes: 8192, ..rig.options() };
    let running = rig.serve(options).await;
    let (first, second) = (rig.connect(&running).await, rig.connect(&running).await);
    let holders = [rig.start(&first, rig.call(HOLD, 1)), rig.start(&first, rig.call(HOLD, 2))];
    rig.eventually("both are held", || Face::get(&running.face.held) == 2).await;
    let mut call = rig.call(ECHO, 3);
    call.deadline = rig.within(50);
    assert_eq!(second.call(call).await.unwrap_err().code(), Code::DeadlineExceeded);
    // The server counts from when the request arrived, so it is late a little later.
    rig.env.sleep(Duration::from_millis(50)).await;
    running.face.release(2);
    for holder in holders {
        holder.join().await.unwrap().unwrap();
    }
    second.call(rig.call(ECHO, 4)).await.unwrap();
    assert_eq!(Face::get(&running.face.started), 3);
    let expired = &running.serving.counters().expired;
    assert_eq!(expired.load(std::sync::atomic::Ordering::Relaxed), 1);
}

async fn a_dropped_call_is_cancelled(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let call = rig.start(&connection, rig.call(HOLD, 1));
    rig.eventually("it is held", || Face::get(&running.face.held) == 1).await;
    drop(call);
    // The next call comes after the cancellation on the same connection.
    rig.env.sleep(Duration::from_millis(50)).await;
    connection.call(rig.call(ECHO, 1)).await.unwrap();
    running.face.release(1);
    rig.eventually("it ends", || Face::get(&running.face.held) == 0).await;
    assert_eq!(Face::get(&running.face.cancelled), 1);
    connection.call(rig.call(ECHO, 2)).await.unwrap();
}

async fn errors_come_back_word_for_word(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let call = rig.call(FAIL, 0).with_payload(pattern(10)).with_receive(Buffer::zeroed(10));
    let error = connection.call(call).await.unwrap_err();
    let expected = Error::new(Code::StaleEpoch, "the file was cut").with_hint("look again");
    assert_eq!(error, expected);
    assert_eq!(connection.call(rig.call(99, 0)).await.unwrap_err().code(), Code::Unsupported);
}

async fn answers_that_do_not_fit_are_errors(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let call = rig.call(FILL, 100).with_receive(Buffer::zeroed(99));
    assert_eq!(connection.call(call).await.unwrap_err().code(), Code::Internal);
    assert_eq!(connection.call(rig.call(FILL, 1)).await.unwrap_err().code(), Code::Internal);
    connection.call(rig.call(ECHO, 1)).await.unwrap();
}

async fn calls_above_the_limits_are_refused_at_once(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let body = vec![0; kiln_wire::BODY_BYTES_MAX + 1];
    let error = connection.call(Call::new(ECHO, body, rig.soon())).await.unwrap_err();
    assert_eq!(error.code(), Code::Invalid);
    let buffer = Buffer::zeroed(kiln_wire::PAYLOAD_BYTES_MAX + 1);
    let error = connection.call(rig.call(ECHO, 1).with_receive(buffer)).await.unwrap_err();
    assert_eq!(error.code(), Code::Invalid);
    // The largest request there is goes alone, whatever the credit.
    let body = vec![7; kiln_wire::BODY_BYTES_MAX];
    let answer = connection.call(Call::new(ECHO, body.clone(), rig.soon())).await.unwrap();
    assert_eq!(answer.body, body);
}

async fn credit_bounds_requests(rig: Rig) {
    let credit = Credit { requests: 4, bytes: 1 << 20 };
    let running = rig.serve(kiln_net::ServerOptions { credit, ..rig.options() }).await;
    let connection = rig.connect(&running).await;
    let calls: Vec<_> = (0..20).map(|i| rig.start(&connection, rig.call(HOLD, i))).collect();
    rig.eventually("four are held", || Face::get(&running.face.held) == 4).await;
    let mut call = rig.call(ECHO, 99);
    call.deadline = rig.within(50);
    let error = connection.call(call).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    running.face.release(20);
    for call in calls {
        call.join().await.unwrap().unwrap();
    }
    assert_eq!(Face::get(&running.face.held_max), 4);
    assert_eq!(Face::get(&running.face.started), 20);
}

async fn credit_bounds_bytes(rig: Rig) {
    let credit = Credit { requests: 100, bytes: 1 << 20 };
    let running = rig.serve(kiln_net::ServerOptions { credit, ..rig.options() }).await;
    let connection = rig.connect(&running).await;
    let calls: Vec<_> = (0..9u32)
        .map(|i| {
            let call = rig.call(HOLD, i).with_payload(pattern(200 << 10));
            rig.start(&connection, call.with_receive(Buffer::zeroed(200 << 10)))
        })
        .collect();
    rig.eventually("two are held", || Face::get(&running.face.held) == 2).await;
    rig.env.sleep(Duration::from_millis(50)).await;
    running.face.release(9);
    for call in calls {
        call.join().await.unwrap().unwrap();
    }
    assert_eq!(Face::get(&running.face.held_max), 2);
}

/// While one connection has more to ask than the server's memory holds, calls of another come
/// through.
async fn a_flood_does_not_starve_others(rig: Rig) {
    let credit = Credit { requests: 64, bytes: 4 << 20 };
    let options = kiln_net::ServerOptions { credit, in_flight_bytes: 4 << 20, ..rig.options() };
    let running = rig.serve(options).await;
    let (flood, other) = (rig.connect(&running).await, rig.connect(&running).await);
    let flooding: Vec<_> = (0..200)
        .map(|_| {
            let mut call = rig.call(SLEEP, 5).with_receive(Buffer::zeroed(1 << 20));
            call.deadline = rig.within(60_000);
            rig.start(&flood, call)
        })
        .collect();
    rig.eventually("it floods", || Face::get(&running.face.started) > 8).await;
    for i in 0..10 {
        let call = rig.call(ECHO, i).with_receive(Buffer::zeroed(1 << 20));
        other.call(call).await.unwrap();
    }
    assert!(flooding.iter().any(|call| !call.is_finished()), "the flood was over too soon");
    for call in flooding {
        call.join().await.unwrap().unwrap();
    }
}

/// A call that is dropped, or late, leaves its memory with the connection until the answer has
/// come.
async fn memory_stays_with_the_connection(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let pool = Pool::new(1 << 20);
    for late in [false, true] {
        let receive = pool.take(50_000);
        let at = receive.as_ptr().addr();
        let mut call = rig.call(HOLD_FILL, 50_000).with_receive(receive);
        let held = || Face::get(&running.face.held) == 1;
        if late {
            call.deadline = rig.within(50);
            let error = connection.call(call).await.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded);
        } else {
            let call = rig.start(&connection, call);
            rig.eventually("it is held", held).await;
            drop(call);
        }
        rig.eventually("it is held", held).await;
        assert_ne!(pool.take(50_000).as_ptr().addr(), at, "the memory may still be written");
        running.face.release(1);
        let back = || {
            let taken: Vec<Buffer> = (0..4).map(|_| pool.take(50_000)).collect();
            taken.iter().any(|buffer| buffer.as_ptr().addr() == at)
        };
        rig.eventually("the memory comes back", back).await;
    }
}

async fn a_lost_connection_fails_what_is_outstanding(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let calls: Vec<_> = (0..5).map(|i| rig.start(&connection, rig.call(HOLD, i))).collect();
    rig.eventually("all are held", || Face::get(&running.face.held) == 5).await;
    let Running { serving, face, ring: _ } = running;
    drop(serving);
    for call in calls {
        assert_eq!(call.join().await.unwrap().unwrap_err().code(), Code::ConnectionLost);
    }
    assert!(connection.is_closed());
    let error = connection.call(rig.call(ECHO, 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ConnectionLost);
    // What the handlers did ended with the server.
    face.release(5);
    rig.env.sleep(Duration::from_millis(20)).await;
    assert_eq!(Face::get(&face.finished), 0);
}

async fn a_stopping_server_finishes_what_it_has(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let short = rig.start(&connection, rig.call(SLEEP, 200));
    rig.eventually("it runs", || Face::get(&running.face.started) == 1).await;
    let start = rig.env.now();
    running.serving.shutdown(Duration::from_secs(5)).await;
    let took = rig.env.now().since(start);
    assert!(took > Duration::from_millis(100) && took < Duration::from_secs(3), "{took:?}");
    short.join().await.unwrap().unwrap();
    rig.eventually("the connection is closed", || connection.is_closed()).await;
    assert!(connection.call(rig.call(ECHO, 1)).await.is_err());
    let error = rig.try_connect(&running).await.err().unwrap();
    assert_eq!(error.code(), Code::Unreachable);

    // What does not end in time is cut off.
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let long = rig.start(&connection, rig.call(HOLD, 1));
    rig.eventually("it is held", || Face::get(&running.face.held) == 1).await;
    running.serving.shutdown(Duration::from_millis(100)).await;
    assert_eq!(long.join().await.unwrap().unwrap_err().code(), Code::ConnectionLost);
}

async fn strangers_are_refused(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    running.ring.set_credentials(&[]);
    let error = rig.try_connect(&running).await.err().unwrap();
    assert_eq!(error.code(), Code::NotAuthorized);
    assert!(error.message().contains("credential 'laptop' is not known"), "{error}");
    let counters = running.serving.counters();
    rig.eventually("it is counted", || counters.refused.by_reason()[6].1 == 1).await;
}

async fn a_revoked_credential_closes_connections(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let idle = rig.connect(&running).await;
    connection.call(rig.call(ECHO, 1)).await.unwrap();
    running.ring.set_credentials(&[record("laptop", true)]);
    let error = connection.call(rig.call(ECHO, 2)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotAuthorized);
    assert!(error.message().contains("credential 'laptop' was revoked"), "{error}");
    let error = rig.try_connect(&running).await.err().unwrap();
    assert_eq!(error.code(), Code::NotAuthorized);
    rig.eventually("also one that asks nothing", || idle.is_closed()).await;
    assert_eq!(Face::get(&running.face.started), 1);
}

async fn new_limits_make_a_client_connect_again(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let connection = rig.connect(&running).await;
    let mut fewer = record("laptop", false);
    fewer.limits.operator = false;
    running.ring.set_credentials(&[fewer]);
    let error = connection.call(rig.call(ECHO, 2)).await.unwrap_err();
    assert_eq!(error.code(), Code::ConnectionLost);
    rig.connect(&running).await.call(rig.call(ECHO, 3)).await.unwrap();
}

async fn a_pool_connects_again(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let address = running.serving.address().to_owned();
    let pool =
        ConnectionPool::new(Arc::clone(&rig.client), PoolOptions::default(), rig.env.clone());
    pool.call(&address, rig.call(ECHO, 1)).await.unwrap();
    drop(running);
    rig.env.sleep(Duration::from_millis(50)).await;
    let mut failures = 0;
    while pool.call(&address, rig.call(ECHO, 2)).await.is_err() && failures < 5 {
        failures += 1;
        rig.env.sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(failures, 5);
    let options = kiln_net::ServerOptions { address: address.clone(), ..rig.options() };
    let _running = rig.serve(options).await;
    let start = rig.env.now();
    while pool.call(&address, rig.call(ECHO, 3)).await.is_err() {
        rig.env.sleep(Duration::from_millis(10)).await;
        assert!(rig.env.now().since(start) < Duration::from_secs(4), "it never connected again");
    }
}

async fn a_pool_shares_one_connection_for_each_hop(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let address = running.serving.address().to_owned();
    let pool =
        ConnectionPool::new(Arc::clone(&rig.client), PoolOptions::default(), rig.env.clone());
    let pool = Arc::new(pool);
    let calls: Vec<_> = (0..60)
        .map(|i| {
            let (pool, address, mut call) = (Arc::clone(&pool), address.clone(), rig.call(ECHO, i));
            call.hop = (i % 6) as u8;
            rig.env.spawn("call", async move { pool.call(&address, call).await })
        })
        .collect();
    for call in calls {
        call.join().await.unwrap().unwrap();
    }
    let accepted = &running.serving.counters().accepted;
    assert_eq!(accepted.load(std::sync::atomic::Ordering::Relaxed), 4);
}

async fn nobody_there_is_said_at_once(rig: Rig) {
    let running = rig.serve(rig.options()).await;
    let address = running.serving.address().to_owned();
    running.serving.shutdown(Duration::from_millis(10)).await;
    let pool =
        ConnectionPool::new(Arc::clone(&rig.client), PoolOptions::default(), rig.env.clone());
    let start = rig.env.now();
    for _ in 0..10 {
        let error = pool.call(&address, rig.call(ECHO, 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
        assert!(error.message().contains("nobody listens at"), "{error}");
    }
    assert!(rig.env.now().since(start) < Duration::from_secs(1));
}
