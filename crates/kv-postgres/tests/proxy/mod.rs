//! A proxy in front of a server that breaks a connection when a commit passes.

use crate::server::Server;
use kiln_env::{Env, Task};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// What happens to the next commit of a writer.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Cut {
    Never = 0,
    /// The server does not get it.
    Before = 1,
    /// The server gets it, nobody gets its answer.
    After = 2,
    /// Neither side hears of the other any more.
    Hang = 3,
}

pub(crate) struct Proxy {
    port: u16,
    next: Arc<AtomicU8>,
    _task: Task<()>,
}

impl Proxy {
    pub(crate) async fn start(server: &Server, env: &Env) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (socket, next) = (server.socket(), Arc::new(AtomicU8::new(Cut::Never as u8)));
        let task = env.spawn("proxy", accept(listener, socket, Arc::clone(&next), env.clone()));
        Self { port, next, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Cuts the connection of the next writer that commits.
    pub(crate) fn cut(&self, cut: Cut) {
        self.next.store(cut as u8, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, socket: PathBuf, next: Arc<AtomicU8>, env: Env) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = UnixStream::connect(&socket).await else { continue };
        env.spawn("proxied", pass(client, server, Arc::clone(&next))).detach();
    }
}

/// Passes bytes on until one side ends or a commit is cut; a writer's commit comes with its changes.
async fn pass(mut client: TcpStream, mut server: UnixStream, next: Arc<AtomicU8>) {
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut writes = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let has = |what: &[u8]| up[..count].windows(what.len()).any(|bytes| bytes == what);
                writes |= has(b"SERIALIZABLE");
                let cut = match writes && has(b"COMMIT") {
                    true => next.swap(Cut::Never as u8, Ordering::SeqCst),
                    false => Cut::Never as u8,
                };
                if cut == Cut::Before as u8 {
                    return;
                }
                if cut == Cut::Hang as u8 {
                    return std::future::pending().await;
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if cut == Cut::After as u8 {
                    return answered(&mut server).await;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Reads what the server answers until it has committed.
async fn answered(server: &mut UnixStream) {
    let (mut answers, mut some) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(count @ 1..) = server.read(&mut some).await {
        answers.extend_from_slice(&some[..count]);
        if answers.windows(7).any(|bytes| bytes == b"COMMIT\0") {
            return;
        }
    }
}
