//! What a manager process is: a standby that follows the primary, or the primary.

use crate::manager::{Manager, Options};
use crate::owner::{Handle, Owner};
use crate::seat::Seat;
use crate::server::Site;
use crate::service::Service;
use crate::store::Store;
use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_manager_link::{LeaseView, LinkOptions, ManagerLink};
use kiln_telemetry::metrics;
use kiln_types::{Code, Context, Error, Incarnation, Node, Result, RoutingInfo, ServiceKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The pause before a manager that lost its seat stands again.
const PAUSE: Duration = Duration::from_millis(300);

/// What this process is now.
#[derive(Clone)]
pub(crate) enum Role {
    /// It has not found out yet.
    Seeking,
    /// Another one is the primary.
    Standby {
        /// Its address.
        primary: String,
        /// What it publishes, as this one heard.
        routing: watch::Receiver<Arc<RoutingInfo>>,
        /// Whether this one still hears of it.
        lease: Arc<LeaseView>,
    },
    /// It decides.
    Primary(Handle),
}

impl Role {
    /// The way to the owner of the state.
    ///
    /// # Errors
    /// `NotPrimary`, with who is.
    pub(crate) fn primary(&self) -> Result<&Handle> {
        let refused = |what: String| Err(Error::new(Code::NotPrimary, what));
        match self {
            Self::Primary(handle) => Ok(handle),
            Self::Seeking => {
                refused("this manager does not know yet which one is the primary".into())
            }
            Self::Standby { primary, .. } => {
                refused(format!("this manager stands by, the primary one is at {primary}"))
            }
        }
    }

    /// The routing information, now and after each change.
    pub(crate) fn routing(&self) -> Result<watch::Receiver<Arc<RoutingInfo>>> {
        match self {
            Self::Primary(handle) => Ok(handle.published()),
            Self::Standby { routing, .. } => Ok(routing.clone()),
            Self::Seeking => self.primary().map(Handle::published),
        }
    }

    /// Waits until a standby does not hear of the primary any more: what it knows may be old then.
    pub(crate) async fn out_of_touch(self, env: &Env) {
        let Self::Standby { lease, .. } = self else { return std::future::pending().await };
        while lease.may_serve(env.now()) {
            env.sleep(lease.fenced_at().since(env.now())).await;
        }
    }
}

/// The life of a manager process over its store.
pub struct Roles {
    site: Site,
    own: Node,
    kv: Arc<dyn Kv>,
    role: watch::Sender<Role>,
    env: Env,
}

impl Roles {
    /// A manager that has not looked at its store yet, and what answers for it.
    ///
    /// # Errors
    /// `Internal` when its configuration cannot be shown.
    pub fn new(site: Site, kv: Arc<dyn Kv>, env: &Env) -> Result<(Self, Service)> {
        let config = &site.config;
        let own = Node {
            id: config.node.id,
            kind: ServiceKind::Mgmtd,
            address: site.address.clone(),
            incarnation: Incarnation(env.random_u128()),
            alive: true,
            tags: config.node.tags.clone(),
        };
        let (role, roles) = watch::channel(Role::Seeking);
        let service = Service {
            role: roles,
            key: site.key.clone(),
            lease: lease_times(&site),
            config: kiln_config::to_toml(config)?.into(),
            differences: Arc::default(),
            env: env.clone(),
        };
        Ok((Self { site, own, kv, role, env: env.clone() }, service))
    }

    /// Stands by, takes the seat, decides, loses it and stands by again, until `shutdown`. Then another
    /// manager may take over at once.
    ///
    /// # Errors
    /// What the store says, when nobody else can have it open; else it is tried again.
    pub async fn play(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let mut seat = None;
            let ended = tokio::select! {
                biased;
                () = &mut shutdown => None,
                ended = self.term(&mut seat) => Some(ended),
            };
            // From here on it answers nobody.
            self.role.send_replace(Role::Seeking);
            if let Some(seat) = seat
                && let Err(error) = seat.leave().await
            {
                tracing::debug!(%error, "the seat was not left");
            }
            match ended {
                None => return Ok(()),
                Some(ended) if self.kv.is_exclusive() => return ended,
                Some(ended) => {
                    tracing::warn!("not the primary manager any more: {:?}", ended.err());
                    self.env.sleep(PAUSE).await;
                }
            }
        }
    }

    /// One time in the seat, and the wait before it.
    async fn term(&self, held: &mut Option<Seat>) -> Result<()> {
        let mut follower = Follower { roles: self, link: None };
        let (kv, env) = (Arc::clone(&self.kv), self.env.clone());
        let seat = Seat::take(kv, env, &self.site.address, |primary| follower.follow(primary));
        let seat = seat.await?;
        drop(follower);
        *held = Some(seat.clone());
        let options = self.options(seat.succeeds);
        let (store, state) = Store::open(seat, self.site.key.cluster).await?;
        let manager = Manager::new(options, state.clone(), self.env.now());
        let ring = Arc::clone(&self.site.ring);
        let owner = Owner::start(manager, store, state, ring, self.env.clone());
        let (owner, handle) = owner.await?;
        tracing::info!(node = %self.own.id, "this manager is the primary");
        metrics::MGMTD_PRIMARY.set(1);
        self.role.send_replace(Role::Primary(handle));
        let ended = owner.run().await;
        metrics::MGMTD_PRIMARY.set(0);
        ended.context("the primary manager")
    }

    /// A cluster that runs needs no time to start: who is silent now is dead.
    fn options(&self, succeeds: bool) -> Options {
        let lease = lease_times(&self.site);
        let mut patience = Patience { lease: lease.lease, ..Patience::default() };
        if succeeds {
            patience.startup = lease.lease;
        }
        Options {
            own: self.own.clone(),
            lease,
            patience,
            bootstrap: self.site.config.bootstrap.clone(),
            key: self.site.key.id,
            rebuild_after: self.site.config.rebuild.after,
        }
    }
}

fn lease_times(site: &Site) -> LeaseTimes {
    let config = &site.config.lease;
    LeaseTimes { lease: config.duration, heartbeat: config.heartbeat }
}

/// A standby is a member of the cluster as other servers are, and passes on what it hears.
struct Follower<'a> {
    roles: &'a Roles,
    link: Option<ManagerLink>,
}

impl Follower<'_> {
    fn follow(&mut self, primary: &str) {
        self.link = None;
        match self.connect(primary) {
            Ok(link) => {
                let (routing, lease) = (link.routing().subscribe(), Arc::clone(link.lease()));
                self.link = Some(link);
                let standby = Role::Standby { primary: primary.into(), routing, lease };
                self.roles.role.send_replace(standby);
            }
            Err(error) => tracing::warn!(primary, %error, "the primary manager cannot be followed"),
        }
    }

    fn connect(&self, primary: &str) -> Result<ManagerLink> {
        let Roles { site, own, env, .. } = self.roles;
        let options = LinkOptions {
            managers: vec![primary.into()],
            key: site.key.clone(),
            node: own.id,
            kind: own.kind,
            address: own.address.clone(),
            incarnation: own.incarnation,
            tags: own.tags.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            adopts_at_once: true,
        };
        let (ring, reach) = (Arc::clone(&site.ring), Arc::clone(&site.reach));
        ManagerLink::start_over(reach, options, ring, Arc::new(()), env.clone())
    }
}
