//! The way of members to the managers: calls that pass through the simulated network.

use crate::manager::ManagerHost;
use async_trait::async_trait;
use kiln_env::Env;
use kiln_manager_link::Reach;
use kiln_mgmtd::{Counter, Service};
use kiln_net::{Peer, SimulatedNetwork};
use kiln_rpc::{Heartbeat, ManagerCalls, Registered, Registration, RoutingUpdates, TargetOrders};
use kiln_types::{Code, Error, Result, RoutingChange, RoutingVersion};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often it is looked whether a way is open again.
const LOOK: Duration = Duration::from_millis(50);
/// A call or stream whose way is cut for so long breaks.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often connections between a member and a manager broke.
pub(crate) type Breaks = Arc<Mutex<BTreeMap<(String, String), u64>>>;
/// The managers' machines, known once all are there.
pub(crate) type Managers = Arc<OnceLock<Vec<Weak<ManagerHost>>>>;

/// The way of one member to the managers.
#[derive(Clone)]
pub(crate) struct Road {
    pub(crate) member: String,
    pub(crate) peer: Arc<Peer>,
    pub(crate) managers: Managers,
    pub(crate) breaks: Breaks,
    pub(crate) network: SimulatedNetwork,
    /// What travels is on no machine: its own clock is right, and it does not crash.
    pub(crate) ground: Env,
}

impl Reach for Road {
    fn manager(&self, address: &str) -> Result<Arc<dyn ManagerCalls>> {
        let name = address.split(':').next().unwrap_or_default().to_owned();
        Ok(Arc::new(Line { road: self.clone(), manager: name }))
    }
}

/// The way of one member to one manager.
#[derive(Clone)]
struct Line {
    road: Road,
    manager: String,
}

fn lost() -> Error {
    Error::new(Code::ConnectionLost, "the connection to the manager broke")
}

impl Road {
    /// A message travels, if it is not lost.
    async fn travel(&self, from: &str, to: &str) -> Result<()> {
        if self.network.loses() {
            return Err(lost());
        }
        self.ground.sleep(self.network.delay()).await;
        let start = self.ground.now();
        while self.network.is_cut(from, to) {
            if self.ground.now().since(start) > PATIENCE {
                return Err(lost());
            }
            self.ground.sleep(LOOK).await;
        }
        Ok(())
    }

    /// How often the connections with the manager broke.
    fn broken(&self, manager: &str) -> u64 {
        let way = (self.member.clone(), manager.to_owned());
        self.breaks.lock().get(&way).copied().unwrap_or(0)
    }

    /// Ends when a stream from the manager has lost its connection, of those that broke since `broken`.
    async fn silence(&self, manager: &str, broken: u64) -> Error {
        let mut heard = self.ground.now();
        loop {
            self.ground.sleep(10 * LOOK).await;
            if self.broken(manager) != broken {
                return lost();
            }
            let is_cut = |from, to| self.network.is_cut(from, to);
            if !is_cut(manager, &self.member) && !is_cut(&self.member, manager) {
                heard = self.ground.now();
            } else if self.ground.now().since(heard) > PATIENCE {
                return lost();
            }
        }
    }

    fn service(&self, manager: &str) -> Option<Service> {
        let mut managers = self.managers.get()?.iter().filter_map(Weak::upgrade);
        managers.find(|host| host.name == manager)?.service()
    }
}

impl Line {
    /// Sends a question and waits for its answer. The question goes its way whatever becomes of the
    /// caller, as bytes in a socket do.
    async fn ask<T, F>(&self, question: impl FnOnce(Counter) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let Self { road, manager } = self.clone();
        let errand = async move {
            let (member, manager) = (&road.member, &*manager);
            let asked = async {
                road.travel(member, manager).await?;
                let service = road.service(manager);
                let service = service.ok_or_else(|| Error::new(Code::Unreachable, "no manager"))?;
                let answer = question(service.counter(Arc::clone(&road.peer))).await;
                road.travel(manager, member).await?;
                answer
            };
            let _ = sender.send(asked.await);
        };
        self.road.ground.spawn("errand", errand).detach();
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

#[async_trait]
impl ManagerCalls for Line {
    async fn register(&self, registration: Registration) -> Result<Registered> {
        self.ask(|counter| async move { counter.register(registration).await }).await
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<TargetOrders> {
        self.ask(|counter| async move { counter.heartbeat(heartbeat).await }).await
    }

    async fn watch_routing(&self, known: RoutingVersion) -> Result<Box<dyn RoutingUpdates>> {
        let broken = self.road.broken(&self.manager);
        let updates = self.ask(move |counter| async move { counter.watch_routing(known).await });
        Ok(Box::new(Updates { line: self.clone(), broken, updates: updates.await? }))
    }
}

struct Updates {
    line: Line,
    /// How often the connection had broken when it was made.
    broken: u64,
    updates: Box<dyn RoutingUpdates>,
}

#[async_trait]
impl RoutingUpdates for Updates {
    async fn next(&mut self) -> Result<Option<RoutingChange>> {
        let Line { road, manager } = &self.line;
        let update = tokio::select! {
            biased;
            update = self.updates.next() => update?,
            lost = road.silence(manager, self.broken) => return Err(lost),
        };
        road.travel(manager, &road.member).await?;
        Ok(update)
    }
}
