//! The directory: its lock, its format marker, and a creation that a crash cannot leave half done.

use crate::Options;
use crate::room::Room;
use crate::snapshot::Published;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use kiln_types::{Code, Context, Error, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK: &str = "LOCK";
const STORE: &str = "store";
/// Where a store is created before it gets its name: never holds anything acknowledged.
const STORE_NEW: &str = "store.new";
const FORMAT: &str = "FORMAT";
const TREE: &str = "tree";
const KEYSPACE: &str = "kv";

const FORMAT_NAME: &str = "kiln-kv-embedded";
const FORMAT_VERSION: u32 = 1;

const WORKER_THREADS: usize = 2;
const CACHED_FILES_MAX: usize = 256;

/// A directory that this process has locked.
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
}

/// An open tree, and the lock that goes with it.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) keyspace: Keyspace,
    pub(crate) room: Arc<Room>,
    /// Held until the tree is closed; fields drop in this order.
    _lock: File,
}

impl Directory {
    /// Creates the directory if it is missing, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self> {
        create_directory(path)?;
        let mut open = File::options();
        let lock = open.create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.context("lock file")?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), lock }),
            Err(TryLockError::WouldBlock) => {
                let hint = "stop the other server, or give this one a directory of its own";
                Err(Error::new(Code::Busy, "another process has it open").with_hint(hint))
            }
            Err(TryLockError::Error(error)) => Err(Error::local("lock", &error)),
        }
    }

    /// Opens the store, or creates it.
    pub(crate) fn open(self, options: Options) -> Result<Opened> {
        let store = self.path.join(STORE);
        if !store.try_exists().context("store directory")? {
            self.create(options)?;
        }
        check_format(&store)?;
        // The tree writes when it is opened.
        let room = Arc::new(Room::new(&self.path, options.memtable_bytes));
        room.check()?;
        crate::tail::mend(&store.join(TREE))?;
        let (database, keyspace) = open_tree(&store.join(TREE), options)?;
        Ok(Opened { database, keyspace, room, _lock: self.lock })
    }

    fn create(&self, options: Options) -> Result<()> {
        for entry in fs::read_dir(&self.path).context("list of the directory")? {
            let name = entry.context("list of the directory")?.file_name();
            if name != LOCK && name != STORE_NEW {
                let message = format!("the directory holds '{}' but no store", name.display());
                return Err(Error::invalid(message).with_hint("give it an empty directory"));
            }
        }
        let new = self.path.join(STORE_NEW);
        if new.try_exists().context("unfinished store")? {
            fs::remove_dir_all(&new).context("removal of an unfinished store")?;
        }
        create_directory(&new)?;
        let format = format!("{FORMAT_NAME} {FORMAT_VERSION}\n");
        fs::write(new.join(FORMAT), format).context("format marker")?;
        let (database, _) = open_tree(&new.join(TREE), options)?;
        database.persist(PersistMode::SyncAll).map_err(|error| unopened(&error))?;
        drop(database);
        // The tree does not sync the directory that its keyspaces are in.
        sync_all(&new)?;
        fs::rename(&new, self.path.join(STORE)).context("naming of the new store")?;
        sync(&self.path)
    }
}

impl Opened {
    /// The tree as it is now; called where nobody writes.
    pub(crate) fn publish(&self, version: u64) -> Published {
        let (keyspace, snapshot) = (self.keyspace.clone(), self.database.snapshot());
        Published { version, keyspace, snapshot }
    }
}

fn open_tree(path: &Path, options: Options) -> Result<(Database, Keyspace)> {
    let database = Database::builder(path)
        .cache_size(options.cache_bytes)
        .max_journaling_size(options.journal_bytes.max(64 << 20))
        .max_cached_files(Some(CACHED_FILES_MAX))
        .worker_threads(WORKER_THREADS)
        .manual_journal_persist(true)
        .open()
        .map_err(|error| unopened(&error))?;
    let create = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
    let keyspace = database.keyspace(KEYSPACE, create).map_err(|error| unopened(&error))?;
    Ok((database, keyspace))
}

fn check_format(store: &Path) -> Result<()> {
    let text = match fs::read_to_string(store.join(FORMAT)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corrupt("the format marker is missing"));
        }
        Err(error) => return Err(Error::local("format marker", &error)),
    };
    let version = text.trim().strip_prefix(FORMAT_NAME).and_then(|rest| rest.trim().parse().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        None::<u32> => Err(Error::corrupt("the format marker is not one of this engine")),
        Some(other) => {
            let message = format!("format {other}; this build knows {FORMAT_VERSION}");
            Err(Error::new(Code::Unsupported, message).with_hint("start the build that wrote it"))
        }
    }
}

/// The error of a tree that does not open.
fn unopened(error: &fjall::Error) -> Error {
    use fjall::Error as E;
    match error {
        E::Locked => Error::new(Code::Busy, "transactions of a closed engine are still open"),
        E::Io(error) | E::Storage(fjall::LsmError::Io(error)) => Error::local("tree", error),
        E::InvalidVersion(version) => {
            Error::new(Code::Unsupported, format!("tree of format {version:?}"))
        }
        other => Error::corrupt(format!("tree: {other:?}")).with_hint("restore from a backup"),
    }
}

/// Creates a directory and those above it, durably.
fn create_directory(path: &Path) -> Result<()> {
    if path.try_exists().context("directory")? {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    create_directory(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::local(format_args!("creation of {}", path.display()), &error));
        }
        _ => {}
    }
    sync(parent)
}

/// Syncs a directory and everything below it.
fn sync_all(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).context("list of the new store")? {
        let entry = entry.context("list of the new store")?;
        match entry.file_type().context("list of the new store")?.is_dir() {
            true => sync_all(&entry.path())?,
            false => sync(&entry.path())?,
        }
    }
    sync(path)
}

/// Syncs one directory or file.
fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.context(format_args!("sync of {}", path.display()))
}
