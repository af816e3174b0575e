//! The managers, one of which answers.

use kiln_env::Env;
use kiln_net::Identity;
use kiln_rpc::ManagerCalls;
use kiln_types::{Code, Context, Error, Result};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The way to managers: tonic over TCP, or the simulator's.
pub trait Reach: Send + Sync {
    /// The manager at `address`; it is connected to when it is first asked.
    ///
    /// # Errors
    /// `Invalid` when the address is none.
    fn manager(&self, address: &str) -> Result<Arc<dyn ManagerCalls>>;
}

/// Managers over TCP.
pub(crate) struct OverTcp {
    pub(crate) identity: Identity,
    pub(crate) env: Env,
}

impl Reach for OverTcp {
    fn manager(&self, address: &str) -> Result<Arc<dyn ManagerCalls>> {
        let client = crate::manager_client(address, self.identity.clone(), self.env.clone())?;
        Ok(Arc::new(crate::tonic::OverTonic(client)))
    }
}

/// The managers' addresses, tried in turn.
pub(crate) struct Managers {
    addresses: Vec<String>,
    reach: Arc<dyn Reach>,
    env: Env,
    at: usize,
    manager: Option<Arc<dyn ManagerCalls>>,
    pause: Duration,
}

impl Managers {
    /// # Errors
    /// `Invalid` when there is no address.
    pub(crate) fn new(addresses: Vec<String>, reach: Arc<dyn Reach>, env: Env) -> Result<Self> {
        if addresses.is_empty() {
            return Err(Error::invalid("no manager's address is known"));
        }
        Ok(Self { addresses, reach, env, at: 0, manager: None, pause: PAUSE_MIN })
    }

    pub(crate) fn address(&self) -> &str {
        &self.addresses[self.at]
    }

    fn manager(&mut self) -> Result<Arc<dyn ManagerCalls>> {
        if let Some(manager) = &self.manager {
            return Ok(Arc::clone(manager));
        }
        let manager = self.reach.manager(self.address())?;
        self.manager = Some(Arc::clone(&manager));
        Ok(manager)
    }

    /// Makes one call, at most for `patience`. After a failure of the transport the next call goes
    /// to the next address, over a new connection.
    pub(crate) async fn call<T, F>(
        &mut self,
        patience: Duration,
        make: impl FnOnce(Arc<dyn ManagerCalls>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let manager = self.manager()?;
        let what = format!("manager at {}", self.address());
        let result = self.env.timeout(patience, &what, make(manager)).await.flatten();
        match &result {
            Ok(_) => self.pause = PAUSE_MIN,
            Err(error) if error.code() != Code::UnknownMember => self.leave(),
            Err(_) => {}
        }
        result.context(what)
    }

    /// Gives the connection up.
    pub(crate) fn leave(&mut self) {
        self.manager = None;
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
