//! `kiln df`.

use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote;
use serde::Serialize;
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where: the quota of a directory counts there
    #[arg(value_name = "KILN_PATH")]
    path: Option<OsString>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Space as a user has it: what one copy of a file takes.
#[derive(Serialize)]
struct Space {
    total_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    inodes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_inodes: Option<u64>,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let path = args.path.as_deref().map(KilnPath::parse).transpose()?;
    remote::run(place, async |remote| {
        let found = match &path {
            Some(path) => {
                let inode = remote.look(path, true).await?.inode;
                remote.client.stat_fs_at(&remote.caller, inode).await?
            }
            None => remote.client.stat_fs().await?,
        };
        let space = Space {
            total_bytes: found.total_bytes,
            used_bytes: found.total_bytes.saturating_sub(found.free_bytes),
            free_bytes: found.free_bytes,
            inodes: found.inodes,
            free_inodes: found.free_inodes,
        };
        if args.json {
            output::print_json(&space)?;
            return Ok(());
        }
        let percent = (space.used_bytes * 100).checked_div(space.total_bytes).unwrap_or(0);
        let row = vec![
            output::bytes(space.total_bytes),
            output::bytes(space.used_bytes),
            output::bytes(space.free_bytes),
            format!("{percent} %"),
            space.inodes.to_string(),
        ];
        let header = ["SIZE", "USED", "FREE", "USE", "INODES"];
        output::print(&output::table(&header, &[0, 1, 2, 3, 4], vec![row]))?;
        Ok(())
    })
}
