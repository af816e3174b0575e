//! A real manager and links over TCP on loopback, with short leases.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_config::{BootstrapConfig, LeaseConfig, MgmtdConfig, NodeConfig};
use kiln_env::{Env, Task};
use kiln_kv::{Kv, MemoryKv};
use kiln_manager_link::{LinkOptions, ManagerLink, Reporter, RoutingWatch, manager_client};
use kiln_net::{Identity, KeyRing};
use kiln_rpc::{DiskReport, TargetReport, error_from_status, v1};
use kiln_types::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(10);

struct Cluster {
    env: Env,
    key: ServerKey,
    kv: Arc<dyn Kv>,
    directory: tempfile::TempDir,
    listen: SocketAddr,
    manager: Option<(oneshot::Sender<()>, Task<Result<()>>)>,
}

impl Cluster {
    async fn start() -> Self {
        let env = Env::real();
        let key = ServerKey { cluster: ClusterId(77), id: KeyId(1), secret: Secret([7; 32]) };
        let directory = tempfile::tempdir().unwrap();
        kiln_config::create_server_key(&directory.path().join("server.key"), &key).unwrap();
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new(&env));
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut cluster = Self { env, key, kv, directory, listen, manager: None };
        cluster.start_manager().await;
        cluster
    }

    async fn start_manager(&mut self) {
        let config = MgmtdConfig {
            node: NodeConfig {
                listen: self.listen,
                server_key: self.directory.path().join("server.key"),
                ..NodeConfig::of(ServiceKind::Mgmtd)
            },
            bootstrap: BootstrapConfig { credential: "admin".into(), ..BootstrapConfig::default() },
            lease: LeaseConfig {
                duration: Duration::from_millis(1500),
                heartbeat: Duration::from_millis(100),
            },
            ..MgmtdConfig::default()
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let (env, kv) = (self.env.clone(), Arc::clone(&self.kv));
        let run = async move {
            let shutdown = async { drop(stopped.await) };
            let ready = |address| ready.send(address).unwrap();
            kiln_mgmtd::run(config, env, kv, ready, shutdown).await
        };
        self.manager = Some((stop, self.env.spawn("manager", run)));
        self.listen = is_ready.await.expect("the manager starts");
    }

    async fn stop_manager(&mut self) {
        let (stop, task) = self.manager.take().unwrap();
        drop(stop);
        task.join().await.unwrap().unwrap();
    }

    fn options(&self, node: u64) -> LinkOptions {
        LinkOptions {
            managers: vec![self.listen.to_string()],
            key: self.key.clone(),
            node: NodeId(node),
            kind: ServiceKind::Storage,
            address: format!("127.0.0.1:{node}"),
            incarnation: Incarnation(self.env.random_u128()),
            tags: BTreeMap::from([("host".into(), "here".into())]),
            version: "test".into(),
            adopts_at_once: false,
        }
    }

    fn storage(&self, node: u64, disks: &Arc<Disks>) -> Storage {
        Storage::start(self.options(node), Arc::clone(disks), &self.env)
    }

    fn identity(&self) -> Identity {
        Identity::Client(kiln_wire_credential(&self.key))
    }
}

fn kiln_wire_credential(key: &ServerKey) -> Credential {
    Credential {
        cluster: key.cluster,
        name: "admin".into(),
        key: key.id,
        secret: kiln_wire::client_secret(key, "admin"),
    }
}

/// What stays when a storage server restarts.
struct Disks {
    disk: DiskId,
    targets: Mutex<BTreeMap<TargetId, (ChainVersion, LocalState)>>,
}

impl Disks {
    fn new(node: u64) -> Arc<Self> {
        Arc::new(Self { disk: DiskId(u128::from(node)), targets: Mutex::default() })
    }
}

impl Reporter for Disks {
    fn disks(&self) -> Vec<DiskReport> {
        vec![DiskReport { disk: self.disk, capacity_bytes: 1 << 30, used_bytes: 0 }]
    }

    fn targets(&self) -> Vec<TargetReport> {
        let targets = self.targets.lock();
        let report = |(id, (version, local)): (&TargetId, &(ChainVersion, LocalState))| {
            let (target, local, chain_version) = (*id, *local, *version);
            TargetReport {
                target,
                local,
                chain_version,
                used_bytes: 0,
                oldest_io: Duration::ZERO,
                unreachable: None,
                fill: None,
            }
        };
        targets.iter().map(report).collect()
    }
}

