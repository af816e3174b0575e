//! The process that serves a mount.

use super::{Ready, Wanted};
use crate::exporter::{self, Exporter};
use crate::failure::Outcome;
use crate::place::Meant;
use crate::remote::{managers, of_dir};
use crate::{detached, output, runtime, serve};
use kiln_client::{Client, Options};
use kiln_client_fuse::mount::{How, ProcessId, Record, Written, prepare, table, unmount, users};
use kiln_client_fuse::{FileSystem, KernelLink, Session, file_system};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Stop, Supervised};
use kiln_telemetry::{Identity, LogOptions};
use kiln_types::{Code, Context, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the cluster may take to show that it is there.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// How long users of a mount that is taken from under them may take to go.
const DETACHED_WITHIN: Duration = Duration::from_secs(5);

/// Mounts, tells whoever started this, and serves until it is unmounted.
pub(super) fn background(wanted: Wanted) -> Outcome {
    detached::leave();
    // The directory that it was started in is no business of a daemon's.
    let root = std::env::set_current_dir("/").context("/");
    runtime::many()?.block_on(async {
        let env = Env::real();
        let started = async {
            root?;
            let (mounting, mut stop) = (start(&wanted, true, &env), Stop::on_any()?);
            let mounted = tokio::select! {
                mounted = mounting => mounted?,
                () = stop.requested() => std::process::exit(1),
            };
            Outcome::Ok((mounted, stop))
        };
        let (mounted, stop) = detached::answer(started.await, |(mounted, _)| mounted.ready())?;
        mounted.serve(stop, &env).await?;
        Ok(())
    })
}

/// Mounts and serves until it is unmounted or this process is asked to stop.
pub(super) fn foreground(wanted: Wanted) -> Outcome {
    let supervised = Supervised::follow()?;
    runtime::many()?.block_on(async {
        let env = Env::real();
        let mut stop = supervised.stop()?;
        let mounted = tokio::select! {
            mounted = start(&wanted, false, &env) => mounted?,
            () = stop.requested() => return Ok(()),
        };
        if supervised.is_supervised() {
            Supervised::announce(mounted.session.path().display());
        } else {
            output::tell(super::mounted_text(&mounted.ready()).trim_end());
        }
        mounted.serve(stop, &env).await?;
        Ok(())
    })
}

/// A mount that is being served.
struct Mounted {
    fs: Arc<dyn FileSystem>,
    session: Session,
    /// Kept as long as it is served.
    _record: Option<Written>,
    _exporter: Option<Exporter>,
    source: String,
    notes: Vec<String>,
}

async fn start(wanted: &Wanted, to_file: bool, env: &Env) -> Result<Mounted> {
    let mut notes = Vec::new();
    let path = prepare(&wanted.path, env, |note| notes.push(note)).await?;
    let (address, credential) = match &wanted.meant {
        Meant::Dir(dir) => of_dir(&ClusterDir::open(dir)?)?,
        Meant::Elsewhere(address, file) => (address.clone(), kiln_config::read_credential(file)?),
    };
    let log = match to_file {
        true => Some(wanted.log()),
        false => wanted.log_file.clone(),
    };
    match &log {
        Some(file) => detached::log_to(file, wanted.slow)?,
        None => kiln_telemetry::init(&LogOptions { slow: wanted.slow, ..LogOptions::default() })?,
    }
    serve::raise_file_limit();
    let exporter = match wanted.metrics {
        Some(listen) => {
            Some(exporter::export(listen, Identity::mount(&path, env.wall()), env).await?)
        }
        None => None,
    };
    let metrics = exporter.as_ref().map(Exporter::address);
    notes.iter().for_each(|note| tracing::info!("{note}"));
    let link = KernelLink::new();
    let fs = connect(wanted, address, credential, Arc::clone(&link), env).await?;
    let session = Session::mount(Arc::clone(&fs), link, &path, &wanted.mount, env)?;
    let _record = record(wanted, path, log, metrics, env);
    let (pid, source) = (std::process::id(), wanted.source.clone());
    tracing::info!(path = %session.path().display(), source, pid, "mounted");
    Ok(Mounted { fs, session, _record, _exporter: exporter, source, notes })
}

async fn connect(
    wanted: &Wanted,
    address: String,
    credential: kiln_types::Credential,
    link: Arc<KernelLink>,
    env: &Env,
) -> Result<Arc<dyn FileSystem>> {
    let timeout = wanted.fs.io_timeout;
    let options = Options {
        io_timeout: timeout,
        meta_timeout: timeout,
        consistency: wanted.consistency,
        keeps_set_ids: true,
        ..Options::default()
    };
    let what = format!("the cluster at {address}");
    let connecting = async {
        let client = Client::connect(env, managers(&address), credential, options);
        let client = Arc::new(Box::pin(client).await?);
        Box::pin(file_system(env.clone(), client, link, wanted.fs.clone())).await
    };
    env.timeout(CONNECT_WITHIN, &what, connecting).await?
}

/// Writes down who serves the mount. Without that it is served all the same.
fn record(
    wanted: &Wanted,
    path: PathBuf,
    log: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    env: &Env,
) -> Option<Written> {
    let cluster_dir = match &wanted.meant {
        Meant::Dir(dir) => Some(dir.clone()),
        Meant::Elsewhere(..) => None,
    };
    let written = table::read().and_then(|mounts| {
        let device = table::at(&mounts, &path).map(|mount| mount.device.clone());
        let (Some(device), Some(daemon)) = (device, ProcessId::own()) else { return Ok(None) };
        let source = wanted.source.clone();
        let since = env.wall();
        Record { path, source, cluster_dir, daemon, since, log, metrics }.write(&device).map(Some)
    });
    written.unwrap_or_else(|error| {
        tracing::warn!(%error, "'kiln umount' will not wait for this daemon");
        None
    })
}

impl Mounted {
    fn ready(&self) -> Ready {
        Ready {
            path: self.session.path().into(),
            source: self.source.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Serves until it is unmounted, by whomever; then everything is brought to the cluster.
    async fn serve(mut self, mut stop: Stop, env: &Env) -> Result<()> {
        let ended = tokio::select! {
            () = self.session.ended() => Ok(()),
            () = stop.requested() => self.unmount(env).await,
        };
        tracing::info!("unmounted; bringing to the cluster what is not there yet");
        tokio::select! {
            () = self.fs.shut_down() => tracing::info!("the mount's daemon ends"),
            () = stop.requested() => tracing::warn!("ends at once, as asked a second time"),
        }
        ended
    }

    async fn unmount(&mut self, env: &Env) -> Result<()> {
        let path = self.session.path().to_path_buf();
        // The kernel may write pages back first, which this process has to take.
        let unmounted = env.blocking({
            let path = path.clone();
            move || unmount(&path, How::UnlessBusy)
        });
        let detached = match unmounted.await? {
            Err(error) if error.code() == Code::Busy => {
                for user in users(&path, env).await {
                    tracing::warn!(
                        pid = user.pid,
                        name = user.name,
                        "uses the mount: {}",
                        user.how
                    );
                }
                tracing::warn!("the mount is in use and is detached");
                env.blocking(move || unmount(&path, How::Lazily)).await??;
                true
            }
            unmounted => {
                unmounted?;
                false
            }
        };
        match env.timeout(DETACHED_WITHIN, "users of the mount", self.session.ended()).await {
            Err(_) if detached => Ok(()),
            ended => ended,
        }
    }
}
