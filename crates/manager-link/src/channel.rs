//! The managers, one of which answers.

use crate::routing::Routing;
use kiln_env::Env;
use kiln_net::Identity;
use kiln_rpc::ManagerCalls;
use kiln_types::{Code, Context, Error, Result, ServiceKind};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The way to managers: tonic over TCP, or the simulator's.
pub trait Reach: Send + Sync {
    /// The manager at `address`; it is connected to when it is first asked.
    ///
    /// # Errors
    /// `Invalid` when the address is none.
    fn manager(&self, address: &str) -> Result<Arc<dyn ManagerCalls>>;
}

/// The way over TCP, for one who proves to be `identity`.
pub fn over_tcp(identity: Identity, env: &Env) -> Arc<dyn Reach> {
    Arc::new(OverTcp { identity, env: env.clone() })
}

struct OverTcp {
    identity: Identity,
    env: Env,
}

impl Reach for OverTcp {
    fn manager(&self, address: &str) -> Result<Arc<dyn ManagerCalls>> {
        let client = crate::manager_client(address, self.identity.clone(), self.env.clone())?;
        Ok(Arc::new(crate::tonic::OverTonic(client)))
    }
}

/// The managers, tried in turn: those that were named, and those that registered.
pub(crate) struct Managers {
    named: Vec<String>,
    routing: Routing,
    reach: Arc<dyn Reach>,
    env: Env,
    address: String,
    manager: Option<Arc<dyn ManagerCalls>>,
    pause: Duration,
    pause_max: Duration,
    /// Those that stood by when they were asked last.
    standbys: BTreeSet<String>,
    only_named: bool,
}

impl Managers {
    /// `pause_max` is the longest pause between two tries.
    ///
    /// # Errors
    /// `Invalid` when there is no address.
    pub(crate) fn new(
        named: Vec<String>,
        routing: Routing,
        reach: Arc<dyn Reach>,
        pause_max: Duration,
        env: Env,
    ) -> Result<Self> {
        let address = named.first().cloned();
        let address = address.ok_or_else(|| Error::invalid("no manager's address is known"))?;
        let (manager, standbys) = (None, BTreeSet::new());
        let pause = PAUSE_MIN;
        Ok(Self {
            named,
            routing,
            reach,
            env,
            address,
            manager,
            pause,
            pause_max,
            standbys,
            only_named: false,
        })
    }

    /// Asks only those that were named, for a manager that stands by: others that stand by may have
    /// their news from it.
    pub(crate) fn only_named(self) -> Self {
        Self { only_named: true, ..self }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
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
            Ok(_) => {
                self.pause = PAUSE_MIN;
                self.standbys.clear();
            }
            Err(error) if error.code() == Code::NotPrimary => {
                self.standbys.insert(self.address.clone());
                self.leave();
            }
            Err(error) if error.code() != Code::UnknownMember => self.leave(),
            Err(_) => {}
        }
        result.context(what)
    }

    /// Gives the connection up: the next manager is asked.
    pub(crate) fn leave(&mut self) {
        self.manager = None;
        let known = self.known();
        let at = known.iter().position(|address| *address == self.address).map_or(0, |at| at + 1);
        if let Some(next) = known.get(at % known.len().max(1)) {
            self.address.clone_from(next);
        }
    }

    fn known(&self) -> Vec<String> {
        if self.only_named {
            return self.named.clone();
        }
        let routing = self.routing.now();
        let registered = routing.nodes.values().filter(|node| node.kind == ServiceKind::Mgmtd);
        let mut known = self.named.clone();
        for node in registered {
            if !known.contains(&node.address) {
                known.push(node.address.clone());
            }
        }
        known
    }

    /// Waits before the next try: longer after each failure, with jitter. A manager that has not been
    /// asked since another one said that it stands by is asked at once.
    pub(crate) async fn pause(&mut self) {
        if !self.standbys.is_empty() && !self.standbys.contains(&self.address) {
            return;
        }
        self.standbys.clear();
        let pause = self.env.jittered(self.pause);
        self.pause = (self.pause * 2).min(self.pause_max);
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
