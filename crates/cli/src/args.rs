//! The command line as a whole.

use crate::place::Place;
use crate::{
    admin, bench, config, copy, files, mount, quota, serve, status, top, trash, umount, up,
};
use clap::{Parser, Subcommand};

/// A parallel file system for AI clusters, from one machine up.
///
/// 'kiln up' starts a whole replicated cluster on this machine; 'kiln cp' copies files in and out. Paths
/// in the cluster begin with 'kiln:', as in kiln:/dataset.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, infer_long_args = false)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster on this machine, or the one that is in --dir again
    Up(up::Args),
    /// Stop the cluster that 'kiln up' started
    Down,
    /// Show the servers of the cluster: processes, addresses, health, memory
    Status(status::Args),
    Top(top::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    /// List files and directories in the cluster
    Ls(files::LsArgs),
    /// Print files of the cluster
    Cat(files::CatArgs),
    Cp(copy::Args),
    /// Rename or move in the cluster
    Mv(files::MvArgs),
    /// Remove files or directories in the cluster
    Rm(files::RmArgs),
    /// Make directories in the cluster
    Mkdir(files::MkdirArgs),
    /// Show how files are cut and spread, or say how new files in directories are to be
    Layout(files::LayoutArgs),
    /// Show everything that is known of files in the cluster
    Stat(files::StatArgs),
    /// Show the space of the cluster
    Df(files::DfArgs),
    Quota(quota::Args),
    Trash(trash::Args),
    /// Walk a tree of the cluster and print what matches
    Find(files::FindArgs),
    /// Look at the cluster as an operator; manage credentials
    Admin(admin::Args),
    /// Measure the cluster beside what its disk does without it
    Bench(bench::Args),
    /// Run a manager in this process
    Mgmtd(serve::Args),
    /// Run a metadata server in this process
    Meta(serve::MemberArgs),
    /// Run a storage server in this process
    Storage(serve::MemberArgs),
    /// Print commented configuration files
    Config(config::Args),
    /// Print the completion script of a shell
    ///
    /// For bash: kiln completions bash > ~/.local/share/bash-completion/completions/kiln
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}
