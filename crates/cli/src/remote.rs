//! A command's connection to a cluster.

use crate::failure::{Failure, Outcome};
use crate::place::{Meant, Place};
use crate::runtime;
use kiln_client::{Client, Options};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_manager_link::{ManagerClient, manager_client};
use kiln_net::Identity;
use kiln_rpc::error_from_status;
use kiln_types::{Caller, Context, Credential, Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// How long the manager may take for an operator's call.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// A cluster that answers.
pub(crate) struct Remote {
    pub(crate) client: Arc<Client>,
    manager: ManagerClient,
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
    /// Connects to the manager at `address`.
    ///
    /// # Errors
    /// `Unreachable` when it does not answer, `NotAuthenticated` when it refuses the credential.
    pub(crate) async fn connect(address: &str, credential: Credential, env: Env) -> Result<Self> {
        let identity = Identity::Client(credential.clone());
        let manager = manager_client(address, identity, env.clone())?;
        let managers = vec![address.to_string()];
        let connecting = Client::connect(&env, managers, credential, Options::default());
        let client = Box::pin(connecting).await?;
        Ok(Self { client: Arc::new(client), manager, env, caller: this_user()? })
    }

    /// Says goodbye to the servers.
    pub(crate) async fn close(self) {
        if let Some(client) = Arc::into_inner(self.client) {
            Box::pin(client.close()).await;
        }
    }

    /// Makes an operator's call to the manager.
    ///
    /// # Errors
    /// The manager's, or `DeadlineExceeded`.
    pub(crate) async fn manager<T>(
        &self,
        what: &str,
        call: impl AsyncFnOnce(ManagerClient) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        let reply = self.env.timeout(CALL_WITHIN, what, call(self.manager.clone())).await?;
        let reply = reply.map_err(|status| error_from_status(&status));
        reply.map(tonic::Response::into_inner).context(what)
    }
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
