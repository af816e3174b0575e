//! `kiln-power`: cuts the power of a real cluster, and says what was lost.

use clap::Parser;
use kiln_faults::{Common, command, cut_power};
use kiln_types::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// Starts a cluster in a virtual machine in which each server has a disk of its own with a volatile write
/// cache, lets clients outside write and read what they can recognise, and cuts the power again and again:
/// of what was not flushed each disk then loses all, some or nothing, and some writes are torn.
///
/// Of each run is checked what kiln-faults checks: nothing acknowledged is lost, nothing read is older than
/// what was known, all chains are whole again in time, 'kiln admin check --read' finds nothing at the end.
/// The last line says what was run; the exit status is 1 when something was wrong, and 77 when this machine
/// cannot do it (it needs root, network namespaces, and what tests/faults/vm/fetch.sh makes).
#[derive(Parser)]
#[command(name = "kiln-power", version)]
struct Arguments {
    /// How often the power is cut.
    #[arg(long, value_name = "N", default_value_t = 20)]
    cuts: u32,
    /// Where the virtual machine's parts are, as tests/faults/vm/fetch.sh made them; if it is left out, in
    /// 'vm' beside the directory of this program, as in target/vm.
    #[arg(long, value_name = "DIR")]
    vm: Option<PathBuf>,
    /// The disks answer flushes and ignore them: the run has to find that something is lost.
    #[arg(long)]
    disks_lie: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command(&arguments.common, |setting| {
        let vm = match arguments.vm {
            Some(vm) => vm,
            // By the name of a file nothing leads on.
            None => std::env::current_exe().context("this program")?.with_file_name("../vm"),
        };
        Ok(async move { cut_power(&setting, arguments.cuts, &vm, arguments.disks_lie).await })
    })
}
