//! Calls to one of the managers.

use kiln_env::Env;
use kiln_net::{Identity, control_channel};
use kiln_rpc::error_from_status;
use kiln_rpc::v1::mgmtd_client::MgmtdClient;
use kiln_types::{Code, Context, Error, Result};
use std::future::Future;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Calls to a manager.
pub type ManagerClient = MgmtdClient<Channel>;

/// The largest message: the routing information of a large cluster.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A client of the manager at `address`; it connects when it is first used.
///
/// # Errors
/// `Invalid` when the address is none.
pub fn manager_client(address: &str, identity: Identity, env: Env) -> Result<ManagerClient> {
    let channel = control_channel(address, identity, env)?;
    Ok(MgmtdClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The managers' addresses, tried in turn.
pub(crate) struct Managers {
    addresses: Vec<String>,
    identity: Identity,
    env: Env,
    at: usize,
    client: Option<ManagerClient>,
    pause: Duration,
}

impl Managers {
    /// # Errors
    /// `Invalid` when there is no address.
    pub(crate) fn new(addresses: Vec<String>, identity: Identity, env: Env) -> Result<Self> {
        if addresses.is_empty() {
            return Err(Error::invalid("no manager's address is known"));
        }
        Ok(Self { addresses, identity, env, at: 0, client: None, pause: PAUSE_MIN })
    }

    pub(crate) fn address(&self) -> &str {
        &self.addresses[self.at]
    }

    fn client(&mut self) -> Result<ManagerClient> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = manager_client(self.address(), self.identity.clone(), self.env.clone())?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Makes one call, at most for `patience`. After a failure of the transport the next call goes
    /// to the next address, over a new connection.
    pub(crate) async fn call<T, F>(
        &mut self,
        patience: Duration,
        make: impl FnOnce(ManagerClient) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self.client()?;
        let what = format!("manager at {}", self.address());
        let result = match self.env.timeout(patience, &what, make(client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(error_from_status(&status)),
            Err(late) => Err(late),
        };
        match &result {
            Ok(_) => self.pause = PAUSE_MIN,
            Err(error) if error.code() != Code::UnknownMember => self.leave(),
            Err(_) => {}
        }
        result.context(what)
    }

    /// Gives the connection up.
    pub(crate) fn leave(&mut self) {
        self.client = None;
        self.at = (self.at + 1) % self.addresses.len();
    }

    /// Waits before the next try: longer after each failure, with jitter.
    pub(crate) async fn pause(&mut self) {
        let pause = self.env.jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.env.sleep(pause).await;
    }
}

/// Whether trying again cannot help: the manager answered, and refuses this caller.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Invalid
            | Code::Unsupported
            | Code::ProtocolMismatch
            | Code::NotAuthenticated
            | Code::WrongCluster
            | Code::NotAuthorized
            | Code::StaleIncarnation
    )
}
