//! The directory of a local cluster.
//!
//! | path | what |
//! | --- | --- |
//! | `cluster.toml` | kind, layout version, cluster id, shape; written last: without it there is no cluster |
//! | `server.key`, `credentials/admin.toml` | secrets, mode 0600 |
//! | `mgmtd/`, `meta/` (or `meta-N/`), `storage-N/` | each server's `config.toml` and data; disks as `storage-N/disk-M` |
//! | `logs/` | one file for each server, and the detached supervisor's |
//! | `run/` | the supervisor's lock, and which processes run at which addresses |
//! | `.new` | while the directory is being made |

use crate::service::CREDENTIAL;
use crate::{Lock, Service, Shape, State, Wishes};
use kiln_config::{
    create_credential, create_file, create_server_key, parse_file, read_server_key, write_file,
};
use kiln_env::Env;
use kiln_types::{ClusterId, Code, Context, Error, KeyId, Result, Secret, ServerKey};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const KIND: &str = "kiln cluster";
const VERSION: u32 = 1;
const MARKER: &str = ".new";

/// A cluster's directory that has been looked at and is one.
#[derive(Clone, Debug)]
pub struct ClusterDir {
    path: PathBuf,
    id: ClusterId,
    shape: Shape,
}

/// The content of `cluster.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    kind: String,
    version: u32,
    id: ClusterId,
    shape: Shape,
}

/// What is at a path.
enum Found {
    Cluster,
    Unfinished,
    Empty,
}

impl ClusterDir {
    /// The cluster at `path`.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Invalid` or `Unsupported` when it is damaged or of another layout,
    /// `WrongCluster` when its key is another cluster's.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).context(path.display())?;
        let file = path.join("cluster.toml");
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::new(
                    Code::NotFound,
                    format!("there is no kiln cluster in {}", path.display()),
                )
                .with_hint("kiln up starts one; --dir DIR names another directory"));
            }
            text => text.context(file.display())?,
        };
        check_head(&file, &text)?;
        let content: ClusterFile = parse_file(&file, &text)?;
        let dir = Self { path, id: content.id, shape: content.shape };
        let key = read_server_key(&dir.server_key())?;
        if key.cluster != dir.id {
            return Err(Error::new(
                Code::WrongCluster,
                format!(
                    "{} is the key of cluster {}, and the directory is of cluster {}",
                    dir.server_key().display(),
                    key.cluster,
                    dir.id
                ),
            )
            .with_hint("put back the server.key that was made with this directory"));
        }
        Ok(dir)
    }

    /// Takes the cluster at `path` to run it; makes one when there is none and the directory is empty.
    ///
    /// # Errors
    /// `Busy` when it runs already; `Exists` when the directory holds something else; `Invalid` when the
    /// wishes are not what the cluster is; as [`Self::open`].
    pub async fn take(path: &Path, wishes: &Wishes, env: &Env) -> Result<(Self, Lock)> {
        let path = std::path::absolute(path).context(path.display())?;
        look_at(&path)?;
        make_dir(&path)?;
        let lock = Lock::take(&path, env).await?;
        match look_at(&path)? {
            Found::Cluster => {
                let dir = Self::open(&path)?;
                wishes.check(&dir.shape)?;
                // Whoever cleans up may have removed it.
                make_dir(&dir.logs())?;
                Ok((dir, lock))
            }
            Found::Unfinished | Found::Empty => {
                let shape = wishes.shape(free_bytes(&path)?)?;
                Ok((Self::create(path, shape, env)?, lock))
            }
        }
    }

    /// Fills an empty directory, or one in which this was interrupted. No server ever ran there.
    fn create(path: PathBuf, shape: Shape, env: &Env) -> Result<Self> {
        write_file(&path.join(MARKER), b"This cluster is being made.\n", 0o600)?;
        let dir = Self { path, id: ClusterId(env.random_u128()), shape };
        let mut secret = [0; 32];
        env.fill_random(&mut secret);
        let key = ServerKey { cluster: dir.id, id: KeyId(1), secret: Secret(secret) };
        remove_if_there(&dir.server_key())?;
        create_server_key(&dir.server_key(), &key)?;
        make_dir(&dir.path.join("credentials"))?;
        remove_if_there(&dir.credential())?;
        create_credential(&dir.credential(), &kiln_wire::credential(&key, CREDENTIAL)?)?;
        make_dir(&dir.logs())?;
        for service in dir.services() {
            make_dir(&dir.path.join(&service.name))?;
            let config = service.config(dir.id, &dir.shape)?;
            write_file(&dir.config(&service), config.as_bytes(), 0o644)?;
        }
        let content = ClusterFile {
            kind: KIND.into(),
            version: VERSION,
            id: dir.id,
            shape: dir.shape.clone(),
        };
        let text = kiln_config::to_toml(&content)?;
        create_file(&dir.path.join("cluster.toml"), text.as_bytes(), 0o644)?;
        remove_if_there(&dir.path.join(MARKER))?;
        Ok(dir)
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster's identity.
    pub fn id(&self) -> ClusterId {
        self.id
    }

    /// What it consists of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Its servers, in the order in which they start.
    pub fn services(&self) -> Vec<Service> {
        Service::all(&self.shape)
    }

    /// The file of its server key.
    pub fn server_key(&self) -> PathBuf {
        self.path.join("server.key")
    }

    /// The file of its client's credential.
    pub fn credential(&self) -> PathBuf {
        self.path.join("credentials").join(format!("{CREDENTIAL}.toml"))
    }

    /// The configuration file of `service`.
    pub fn config(&self, service: &Service) -> PathBuf {
        self.path.join(&service.name).join("config.toml")
    }

    /// The directory of the logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of the server `name`, or of the supervisor (`up`).
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The manager's address, for clients.
    ///
    /// # Errors
    /// `Unreachable` when the cluster does not run.
    pub fn mgmtd_address(&self) -> Result<String> {
        let address = match Lock::holder(&self.path)? {
            Some(_) => State::read(&self.path)?.address_of("mgmtd"),
            None => None,
        };
        address.map(|address| address.to_string()).ok_or_else(|| {
            Error::new(
                Code::Unreachable,
                format!("the cluster in {} does not run", self.path.display()),
            )
            .with_hint("kiln up starts it")
        })
    }
}

