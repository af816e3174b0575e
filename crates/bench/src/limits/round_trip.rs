//! What a request and its answer take without anything in them.

use crate::run::Bench;
use crate::sample::Sample;
use kiln_types::{Context, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const MESSAGE_BYTES: usize = 128;
/// How long an answer may take.
const STALL: Duration = Duration::from_secs(10);

/// Each client asks a thread of its own over a loopback socket, and waits for the answer.
pub(crate) async fn round_trips(bench: &Bench, clients: usize) -> Result<Sample> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a socket for the limit")?;
    let address = listener.local_addr().context("a socket for the limit")?;
    let mut streams = Vec::new();
    for _ in 0..clients {
        let near = TcpStream::connect(address).context("a socket for the limit")?;
        let (far, _) = listener.accept().context("a socket for the limit")?;
        for stream in [&near, &far] {
            let limited = stream.set_read_timeout(Some(STALL));
            limited.and_then(|()| stream.set_nodelay(true)).context("a socket for the limit")?;
        }
        // It ends when the near end is closed.
        bench.env.spawn_thread("bench echo", move || echo(far))?;
        streams.push(parking_lot::Mutex::new(Some(near)));
    }
    let own = move |worker: usize| Ok(streams[worker].lock().take());
    let ask = |stream: &mut Option<TcpStream>, _| {
        let Some(stream) = stream else { return Ok(0) };
        let mut message = [7; MESSAGE_BYTES];
        let asked = stream.write_all(&message).and_then(|()| stream.read_exact(&mut message));
        asked.context("a round trip of the limit")?;
        Ok(1)
    };
    bench.timed(clients).threads(own, ask).await
}

fn echo(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_BYTES];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}
