//! Reads the metrics of one process.

use kiln_env::Env;
use kiln_telemetry::{BUILD_INFO, Scrape};
use kiln_types::{Code, Error, Result};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// A process whose metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The node's id, or the mount point: what the process says of itself.
    pub(super) node: String,
    /// Where its metrics are.
    pub(super) metrics: String,
    /// Where the server itself is, of one that may be on another machine.
    pub(super) server: Option<String>,
}

/// What `source` says now.
///
/// # Errors
/// `Unreachable` or `DeadlineExceeded` when it does not answer, `WrongTarget` when somebody else
/// does.
pub(super) async fn scrape(source: &Source, env: &Env, within: Duration) -> Result<Scrape> {
    let scraped = async {
        if let Some(server) = &source.server {
            require_here(&source.metrics, server).await?;
        }
        let text = get(&source.metrics).await.map_err(|error| {
            Error::new(Code::Unreachable, format!("metrics at {}: {error}", source.metrics))
        })?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        if !head.starts_with("HTTP/1.1 200 ") {
            let status: String = head.lines().next().unwrap_or_default().chars().take(60).collect();
            return Err(Error::new(Code::WrongTarget, format!("it answers '{status}'")));
        }
        let scrape = Scrape::parse(body)?;
        match scrape.label(BUILD_INFO, "node") {
            Some(node) if node == source.node => Ok(scrape),
            other => Err(Error::new(
                Code::WrongTarget,
                format!("{} answers there, not {}", other.unwrap_or("nobody"), source.node),
            )),
        }
    };
    env.timeout(within, "metrics", scraped).await?
}

async fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
    Ok(text)
}

/// Metrics on loopback are read on their own machine only: elsewhere another process might answer.
async fn require_here(metrics: &str, server: &str) -> Result<()> {
    let loopback = |address: &SocketAddr| address.ip().is_loopback();
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let (true, Ok(host)) = (metrics.parse().as_ref().is_ok_and(loopback), host) else {
        return Ok(());
    };
    // Only an address of this machine can be bound.
    let here = host.is_loopback() || UdpSocket::bind((host, 0)).await.is_ok();
    here.then_some(()).ok_or_else(|| {
        Error::new(Code::Unreachable, "its metrics are on loopback of another machine")
            .with_hint("set metrics.listen there to an address that is reached from here")
    })
}