/// Says what is at `path` without touching it.
fn look_at(path: &Path) -> Result<Found> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Empty),
        entries => entries.context(path.display())?,
    };
    let mut other = None;
    let mut unfinished = false;
    for entry in entries {
        let name = entry.context(path.display())?.file_name();
        match name.to_str() {
            Some("cluster.toml") => return Ok(Found::Cluster),
            Some(MARKER) => unfinished = true,
            Some("run" | "lost+found") => {}
            _ => other = Some(name),
        }
    }
    match other {
        Some(name) if !unfinished => Err(Error::new(
            Code::Exists,
            format!(
                "{} is not a kiln cluster and not empty: it holds '{}'",
                path.display(),
                name.display()
            ),
        )
        .with_hint("name an empty or a new directory with --dir")),
        _ if unfinished => Ok(Found::Unfinished),
        _ => Ok(Found::Empty),
    }
}

/// Kind and version first, so that another layout is called that and not a list of unknown keys.
fn check_head(file: &Path, text: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        kind: String,
        version: u32,
    }
    let head: Head = parse_file(file, text)?;
    if head.kind != KIND {
        return Err(Error::invalid(format!("{} holds a {}", file.display(), head.kind)));
    }
    if head.version != VERSION {
        return Err(Error::new(
            Code::Unsupported,
            format!(
                "{} has layout version {}; this kiln knows version {VERSION}",
                file.display(),
                head.version
            ),
        )
        .with_hint("use the kiln that made it, or a newer one"));
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).context(path.display())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(path.display()),
        _ => Ok(()),
    }
}

fn free_bytes(path: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(path).map_err(std::io::Error::from).context(path.display())?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}
