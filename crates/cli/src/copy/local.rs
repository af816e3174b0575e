//! This machine's side of a copy.

use super::tree::{Info, Kind, Node, Reader, Tree, Writer};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Code, Context, Error, InodeId, Result, Timestamp};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) struct LocalTree {
    env: Env,
    /// Whether owners can be kept.
    is_root: bool,
}

impl LocalTree {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, is_root: rustix::process::geteuid().is_root() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        path: PathBuf,
        body: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.env.blocking(move || body(&path).map_err(|error| local_error(&path, &error))).await?
    }

    fn temporary(&self) -> Vec<u8> {
        format!(".kiln-cp-{:016x}", self.env.random_u64()).into_bytes()
    }
}

/// An error that says what happened to which path, with the code that a copy decides by.
fn local_error(path: &Path, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::NotADirectory => Code::NotDirectory,
        ErrorKind::IsADirectory => Code::IsDirectory,
        ErrorKind::StorageFull => Code::NoSpace,
        ErrorKind::QuotaExceeded => Code::QuotaExceeded,
        _ => Code::Local,
    };
    Error::new(code, format!("{}: {error}", path.display()))
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

fn info(metadata: &Metadata) -> Info {
    let kind = metadata.file_type();
    let time = |seconds, nanos| Timestamp::from_parts(seconds, u32::try_from(nanos).unwrap_or(0));
    Info {
        kind: match () {
            () if kind.is_file() => Kind::File,
            () if kind.is_dir() => Kind::Directory,
            () if kind.is_symlink() => Kind::Symlink,
            () => Kind::Other,
        },
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        length: metadata.len(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
    }
}

fn node(path: &Path, info: Info) -> Node {
    let name = path.file_name().map_or(Vec::new(), |name| name.as_bytes().to_vec());
    Node { path: path.as_os_str().as_bytes().to_vec(), name, inode: InodeId(0), info }
}

/// Sets owner (first: it clears bits of the mode), mode and times.
fn set_info(path: &Path, info: &Info, with_owner: bool) -> std::io::Result<()> {
    let is_link = info.kind == Kind::Symlink;
    if with_owner && is_link {
        lchown(path, Some(info.uid), Some(info.gid))?;
    } else if with_owner {
        chown(path, Some(info.uid), Some(info.gid))?;
    }
    if !is_link {
        fs::set_permissions(path, Permissions::from_mode(info.mode))?;
    }
    let time = |time: Timestamp| {
        let (tv_sec, nanos) = time.to_parts();
        Timespec { tv_sec, tv_nsec: nanos.into() }
    };
    let times = Timestamps { last_access: time(info.atime), last_modification: time(info.mtime) };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[async_trait]
impl Tree for LocalTree {
    async fn look(&self, path: &[u8], follow: bool) -> Result<Node> {
        let look = move |path: &Path| {
            let metadata = match follow {
                true => path.metadata()?,
                false => path.symlink_metadata()?,
            };
            Ok(node(path, info(&metadata)))
        };
        self.blocking(path_of(path), look).await
    }

    async fn list(&self, directory: &Node) -> Result<Vec<Node>> {
        let list = |path: &Path| {
            let mut nodes = Vec::new();
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                match path.symlink_metadata() {
                    // Removed since it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    metadata => nodes.push(node(&path, info(&metadata?))),
                }
            }
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(nodes)
        };
        self.blocking(path_of(&directory.path), list).await
    }

    async fn read_link(&self, link: &Node) -> Result<Vec<u8>> {
        let read = |path: &Path| Ok(fs::read_link(path)?.into_os_string().into_vec());
        self.blocking(path_of(&link.path), read).await
    }

    async fn open(&self, file: &Node) -> Result<Arc<dyn Reader>> {
        let path = path_of(&file.path);
        let open = |path: &Path| File::open(path);
        let file = Arc::new(self.blocking(path.clone(), open).await?);
        Ok(Arc::new(LocalFile { env: self.env.clone(), file, path: path.into() }))
    }

    async fn make_dir(&self, parent: &Node, name: &[u8]) -> Result<Node> {
        let make = |path: &Path| match fs::create_dir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(node(path, info(&path.metadata()?))),
        };
        let made = self.blocking(path_of(&parent.below(name)), make).await?;
        if made.info.kind == Kind::Directory {
            return Ok(made);
        }
        Err(Error::new(Code::NotDirectory, format!("{}: it is not a directory", made.shown())))
    }

    async fn make_link(
        &self,
        parent: &Node,
        name: &[u8],
        target: &[u8],
        info: &Info,
    ) -> Result<()> {
        let (temporary, target) = (path_of(&parent.below(&self.temporary())), path_of(target));
        let (info, is_root) = (*info, self.is_root);
        let make = move |path: &Path| {
            let _remove = RemoveOnDrop(temporary.clone());
            std::os::unix::fs::symlink(&target, &temporary)?;
            set_info(&temporary, &info, is_root)?;
            fs::rename(&temporary, path)
        };
        self.blocking(path_of(&parent.below(name)), make).await
    }

    async fn create(&self, parent: &Node, name: &[u8]) -> Result<Arc<dyn Writer>> {
        let path = path_of(&parent.below(&self.temporary()));
        let create = |path: &Path| {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            Ok((file, RemoveOnDrop(path.to_path_buf())))
        };
        let (file, temporary) = self.blocking(path.clone(), create).await?;
        let file = LocalFile { env: self.env.clone(), file: Arc::new(file), path: path.into() };
        let name = path_of(&parent.below(name));
        Ok(Arc::new(LocalWriter { file, temporary, name, is_root: self.is_root }))
    }

    async fn finish_dir(&self, directory: &Node, info: &Info) -> Result<()> {
        let (info, is_root) = (*info, self.is_root);
        let finish = move |path: &Path| set_info(path, &info, is_root);
        self.blocking(path_of(&directory.path), finish).await
    }

    /// Temporary files are removed as their writers are dropped.
    async fn clean_up(&self) {}
}

/// Removes a temporary name; one that was renamed is no longer there.
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

struct LocalFile {
    env: Env,
    file: Arc<File>,
    path: Arc<Path>,
}

#[async_trait]
impl Reader for LocalFile {
    async fn read_at(&self, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        let (file, path) = (Arc::clone(&self.file), Arc::clone(&self.path));
        let read = move || {
            let mut done = 0;
            while done < buffer.len() {
                match file.read_at(&mut buffer[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(bytes) => done += bytes,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context(path.display()),
                }
            }
            buffer.truncate(done);
            Ok(buffer)
        };
        self.env.blocking(read).await?
    }

    async fn close(&self) {}
}

struct LocalWriter {
    file: LocalFile,
    temporary: RemoveOnDrop,
    name: PathBuf,
    is_root: bool,
}

#[async_trait]
impl Writer for LocalWriter {
    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let (file, path) = (Arc::clone(&self.file.file), Arc::clone(&self.file.path));
        let write =
            move || file.write_all_at(&bytes, offset).map_err(|error| local_error(&path, &error));
        self.file.env.blocking(write).await?
    }

    async fn finish(&self, info: &Info) -> Result<()> {
        let (info, is_root) = (*info, self.is_root);
        let (temporary, name) = (self.temporary.0.clone(), self.name.clone());
        let finish = move || {
            set_info(&temporary, &info, is_root)
                .and_then(|()| fs::rename(&temporary, &name))
                .map_err(|error| local_error(&name, &error))
        };
        self.file.env.blocking(finish).await?
    }

    /// The temporary name goes with the writer.
    async fn abandon(&self) {}
}
