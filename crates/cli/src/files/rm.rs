//! `kiln rm`.

use crate::failure::Outcome;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_types::{Code, Context, Error, FileKind, InodeId, Result};
use std::ffi::OsString;
use std::sync::Arc;
use tokio::sync::Semaphore;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to remove
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,

    /// Remove directories and everything below them
    #[arg(short, long)]
    recursive: bool,

    /// What is not there is fine
    #[arg(short, long)]
    force: bool,
}

/// Removals that are under way at once.
const AT_ONCE: u32 = 32;

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    remote::run(place, async |remote| {
        for path in &paths {
            match one(remote, path, args.recursive).await {
                Err(error) if args.force && error.code() == Code::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    })
}

async fn one(remote: &Arc<Remote>, path: &KilnPath, recursive: bool) -> Result<()> {
    let Some((parent, name)) = path.split() else {
        return Err(Error::invalid(format!("{path} cannot be removed"))
            .with_hint("name what is in it: kiln find kiln:/ --max-depth 1 shows that"));
    };
    let attr = remote.look(path, false).await?;
    let is_directory = attr.kind == FileKind::Directory;
    if is_directory && !recursive {
        return Err(Error::new(Code::IsDirectory, format!("{path} is a directory"))
            .with_hint("rm -r removes it with everything in it"));
    }
    let parent = remote.look(&parent, true).await?.inode;
    if is_directory {
        empty(remote, attr.inode).await.context(path)?;
    }
    remote.client.remove(&remote.caller, parent, name, is_directory).await.context(path)
}

/// Removes everything below a directory: files side by side, then directories from below.
async fn empty(remote: &Arc<Remote>, top: InodeId) -> Result<()> {
    let slots = Arc::new(Semaphore::new(AT_ONCE as usize));
    let mut directories: Vec<(InodeId, Vec<u8>)> = Vec::new();
    let mut to_list = vec![top];
    let mut removals = Vec::new();
    while let Some(directory) = to_list.pop() {
        for entry in remote.client.list_dir(&remote.caller, directory).await? {
            if entry.attr.kind == FileKind::Directory {
                to_list.push(entry.attr.inode);
                directories.push((directory, entry.name));
                continue;
            }
            let slot = Arc::clone(&slots).acquire_owned().await;
            let slot = slot.map_err(|_| Error::internal("the slots of rm are gone"))?;
            let remote2 = Arc::clone(remote);
            removals.push(remote.env.spawn("remove", async move {
                let _slot = slot;
                removed(remote2.client.remove(&remote2.caller, directory, &entry.name, false).await)
            }));
            removals = finished(removals).await?;
        }
    }
    for removal in removals {
        removal.join().await??;
    }
    // A directory was found after the one that holds it.
    for (parent, name) in directories.into_iter().rev() {
        removed(remote.client.remove(&remote.caller, parent, &name, true).await)?;
    }
    Ok(())
}

/// Takes the results of the removals that are done, so that their number stays bounded.
async fn finished(
    removals: Vec<kiln_env::Task<Result<()>>>,
) -> Result<Vec<kiln_env::Task<Result<()>>>> {
    if removals.len() < 2 * AT_ONCE as usize {
        return Ok(removals);
    }
    let mut running = Vec::new();
    for removal in removals {
        match removal.is_finished() {
            true => removal.join().await??,
            false => running.push(removal),
        }
    }
    Ok(running)
}

/// What someone else removed meanwhile is removed.
fn removed(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.code() == Code::NotFound => Ok(()),
        result => result,
    }
}