/// A storage server without chunks: it creates targets and takes up routing information.
struct Storage {
    link: ManagerLink,
    _tasks: [Task<()>; 2],
}

impl Storage {
    fn start(options: LinkOptions, disks: Arc<Disks>, env: &Env) -> Self {
        let ring = Arc::new(KeyRing::new(options.key.clone()));
        let link = ManagerLink::start(options, ring, disks.clone(), env.clone()).unwrap();
        let mut orders = link.orders();
        let created = Arc::clone(&disks);
        let create = env.spawn("create", async move {
            while orders.changed().await.is_ok() {
                for order in &orders.borrow_and_update().create {
                    assert_eq!(order.disk, created.disk);
                    let new = (ChainVersion(0), LocalState::Online);
                    created.targets.lock().entry(order.target).or_insert(new);
                }
            }
        });
        let (mut routing, lease) = (link.routing().subscribe(), Arc::clone(link.lease()));
        let adopt = env.spawn("adopt", async move {
            while routing.changed().await.is_ok() {
                let routing = routing.borrow_and_update().clone();
                for (target, known) in disks.targets.lock().iter_mut() {
                    let Some(chain) =
                        routing.targets.get(target).and_then(|t| routing.chains.get(&t.chain))
                    else {
                        continue;
                    };
                    let serving = chain.state_of(*target) == Some(PublicState::Serving);
                    let local = if serving { LocalState::UpToDate } else { LocalState::Online };
                    *known = (chain.version, local);
                }
                lease.adopt(routing.version);
            }
        });
        Self { link, _tasks: [create, adopt] }
    }

    fn serves(&self, env: &Env) -> bool {
        self.link.lease().may_serve(env.now())
    }
}

async fn until(
    env: &Env,
    routing: &mut watch::Receiver<Arc<RoutingInfo>>,
    what: &str,
    is: impl FnMut(&Arc<RoutingInfo>) -> bool,
) -> Arc<RoutingInfo> {
    let found = env.timeout(PATIENCE, what, routing.wait_for(is)).await;
    found.unwrap().unwrap().clone()
}

fn all_serve(routing: &RoutingInfo) -> bool {
    routing.newest_table(ChainTableId(1)).is_some()
        && routing.chains.values().all(|chain| chain.serving().count() == 3)
}

