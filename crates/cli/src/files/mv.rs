//! `kiln mv`.

use crate::failure::Outcome;
use crate::path::{AnyPath, KilnPath};
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_client::Rename;
use kiln_types::{Code, Context, Error, InodeId, Result};
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to move
    #[arg(value_name = "KILN_PATH", required = true)]
    sources: Vec<OsString>,

    /// The new name, or a directory to move into
    #[arg(value_name = "DESTINATION")]
    destination: OsString,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let all = args.sources.iter().chain([&args.destination]);
    let mut paths = Vec::new();
    for path in all {
        match AnyPath::parse(path)? {
            AnyPath::Kiln(path) => paths.push(path),
            AnyPath::Local(path) => {
                return Err(remote::usage(
                    format!("{} is on this machine; mv stays in the cluster", path.display()),
                    "copy with kiln cp -r, then remove what was copied",
                ));
            }
        }
    }
    let destination = paths.pop().unwrap_or_else(KilnPath::root);
    remote::run(place, async |remote| {
        let into = remote.directory(&destination).await?;
        if into.is_none() && (paths.len() > 1 || destination.slash) {
            return Err(Error::new(
                Code::NotDirectory,
                format!("{destination}: there is no such directory"),
            )
            .into());
        }
        for source in &paths {
            one(remote, source, &destination, into).await?;
        }
        Ok(())
    })
}

async fn one(
    remote: &Remote,
    source: &KilnPath,
    destination: &KilnPath,
    into: Option<InodeId>,
) -> Result<()> {
    let unnamed = |path| Error::invalid(format!("{path} cannot be moved or replaced"));
    let (from, name) = source.split().ok_or_else(|| unnamed(source))?;
    let from = remote.look(&from, true).await?.inode;
    let to = match into {
        Some(inode) => (inode, name),
        None => {
            let (parent, new_name) = destination.split().ok_or_else(|| unnamed(destination))?;
            (remote.look(&parent, true).await?.inode, new_name)
        }
    };
    let moved = remote.client.rename(&remote.caller, (from, name), to, Rename::Replace).await;
    moved.map(drop).context(format_args!("{source} to {destination}"))
}
