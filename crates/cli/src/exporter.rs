//! The metrics port of a process: HTTP, read-only, without a credential, so on loopback unless the
//! operator says otherwise.

use kiln_env::{Env, Task};
use kiln_telemetry::{CONTENT_TYPE, Identity, render};
use kiln_types::{Context, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Requests that may be under way; more wait in the kernel.
const CONNECTIONS: usize = 16;
/// How long one may take, from the connection to the last byte.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// The pause after the system refused to hand over a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A metrics port; it closes when this is dropped.
pub(crate) struct Exporter {
    address: SocketAddr,
    _acceptor: Task<()>,
}

impl Exporter {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Shows the metrics of this process, as `identity`, at `listen`; port 0: any free one.
///
/// # Errors
/// `Local` when the address cannot be had.
pub(crate) async fn export(listen: SocketAddr, identity: Identity, env: &Env) -> Result<Exporter> {
    let bound = async {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    let (listener, address) = bound.await.context(format_args!("metrics at {listen}"))?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "everyone who reaches this address can read the metrics");
    }
    let acceptor = accept(listener, Arc::new(identity), env.clone());
    let acceptor = env.spawn("metrics", acceptor);
    tracing::info!(%address, "metrics are shown");
    Ok(Exporter { address, _acceptor: acceptor })
}

async fn accept(listener: TcpListener, identity: Arc<Identity>, env: Env) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a reader of metrics could not be accepted: {error}");
                env.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (identity, timer) = (Arc::clone(&identity), env.clone());
        let served = async move {
            // A reader that goes away or takes too long gets nothing.
            let _ = timer.timeout(REQUEST_WITHIN, "metrics", serve(stream, &identity)).await;
            drop(place);
        };
        env.spawn("metrics request", served).detach();
    }
}

async fn serve(mut stream: TcpStream, identity: &Identity) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(1024);
    let mut piece = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match stream.read(&mut piece).await? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
    }
    stream.write_all(answer(&request, identity).as_bytes()).await?;
    stream.shutdown().await?;
    // What the reader still sends is taken: closing a socket with unread bytes would cut the answer
    // off.
    while stream.read(&mut piece).await? > 0 {}
    Ok(())
}

/// The answer to a request of which at least the head has come.
fn answer(request: &[u8], identity: &Identity) -> String {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match target(request) {
        _ if request.len() >= REQUEST_BYTES_MAX => {
            ("431 Request Header Fields Too Large", plain, "too long\n".into())
        }
        None => ("400 Bad Request", plain, "this is not HTTP/1\n".into()),
        Some((method, _)) if method != "GET" => {
            ("405 Method Not Allowed\r\nAllow: GET", plain, "there is only GET\n".into())
        }
        Some((_, "/metrics")) => ("200 OK", CONTENT_TYPE, render(identity)),
        Some((_, "/")) => {
            let Identity { service, node, version, .. } = identity;
            let who = format!("kiln {version}, {service} {node}; its metrics are at /metrics\n");
            ("200 OK", plain, who)
        }
        Some(_) => ("404 Not Found", plain, "there is only /metrics\n".into()),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// The method and the path of a request.
fn target(request: &[u8]) -> Option<(&str, &str)> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split('?').next()?;
    let right = version.starts_with("HTTP/1.") && path.starts_with('/') && words.next().is_none();
    right.then_some((method, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_telemetry::Scrape;
    use kiln_types::{NodeId, Timestamp};

    fn identity() -> Identity {
        Identity::server("storage", NodeId(101), Timestamp(0))
    }

    #[test]
    fn metrics_are_read_with_get_and_nothing_else_is_done() {
        let ask = |request: &str| answer(request.as_bytes(), &identity());
        let found = ask("GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = found.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(Scrape::parse(body).is_ok(), "{body}");
        assert!(ask("GET / HTTP/1.0\r\n\r\n").contains("storage 101"));
        let refused = [
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("DELETE / HTTP/1.1\r\n\r\n", "405"),
            ("GET /metric HTTP/1.1\r\n\r\n", "404"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("GET http://x/metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics\r\n\r\n", "400"),
            ("PRI * HTTP/2.0\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ];
        for (request, status) in refused {
            let answer = ask(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(REQUEST_BYTES_MAX));
        assert!(ask(&long).starts_with("HTTP/1.1 431"));
        assert!(answer(b"GET /\xff HTTP/1.1\r\n\r\n", &identity()).starts_with("HTTP/1.1 400"));
    }
}