fn serving_of(routing: &RoutingInfo, node: u64) -> usize {
    let members = routing.chains.values().flat_map(Chain::serving);
    members.filter(|target| routing.node_of(*target).is_some_and(|n| n.id.0 == node)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_from_its_first_start_to_a_planned_stop() {
    let mut cluster = Cluster::start().await;
    let env = cluster.env.clone();
    let disks: Vec<_> = (101..=103).map(Disks::new).collect();
    let mut servers: Vec<_> =
        disks.iter().zip(101..).map(|(disks, node)| cluster.storage(node, disks)).collect();
    for server in &servers {
        server.link.registered(env.deadline_after(PATIENCE)).await.unwrap();
    }
    let address = cluster.listen.to_string();
    let watch = RoutingWatch::start(vec![address.clone()], cluster.identity(), &env).unwrap();
    let seen = watch.routing().ready(env.deadline_after(PATIENCE), &env).await.unwrap();
    assert!(seen.credentials.is_empty(), "credentials are the servers' business");
    let mut routing = watch.routing().subscribe();
    let seen = until(&env, &mut routing, "all chains", |routing| all_serve(routing)).await;
    assert_eq!((seen.chains.len(), seen.targets.len()), (6, 18));
    assert!(seen.chains.values().all(|chain| chain.min_serving == 2));
    env.sleep(Duration::from_millis(300)).await;
    assert!(servers.iter().all(|server| server.serves(&env)));

    // The manager restarts: nobody notices.
    cluster.stop_manager().await;
    env.sleep(Duration::from_millis(300)).await;
    assert!(servers.iter().all(|server| server.serves(&env)));
    cluster.start_manager().await;
    let version = seen.version;
    let seen = until(&env, &mut routing, "a newer version", |r| r.version > version).await;
    env.sleep(Duration::from_millis(1800)).await;
    assert!(all_serve(&routing.borrow()) && servers.iter().all(|server| server.serves(&env)));
    assert_eq!(routing.borrow().chains, seen.chains);

    // A server restarts within its lease: it goes on serving.
    let crashed = servers.pop().unwrap();
    drop(crashed);
    let back = cluster.storage(103, &disks[2]);
    back.link.registered(env.deadline_after(PATIENCE)).await.unwrap();
    env.sleep(Duration::from_millis(1800)).await;
    assert!(back.serves(&env) && all_serve(&routing.borrow()));

    // A planned stop gives its role away before the lease ends: enough others serve.
    let lease = Arc::clone(back.link.lease());
    let start = env.now();
    back.link.stop().await;
    until(&env, &mut routing, "the stop", |r| serving_of(r, 103) == 0).await;
    assert!(env.now().since(start) < Duration::from_millis(1000));
    assert!(!lease.may_serve(env.now()));
    let back = cluster.storage(103, &disks[2]);
    let is_filled = |r: &Arc<RoutingInfo>| {
        r.chains.values().all(|c| c.members[2].state == PublicState::Syncing)
    };
    until(&env, &mut routing, "its return", is_filled).await;

    // The next one is needed: it keeps its role until its lease has ended.
    let lease = Arc::clone(servers[1].link.lease());
    servers.pop().unwrap().link.stop().await;
    assert!(!lease.may_serve(env.now()));
    assert_eq!(serving_of(&routing.borrow(), 102), 6);
    until(&env, &mut routing, "its death", |r| serving_of(r, 102) == 0).await;
    assert_eq!(serving_of(&routing.borrow(), 101), 6);
    drop(back);
    cluster.stop_manager().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_do_only_what_they_may() {
    let cluster = Cluster::start().await;
    let env = cluster.env.clone();
    let address = cluster.listen.to_string();
    let mut admin = manager_client(&address, cluster.identity(), env.clone()).unwrap();
    let code = |status: tonic::Status| error_from_status(&status).code();

    let config = admin.get_config(v1::Empty {}).await.unwrap().into_inner().toml;
    assert!(config.contains("storage_servers = 3"), "{config}");
    let beat = v1::HeartbeatRequest { incarnation: vec![0; 16].into(), ..Default::default() };
    assert_eq!(code(admin.heartbeat(beat).await.unwrap_err()), Code::NotAuthorized);

    let limits = CredentialLimits { operator: false, ..CredentialLimits::default() };
    let create = v1::CreateCredentialRequest {
        name: "user".into(),
        limits: Some(v1::CredentialLimits::from(&limits)),
    };
    let secret = admin.create_credential(create.clone()).await.unwrap().into_inner();
    assert_eq!(code(admin.create_credential(create.clone()).await.unwrap_err()), Code::Exists);
    let user = Identity::Client(Credential::try_from(secret).unwrap());
    let mut client = manager_client(&address, user.clone(), env.clone()).unwrap();
    assert_eq!(code(client.get_config(v1::Empty {}).await.unwrap_err()), Code::NotAuthorized);
    let watch = RoutingWatch::start(vec![address.clone()], user.clone(), &env).unwrap();
    watch.routing().ready(env.deadline_after(PATIENCE), &env).await.unwrap();

    let revoke = v1::RevokeCredentialRequest { name: "user".into() };
    admin.revoke_credential(revoke).await.unwrap();
    assert_eq!(code(admin.create_credential(create).await.unwrap_err()), Code::Exists);
    let watch = RoutingWatch::start(vec![address.clone()], user, &env).unwrap();
    let refused = watch.routing().ready(env.deadline_after(PATIENCE), &env).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotAuthorized, "{refused}");

    // Another cluster's server, and two servers with one id.
    let mut foreign = cluster.options(105);
    foreign.key.cluster = ClusterId(1);
    let foreign = Storage::start(foreign, Disks::new(105), &env);
    let refused = foreign.link.registered(env.deadline_after(PATIENCE)).await.unwrap_err();
    assert_eq!(refused.code(), Code::WrongCluster, "{refused}");
    let disks = Disks::new(106);
    let first = cluster.storage(106, &disks);
    first.link.registered(env.deadline_after(PATIENCE)).await.unwrap();
    let second = cluster.storage(106, &disks);
    second.link.registered(env.deadline_after(PATIENCE)).await.unwrap();
    let refused = env.timeout(PATIENCE, "refusal", first.link.refused()).await.unwrap();
    assert_eq!(refused.code(), Code::StaleIncarnation);
    assert!(!first.serves(&env));
}
