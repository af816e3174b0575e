//! The `kiln` command: every subcommand thin, one file for each group.
//!
//! Invariants: what a command does is done by a library; a failure is one plain line and a hint on
//! standard error; the exit code is 0 (done), 1 (failed) or 2 (wrong usage; of a check: not finished).
#![forbid(unsafe_code)]

mod admin;
mod args;
mod bench;
mod check;
mod completions;
mod config;
mod copy;
mod detached;
mod down;
mod engine;
mod exporter;
mod failure;
mod files;
mod mount;
mod output;
mod path;
mod place;
mod quota;
mod remote;
mod runtime;
mod serve;
mod status;
mod top;
mod trash;
mod umount;
mod up;
mod usable;

use args::{Cli, Command};
use clap::Parser;
use failure::Outcome;
use std::process::ExitCode;

fn main() -> ExitCode {
    if mount::helper::is_called() {
        return mount::helper::run();
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Outcome {
    let place = &cli.place;
    match cli.command {
        Command::Up(args) => up::run(place, &args),
        Command::Down => down::run(place),
        Command::Status(args) => status::run(place, &args),
        Command::Top(args) => top::run(place, &args),
        Command::Mount(args) => mount::run(place, &args),
        Command::Umount(args) => umount::run(&args),
        Command::Ls(args) => files::ls(place, &args),
        Command::Cat(args) => files::cat(place, &args),
        Command::Cp(args) => copy::run(place, &args),
        Command::Mv(args) => files::mv(place, &args),
        Command::Rm(args) => files::rm(place, &args),
        Command::Mkdir(args) => files::mkdir(place, &args),
        Command::Layout(args) => files::layout(place, &args),
        Command::Stat(args) => files::stat(place, &args),
        Command::Df(args) => files::df(place, &args),
        Command::Quota(args) => quota::run(place, &args),
        Command::Trash(args) => trash::run(place, &args),
        Command::Find(args) => files::find(place, &args),
        Command::Admin(args) => admin::run(place, &args),
        Command::Bench(args) => bench::run(place, &args),
        Command::Mgmtd(args) => serve::mgmtd(&args),
        Command::Meta(args) => serve::meta(&args),
        Command::Storage(args) => serve::storage(&args),
        Command::Config(args) => config::run(&args),
        Command::Completions { shell } => completions::run(shell),
    }
}
