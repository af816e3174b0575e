//! `kiln admin meta`: the metadata's store itself, opened by this command.

mod backup;
mod check;

use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::place::Place;
use crate::{output, runtime};
use indicatif::{HumanCount, ProgressBar};
use kiln_config::{MetaConfig, Setting};
use kiln_env::Env;
use kiln_meta_server::{Mover, Replace};
use kiln_types::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Which store: the one that a metadata server's configuration names.
#[derive(Debug, clap::Args)]
pub(crate) struct Store {
    /// The configuration of the metadata server ('kiln up': DIR/meta/config.toml)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Set any key of the configuration, for example kv.engine=postgres
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write the metadata to a file, from which another store gets it
    ///
    /// The metadata servers are stopped before, and do not start over this store any more until 'reopen'. What is
    /// interrupted goes on when it is run again. At the end the file is compared with the store.
    Export {
        #[command(flatten)]
        store: Store,
        /// The file that it is written to
        #[arg(value_name = "DUMP")]
        dump: PathBuf,
    },
    /// Write a copy of the metadata to a file while the cluster is in use
    ///
    /// For the embedded store: a PostgreSQL or a FoundationDB has backups of its own. The copy is of one moment. It is
    /// put back with 'import', into an empty store; chunks of what was made after that moment stay, and 'kiln admin
    /// check' tells of them.
    Backup {
        /// The file that it is written to, once it is whole
        #[arg(value_name = "DUMP")]
        dump: PathBuf,
    },
    /// Fill a store with metadata that was exported, or put a backup back
    ///
    /// The store is empty, or with --replace one that was exported from. What is interrupted goes on when it is run
    /// again. At the end the store is compared with the file. Then start the servers with the new configuration.
    Import {
        #[command(flatten)]
        store: Store,
        /// The file that was exported
        #[arg(value_name = "DUMP")]
        dump: PathBuf,
        /// Remove the metadata that was exported from this store before
        #[arg(long)]
        replace: bool,
    },
    /// Look for orphans, names of nothing, wrong links, lengths and sums, and records that cannot be read
    ///
    /// The embedded store is checked while no server runs over it; one that servers share may be in use. What is
    /// stored on the storage servers is another matter: 'kiln admin check'. Exits with 0 when nothing is wrong, 1
    /// when something is, 2 when that could not be found out.
    Check {
        #[command(flatten)]
        store: Store,
        /// Set right what can be; servers over the store are stopped before, or stop by themselves
        #[arg(long)]
        repair: bool,
    },
    /// Go on with a store that was exported, as it was then
    Reopen {
        #[command(flatten)]
        store: Store,
    },
}

/// What a command did, as JSON has it.
#[derive(Serialize)]
struct Done {
    pairs: u64,
}

pub(crate) fn run(place: &Place, command: &Command, json: bool) -> Outcome {
    let store = match command {
        Command::Backup { dump } => return backup::run(place, dump, json),
        Command::Export { store, .. }
        | Command::Import { store, .. }
        | Command::Check { store, .. }
        | Command::Reopen { store } => store,
    };
    let is_check = matches!(command, Command::Check { .. });
    let (env, config) = (Env::real(), store.config());
    // 1 would say that something is wrong with the metadata.
    let failed = |failure: Failure| if is_check { failure.unfinished() } else { failure };
    let config = config.map_err(|error| failed(error.into()))?;
    runtime::many()?.block_on(async {
        if let Command::Check { repair, .. } = command {
            return check::run(&config, &env, *repair, json).await;
        }
        let engine = Engine::open(&config.node, &config.kv, &env).await?;
        let done = work(command, &engine, &env, json).await;
        Ok(done.and(engine.close().await)?)
    })
}

async fn work(command: &Command, engine: &Engine, env: &Env, json: bool) -> Result<()> {
    let bar = ProgressBar::new_spinner();
    let mut progress = |what: &str, pairs: u64| {
        bar.set_message(format!("{what} {}", HumanCount(pairs)));
        bar.tick();
    };
    let kv = engine.kv();
    let mut mover = Mover::new(&*kv, env, &mut progress);
    let (pairs, text) = match command {
        Command::Export { dump, .. } => {
            let pairs = mover.export(dump).await.context("export")?;
            (pairs, exported(pairs, dump))
        }
        Command::Import { dump, replace, .. } => {
            let replace = if *replace { Replace::Left } else { Replace::Nothing };
            let pairs = mover.import(dump, replace).await.context("import")?;
            (pairs, imported(pairs))
        }
        Command::Backup { .. } | Command::Check { .. } | Command::Reopen { .. } => {
            let was = mover.reopen().await.context("reopen")?;
            let text = match was {
                true => "servers start over this store again, as it was when it was exported",
                false => "this store was not exported: nothing to do",
            };
            (0, format!("{text}\n"))
        }
    };
    bar.finish_and_clear();
    match json {
        true => output::print_json(&Done { pairs }),
        false => output::print(&text),
    }
}

fn exported(pairs: u64, dump: &Path) -> String {
    let (pairs, dump) = (HumanCount(pairs), dump.display());
    format!(
        "{pairs} pairs are in {dump}, compared with the store\n\
         next: kiln admin meta import --config CONFIG {dump}, with the configuration of the new store\n"
    )
}

fn imported(pairs: u64) -> String {
    if pairs == 0 {
        return "all of this dump came into the store before: nothing to do\n".into();
    }
    let pairs = HumanCount(pairs);
    format!(
        "{pairs} pairs are in the store, compared with the dump\nnext: start the metadata servers over it\n"
    )
}

impl Store {
    pub(crate) fn config(&self) -> Result<MetaConfig> {
        let set = self.set.iter().map(|set| Setting::parse(set)).collect::<Result<Vec<_>>>()?;
        kiln_config::load(Some(&self.config), [], &set)
    }
}
