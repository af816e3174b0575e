//! The server's disks: opened, formatted when they are new, refused when they are another cluster's.

use kiln_chunk_store::{Identity, Options, Store};
use kiln_config::{DiskConfig, IoEngine, StorageConfig};
use kiln_disk::{Disk, Engine, OpenOptions};
use kiln_env::Env;
use kiln_memory::Pool;
use kiln_types::{ClusterId, Code, Context, DiskId, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a removed chunk's epoch is kept, so that late writes of an older one are refused: several
/// times longer than any capability lives.
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(3600);

/// Opens every disk of the configuration as a chunk store of `cluster`.
///
/// # Errors
/// `WrongCluster` for a disk of another cluster, `Busy` for one that another process has open, and what
/// the disks say.
pub(crate) async fn open(
    config: &StorageConfig,
    cluster: ClusterId,
    env: &Env,
    pool: &Pool,
) -> Result<Vec<Arc<Store>>> {
    let mut stores = Vec::new();
    for disk in &config.disks {
        let opened = open_one(disk, config, cluster, env, pool).await;
        let store = opened.context(format_args!("disk {}", disk.path.display()))?;
        stores.push(store);
    }
    Ok(stores)
}

async fn open_one(
    disk: &DiskConfig,
    config: &StorageConfig,
    cluster: ClusterId,
    env: &Env,
    pool: &Pool,
) -> Result<Arc<Store>> {
    let engine = match config.io.engine {
        IoEngine::Auto => Engine::Auto,
        IoEngine::Uring => Engine::Uring,
        IoEngine::Plain => Engine::Plain,
    };
    let options = OpenOptions {
        capacity: Some(disk.capacity),
        create: true,
        engine,
        ..OpenOptions::default()
    };
    let path = store_path(&disk.path)?;
    let device = kiln_disk::open(&path, options, env).await?;
    claim(&device, &path, cluster, env).await?;
    let share = config.io.memory / config.disks.len().max(1) as u64;
    let options = Options {
        cache_bytes: (share / 4) as usize,
        tombstone_retention: TOMBSTONE_RETENTION,
        ..Options::default()
    };
    let store = Store::open(Arc::clone(&device), env.clone(), pool.clone(), options).await?;
    let usage = store.usage();
    tracing::info!(
        disk = %store.identity().disk,
        device = %device.describe(),
        chunks = usage.chunks,
        used_bytes = usage.used_bytes,
        "disk is open"
    );
    Ok(store)
}

/// A block device is the store; in a directory it is a file.
fn store_path(path: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
        return Ok(path.to_owned());
    }
    std::fs::create_dir_all(path).context(format_args!("making {}", path.display()))?;
    Ok(path.join("chunks"))
}

/// Formats a blank disk, and refuses one of another cluster.
async fn claim(device: &Arc<dyn Disk>, path: &Path, cluster: ClusterId, env: &Env) -> Result<()> {
    match Store::identify(device).await? {
        None => {
            let identity = Identity { disk: DiskId(env.random_u128()), cluster };
            tracing::info!(path = %path.display(), disk = %identity.disk, "formatting a new disk");
            Store::format(device, identity).await
        }
        Some(identity) if identity.cluster != cluster => {
            let text = format!(
                "it belongs to cluster {}, this server to cluster {cluster}",
                identity.cluster
            );
            let hint = "give this server another path, or the key of that cluster";
            Err(Error::new(Code::WrongCluster, text).with_hint(hint))
        }
        Some(_) => Ok(()),
    }
}
