//! `kiln rm`.

use crate::failure::Outcome;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_types::{Attr, Code, Context, Error, FileKind, Result};
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to remove
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,

    /// Remove directories and everything below them: the names at once, what was in them in the background
    #[arg(short, long)]
    recursive: bool,

    /// What is not there is fine
    #[arg(short, long)]
    force: bool,

    /// Pass by the trash: what is removed is gone for good
    #[arg(long)]
    now: bool,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    remote::run(place, async |remote| {
        let all = remote.look_all(&paths, false).await;
        for (path, attr) in paths.iter().zip(all) {
            match one(remote, path, attr, args).await {
                Err(error) if args.force && error.code() == Code::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    })
}

async fn one(remote: &Remote, path: &KilnPath, attr: Result<Attr>, args: &Args) -> Result<()> {
    let Some((parent, name)) = path.split() else {
        return Err(Error::invalid(format!("{path} cannot be removed"))
            .with_hint("name what is in it: kiln find kiln:/ --max-depth 1 shows that"));
    };
    let attr = attr?;
    let is_directory = attr.kind == FileKind::Directory;
    if is_directory && !args.recursive {
        return Err(Error::new(Code::IsDirectory, format!("{path} is a directory"))
            .with_hint("rm -r removes it with everything in it"));
    }
    let parent = remote.look(&parent, true).await?.inode;
    let (client, caller) = (&remote.client, &remote.caller);
    match is_directory {
        true => client.remove_tree(caller, parent, name, args.now).await,
        false if args.now => client.remove_past_trash(caller, parent, name, false).await.map(drop),
        false => client.remove(caller, parent, name, false).await.map(drop),
    }
    .context(path)
}
