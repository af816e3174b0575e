//! A command's connection to a cluster.

use crate::failure::{Failure, Outcome};
use crate::place::{Meant, Place};
use crate::runtime;
use kiln_client::{Client, Options};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_manager_link::{ManagerClient, manager_client};
use kiln_net::Identity;
use kiln_rpc::{error_from_status, v1};
use kiln_types::{Action, Caller, Context, Credential, Error, Result, ServiceKind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the manager may take for an operator's call.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// How long one of several managers may take to say whether it is the primary.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// A cluster that answers.
pub(crate) struct Remote {
    pub(crate) client: Arc<Client>,
    identity: Identity,
    managers: Vec<String>,
    pub(crate) env: Env,
    /// Who runs the command.
    pub(crate) caller: Caller,
}

/// Runs `body` with the cluster that `place` means.
pub(crate) fn run(place: &Place, body: impl AsyncFnOnce(&Arc<Remote>) -> Outcome) -> Outcome {
    let (address, credential) = match place.meant()? {
        Meant::Dir(dir) => of_dir(&ClusterDir::open(&dir)?)?,
        Meant::Elsewhere(address, file) => (address, kiln_config::read_credential(&file)?),
    };
    let runtime = runtime::many()?;
    runtime.block_on(async {
        let remote = Arc::new(Remote::connect(&address, credential, Env::real()).await?);
        let outcome = body(&remote).await;
        if let Some(remote) = Arc::into_inner(remote) {
            remote.close().await;
        }
        outcome
    })
}

/// How to reach a cluster of this machine.
pub(crate) fn of_dir(dir: &ClusterDir) -> Result<(String, Credential)> {
    Ok((dir.mgmtd_address()?, kiln_config::read_credential(&dir.credential())?))
}

impl Remote {
    /// Connects to the managers at `addresses` (`HOST:PORT`, several with commas between them).
    ///
    /// # Errors
    /// `Unreachable` when none answers, `NotAuthenticated` when it refuses the credential.
    pub(crate) async fn connect(addresses: &str, credential: Credential, env: Env) -> Result<Self> {
        let identity = Identity::Client(credential.clone());
        let managers = managers(addresses);
        let connecting = Client::connect(&env, managers.clone(), credential, Options::default());
        let client = Arc::new(Box::pin(connecting).await?);
        Ok(Self { client, identity, managers, env, caller: this_user()? })
    }

    /// Says goodbye to the servers.
    pub(crate) async fn close(self) {
        if let Some(client) = Arc::into_inner(self.client) {
            Box::pin(client.close()).await;
        }
    }

    /// Makes an operator's call to the primary manager.
    ///
    /// # Errors
    /// The manager's, or `DeadlineExceeded`.
    pub(crate) async fn manager<T>(
        &self,
        what: &str,
        call: impl AsyncFnOnce(ManagerClient) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        let primary = self.primary().await.context(what)?;
        let reply = self.env.timeout(CALL_WITHIN, what, call(primary)).await?;
        let reply = reply.map_err(|status| error_from_status(&status));
        reply.map(tonic::Response::into_inner).context(what)
    }

    /// The manager that decides: one after the other is asked, since after the death of one it takes a
    /// moment until there is another.
    async fn primary(&self) -> Result<ManagerClient> {
        let deadline = self.env.deadline_after(CALL_WITHIN);
        loop {
            let mut last = Error::internal("no manager is known");
            for address in self.known_managers() {
                let mut manager =
                    manager_client(&address, self.identity.clone(), self.env.clone())?;
                let asked = manager.get_config(v1::Empty {});
                let asked = self.env.timeout(ANSWER_WITHIN, &address, asked).await;
                match asked.and_then(|r| r.map_err(|status| error_from_status(&status))) {
                    Ok(_) => return Ok(manager),
                    Err(error) if error.code().action() == Action::GiveUp => return Err(error),
                    Err(error) => last = error.while_doing(format_args!("manager at {address}")),
                }
            }
            if deadline.left(self.env.now()).is_zero() {
                return Err(last);
            }
            self.env.sleep(PAUSE).await;
        }
    }

    fn known_managers(&self) -> BTreeSet<String> {
        let routing = self.client.routing();
        let nodes = routing.nodes.values().filter(|node| node.kind == ServiceKind::Mgmtd);
        let registered = nodes.filter(|node| node.alive).map(|node| node.address.clone());
        self.managers.iter().cloned().chain(registered).collect()
    }
}

/// The managers that were named, with commas between them.
pub(crate) fn managers(addresses: &str) -> Vec<String> {
    addresses.split(',').map(|address| address.trim().to_owned()).collect()
}

fn this_user() -> Result<Caller> {
    let groups = rustix::process::getgroups()
        .map_err(|error| Error::local("groups of this user", &error.into()))?;
    Ok(Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: groups.into_iter().map(rustix::process::Gid::as_raw).collect(),
    })
}

/// Refuses a path of the wrong kind with what would be right.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::usage(Error::invalid(message).with_hint(hint))
}
