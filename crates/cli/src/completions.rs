//! `kiln completions`.

use crate::args::Cli;
use crate::failure::Outcome;
use crate::output;
use clap::CommandFactory;
use kiln_types::Error;

pub(crate) fn run(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    let script = String::from_utf8(script)
        .map_err(|error| Error::internal(format!("completion script: {error}")))?;
    output::print(&script)?;
    Ok(())
}
