//! `kiln-faults`: runs a real cluster under random faults, and says what went wrong.

use clap::Parser;
use kiln_faults::{Common, KINDS, Kind, command, run};
use kiln_types::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Starts a cluster of the kiln binary, each process in a network namespace of its own, lets clients write
/// and read what they can recognise, and brings about faults meanwhile, one or two at a time: servers are
/// killed, stopped and cut off, packets are lost and late, disks fill up, hang, fail and rot.
///
/// Of each run is checked: that no acknowledged write is lost, no read is older than what was
/// acknowledged or read before, no block is torn or another's; that all chains are whole again in time;
/// that 'kiln admin check --read' finds nothing at the end. How long operations were stuck while one
/// fault was active is printed. The last line says what was run; the exit status is 1 when something was
/// wrong, and 77 when this machine cannot do it (it needs root, network namespaces and nftables).
#[derive(Parser)]
#[command(name = "kiln-faults", version)]
struct Arguments {
    /// For how long faults happen.
    #[arg(long, value_name = "N", default_value_t = 900)]
    seconds: u64,
    /// Only these kinds of faults; may be given several times, or with commas between them.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<String>,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command(&arguments.common, |setting| {
        let kinds: Vec<_> = match &arguments.kinds[..] {
            [] => KINDS.iter().map(|(_, kind, _)| *kind).collect(),
            names => names.iter().map(|name| Kind::parse(name)).collect::<Result<_>>()?,
        };
        let time = Duration::from_secs(arguments.seconds);
        Ok(async move { run(&setting, time, &kinds).await })
    })
}
