//! `kiln mgmtd`, `kiln meta`, `kiln storage`: one server in this process.

use crate::engine::Engine;
use crate::exporter::{self, Exporter};
use crate::failure::{Failure, Outcome};
use crate::runtime;
use kiln_config::{
    LogConfig, LogFormat, MetaConfig, MgmtdConfig, ServiceConfig, Setting, StorageConfig,
};
use kiln_env::Env;
use kiln_launch::Supervised;
use kiln_telemetry::{Identity, LogOptions};
use kiln_types::Result;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

/// What every server is told; flags come over the environment, and that over the file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file; 'kiln config example SERVICE' prints one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Where to listen; port 0: any free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// The least level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// The file to log to instead of standard error
    #[arg(long, value_name = "FILE")]
    log_file: Option<String>,

    /// Set any key of the configuration, for example lease.duration=10s
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What a server that joins a cluster is told beside that.
#[derive(Debug, clap::Args)]
pub(crate) struct MemberArgs {
    #[command(flatten)]
    server: Args,

    /// A manager of the cluster; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    mgmtd: Vec<String>,
}

/// Called once, with the address that is listened on, when the server is ready.
pub(crate) type Ready = Box<dyn FnOnce(SocketAddr) + Send>;
/// Ends when the server is asked to stop.
pub(crate) type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Args {
    fn settings(&self) -> Result<Vec<Setting>> {
        let mut settings =
            self.set.iter().map(|set| Setting::parse(set)).collect::<Result<Vec<_>>>()?;
        let listen = self.listen.map(|listen| Setting::flag("--listen", "node.listen", listen));
        let level = self.log_level.as_ref().map(|to| Setting::flag("--log-level", "log.level", to));
        let file = self.log_file.as_ref().map(|to| Setting::flag("--log-file", "log.file", to));
        settings.extend([listen, level, file].into_iter().flatten());
        Ok(settings)
    }
}

/// Runs a manager.
pub(crate) fn mgmtd(args: &Args) -> Outcome {
    run(args, |config: MgmtdConfig, env, ready, shutdown| async move {
        let engine = Engine::open(&config.node, &config.kv, &env).await?;
        let shutdown = or_failure(shutdown, &engine);
        let ended = kiln_mgmtd::run(config, env, engine.kv(), ready, shutdown).await;
        ended.and(engine.close().await)
    })
}

/// Runs a metadata server.
pub(crate) fn meta(args: &MemberArgs) -> Outcome {
    run_member(args, |config: MetaConfig, env, ready, shutdown| async move {
        let engine = Engine::open(&config.node, &config.kv, &env).await?;
        let shutdown = or_failure(shutdown, &engine);
        let ended = kiln_meta_server::run(config, env, engine.kv(), ready, shutdown).await;
        ended.and(engine.close().await)
    })
}

/// Runs a storage server.
pub(crate) fn storage(args: &MemberArgs) -> Outcome {
    run_member(args, |config: StorageConfig, env, ready, shutdown| {
        kiln_storage_server::run(config, env, ready, shutdown)
    })
}

/// Ends as well when the engine has failed: a new process opens it anew.
fn or_failure(shutdown: Shutdown, engine: &Engine) -> Shutdown {
    let engine = engine.clone();
    Box::pin(async move {
        tokio::select! {
            () = shutdown => {}
            () = engine.failed() => {}
        }
    })
}

/// Runs a server by itself.
fn run<C, F>(args: &Args, serve: impl FnOnce(C, Env, Ready, Shutdown) -> F) -> Outcome
where
    C: ServiceConfig,
    F: Future<Output = Result<()>>,
{
    start(args, args.settings().map_err(Failure::usage)?, serve)
}

/// Runs a server that joins a cluster.
fn run_member<C, F>(args: &MemberArgs, serve: impl FnOnce(C, Env, Ready, Shutdown) -> F) -> Outcome
where
    C: ServiceConfig,
    F: Future<Output = Result<()>>,
{
    let mut settings = args.server.settings().map_err(Failure::usage)?;
    if !args.mgmtd.is_empty() {
        settings.push(Setting::flag("--mgmtd", "cluster.mgmtd", format!("{:?}", args.mgmtd)));
    }
    start(&args.server, settings, serve)
}

fn start<C, F>(
    args: &Args,
    settings: Vec<Setting>,
    serve: impl FnOnce(C, Env, Ready, Shutdown) -> F,
) -> Outcome
where
    C: ServiceConfig,
    F: Future<Output = Result<()>>,
{
    let supervised = Supervised::follow()?;
    let mut config: C = kiln_config::load(Some(&args.config), std::env::vars(), &settings)?;
    kiln_telemetry::init(&log_options(config.log()))?;
    raise_file_limit();
    let service = C::SERVICE;
    let node = config.node().id;
    tracing::info!(%service, %node, version = env!("CARGO_PKG_VERSION"), "server starts");
    runtime::many()?.block_on(async {
        let env = Env::real();
        let _exporter = export(&mut config, &env).await?;
        let mut stop = supervised.stop()?;
        let shutdown = Box::pin(async move { stop.requested().await });
        let ready = Box::new(move |address| {
            tracing::info!(%service, %node, %address, "server is ready");
            Supervised::announce(address);
        });
        serve(config, env, ready, shutdown).await
    })?;
    tracing::info!(%service, %node, "server has stopped");
    Ok(())
}

/// The key of the tag under which a server registers where its metrics are.
pub(crate) const METRICS_TAG: &str = "metrics";

/// Shows the metrics where the configuration says so, and lets the server register the address.
async fn export<C: ServiceConfig>(config: &mut C, env: &Env) -> Result<Option<Exporter>> {
    let Some(listen) = config.metrics().listen else { return Ok(None) };
    let identity = Identity::server(C::SERVICE, config.node().id, env.wall());
    let exporter = exporter::export(listen, identity, env).await?;
    let address = config.node().reachable(exporter.address());
    config.node_mut().tags.insert(METRICS_TAG.into(), address);
    Ok(Some(exporter))
}

fn log_options(config: &LogConfig) -> LogOptions {
    LogOptions {
        level: config.level.into(),
        format: match config.format {
            LogFormat::Text => kiln_telemetry::LogFormat::Text,
            LogFormat::Json => kiln_telemetry::LogFormat::Json,
        },
        file: Some(config.file.clone()).filter(|file| !file.as_os_str().is_empty()),
        slow: config.slow,
    }
}

/// A server has a socket for each client: it takes as many open files as it may.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
