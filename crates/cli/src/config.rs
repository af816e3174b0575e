//! `kiln config`.

use crate::failure::Outcome;
use crate::output;
use clap::{Subcommand, ValueEnum};
use kiln_types::ServiceKind;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a commented configuration file of a service; it says the defaults
    Example {
        /// The service
        service: ServiceName,
    },
}

/// A service as it is named on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ServiceName {
    /// The manager
    Mgmtd,
    /// The metadata server
    Meta,
    /// A storage server
    Storage,
}

impl From<ServiceName> for ServiceKind {
    fn from(name: ServiceName) -> Self {
        match name {
            ServiceName::Mgmtd => Self::Mgmtd,
            ServiceName::Meta => Self::Meta,
            ServiceName::Storage => Self::Storage,
        }
    }
}

pub(crate) fn run(args: &Args) -> Outcome {
    let Command::Example { service } = &args.command;
    output::print(kiln_config::example((*service).into()))?;
    Ok(())
}
