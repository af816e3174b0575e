//! `kiln df`.

use crate::failure::Outcome;
use crate::output;
use crate::place::Place;
use crate::remote;
use kiln_rpc::v1;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
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
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    remote::run(place, async |remote| {
        let reply = remote.client.meta().stat_fs(v1::Empty {}).await?;
        let space = Space {
            total_bytes: reply.total_bytes,
            used_bytes: reply.total_bytes.saturating_sub(reply.free_bytes),
            free_bytes: reply.free_bytes,
            inodes: reply.inodes,
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
