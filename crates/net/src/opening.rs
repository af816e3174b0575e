//! The handshake over a stream: reads and writes what the pure machines of `kiln_wire` decide.

use crate::authority::Authority;
use crate::stream::{Reader, Stream};
use kiln_env::Env;
use kiln_types::{Code, Error, NodeId, Result};
use kiln_wire::{
    Accepting, Agreement, Connecting, HANDSHAKE_PREFIX_BYTES, Identity, Nonce, Purpose, Terms,
    handshake_bytes, refusal,
};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a connector brings to a handshake.
pub(crate) struct Introduction {
    pub(crate) identity: Identity,
    pub(crate) terms: Terms,
    pub(crate) purpose: Purpose,
    pub(crate) expected: Option<NodeId>,
}

/// What an acceptor serves.
#[derive(Clone, Copy)]
pub(crate) struct Served {
    pub(crate) control: bool,
    pub(crate) data: bool,
}

/// The connector's side. The caller bounds the time.
pub(crate) async fn introduce(
    stream: &mut Stream,
    introduction: Introduction,
    env: &Env,
) -> Result<Agreement> {
    let Introduction { identity, terms, purpose, expected } = introduction;
    let (connecting, hello) = Connecting::start(identity, terms, purpose, expected, nonce(env));
    let address = stream.address.clone();
    let explain = |error: Error| match error.code() {
        Code::Corrupt => {
            let message = format!("what answers at {address} is not a kiln server: {error}");
            Error::new(Code::ProtocolMismatch, message).with_hint("check host and port")
        }
        _ => error.while_doing(format_args!("connection to {address}")),
    };
    let exchange = async {
        send(stream, &hello).await?;
        let (proving, proof) = connecting.challenge(&receive(&mut stream.reader).await?)?;
        send(stream, &proof).await?;
        proving.welcome(&receive(&mut stream.reader).await?)
    };
    exchange.await.map_err(explain)
}

/// The acceptor's side; tells the connector why it is refused. The caller bounds the time.
pub(crate) async fn receive_guest(
    stream: &mut Stream,
    authority: &dyn Authority,
    terms: Terms,
    served: Served,
    env: &Env,
) -> Result<Agreement> {
    let result = examine(stream, authority, terms, served, env).await;
    if let Err(error) = &result
        && error.code() != Code::ConnectionLost
    {
        // The connector may be gone already: there is nobody to tell then.
        let _ = send(stream, &refusal(error)).await;
        let _ = stream.writer.shutdown().await;
    }
    result
}

async fn examine(
    stream: &mut Stream,
    authority: &dyn Authority,
    terms: Terms,
    served: Served,
    env: &Env,
) -> Result<Agreement> {
    let hello = receive(&mut stream.reader).await?;
    let key_of = |id| authority.server_key(id);
    let (accepting, challenge) =
        Accepting::start(&hello, authority.cluster(), terms, key_of, nonce(env))?;
    send(stream, &challenge).await?;
    let proof = receive(&mut stream.reader).await?;
    let admitted = accepting.proof(&proof, |name| authority.credential(name));
    let (agreement, welcome) = admitted.map_err(|error| match error.code() {
        Code::NotAuthorized if !authority.knows_credentials() => Error::new(
            Code::NotReady,
            "this server has just started and does not know the credentials yet",
        ),
        _ => error,
    })?;
    let (offered, what) = match agreement.purpose {
        Purpose::Control => (served.control, "control"),
        Purpose::Data => (served.data, "data"),
    };
    if !offered {
        let message = format!("this server has no {what} plane");
        return Err(Error::new(Code::Unsupported, message));
    }
    send(stream, &welcome).await?;
    Ok(agreement)
}

fn nonce(env: &Env) -> Nonce {
    let mut nonce = [0; 32];
    env.fill_random(&mut nonce);
    nonce
}

async fn send(stream: &mut Stream, message: &[u8]) -> Result<()> {
    stream.writer.write_all(message).await.map_err(broken)?;
    stream.writer.flush().await.map_err(broken)
}

/// Reads one message and not a byte more: what follows is not the handshake's.
async fn receive(reader: &mut Reader) -> Result<Vec<u8>> {
    let mut prefix = [0; HANDSHAKE_PREFIX_BYTES];
    reader.read_exact(&mut prefix).await.map_err(broken)?;
    let mut message = vec![0; handshake_bytes(&prefix)?];
    message[..HANDSHAKE_PREFIX_BYTES].copy_from_slice(&prefix);
    reader.read_exact(&mut message[HANDSHAKE_PREFIX_BYTES..]).await.map_err(broken)?;
    Ok(message)
}

fn broken(source: io::Error) -> Error {
    let message = match source.kind() {
        io::ErrorKind::UnexpectedEof => "the other end closed it during the handshake".to_owned(),
        _ => format!("it broke during the handshake: {source}"),
    };
    Error::new(Code::ConnectionLost, message)
}
