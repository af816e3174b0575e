//! Workloads and limits of `kiln bench`.
//!
//! Each workload runs on the cluster, through the client library and through a mount, and beside it, in
//! the same run and in turn, its limits: the same work without kiln in between. What counts is the ratio;
//! the figures stand beside it.
#![forbid(unsafe_code)]

mod directory;
mod library;
mod limits;
mod machine;
mod operation;
mod passthrough;
mod report;
mod requests;
mod run;
mod sample;
mod scratch;
mod workers;

pub use machine::{Machine, Mounted, mounted};
pub use report::{Beside, Report, Row, Table, Unit};
pub use run::{Bench, Group, Options, Peer};
pub use sample::Figure;
pub use workers::Interrupt;

use crate::directory::Place;
use crate::limits::Commits;
use crate::passthrough::Passthrough;
use crate::report::{KILN, Tally};
use crate::run::SEQUENTIAL_BYTES;
use crate::scratch::Scratch;
pub use kiln_kv::Kv;
use kiln_types::{Code, Context, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Room on the raw directory's disk beside the test files: small files, the key-value engine's journal.
const ROOM_BYTES: u64 = 1 << 30;

impl Bench {
    /// Runs everything that the options ask for, each workload and its limits in turn, as many rounds as
    /// they say. `open_kv` opens a key-value engine like the metadata server's in a new directory.
    ///
    /// # Errors
    /// The first failure; `NoSpace` before anything is written; `Cancelled` when interrupted. Test files
    /// are removed.
    pub async fn run(
        &self,
        open_kv: impl AsyncFnOnce(PathBuf) -> Result<Arc<dyn Kv>>,
    ) -> Result<Report> {
        let options = &self.options;
        if options.size == 0 || !options.size.is_multiple_of(SEQUENTIAL_BYTES as u64) {
            return Err(Error::invalid("the size is a multiple of 1 MiB, at least 1 MiB"));
        }
        self.check_space().await?;
        let machine = Machine::look(&options.raw_dir);
        let raw = Scratch::create(&self.env, &options.raw_dir)?;
        let mut tally = Tally::default();
        let kv = open_kv(raw.path().join("kv")).await?;
        let directory = library::Directory::create(self).await?;
        let ran = self.rounds(&mut tally, raw.path(), &directory, &Commits { kv }).await;
        let removed = directory.remove().await.context("removing test files");
        ran.and(removed)?;
        Ok(tally.report(machine, options))
    }

    async fn rounds(
        &self,
        tally: &mut Tally,
        raw_dir: &Path,
        directory: &library::Directory,
        commits: &Commits,
    ) -> Result<()> {
        let mounts = Mounts::create(self, tally, raw_dir)?;
        for round in 0..self.options.rounds {
            for group in &self.options.groups {
                match group {
                    Group::Library => library::io(self, tally, directory, raw_dir).await?,
                    Group::LibraryMetadata => {
                        library::names(self, tally, directory, commits, round).await?;
                    }
                    Group::Mount if mounts.places.is_empty() => {}
                    Group::Metadata if mounts.places.is_empty() => {}
                    Group::Mount => directory::io(self, tally, &mounts.places, raw_dir).await?,
                    Group::Metadata => {
                        directory::names(self, tally, &mounts.places, commits).await?
                    }
                }
            }
        }
        // System calls that wait for daemons: not on a thread that others need.
        self.env.blocking(move || drop(mounts)).await
    }

    /// Refuses before anything is written.
    async fn check_space(&self) -> Result<()> {
        let Options { size, replicas, raw_dir, .. } = &self.options;
        // At most the pipeline's files and a raw one are there at once, beside the cluster's own copies.
        let needed = size * (*replicas as u64 * 2 + 2) + ROOM_BYTES;
        let here = rustix::fs::statvfs(raw_dir).map_err(std::io::Error::from);
        let here = here.context(format_args!("free space of {}", raw_dir.display()))?;
        let free = here.f_bavail * here.f_frsize;
        let in_cluster = self.client.stat_fs().await.context("free space of the cluster")?;
        let short = |place: String, needed: u64, free: u64| {
            let (needed, free) = (needed >> 20, free >> 20);
            let text = format!("{place} has {free} MiB free, and a run needs up to {needed} MiB");
            Err(Error::new(Code::NoSpace, text).with_hint("a smaller --size needs less"))
        };
        if free < needed {
            return short(raw_dir.display().to_string(), needed, free);
        }
        if in_cluster.free_bytes < size * 2 {
            return short("the cluster".into(), size * 2, in_cluster.free_bytes);
        }
        Ok(())
    }
}

/// The directories that are measured through system calls. Fields go in this order.
struct Mounts {
    places: Vec<Place>,
    _scratches: Vec<Scratch>,
    _passthrough: Option<(Passthrough, Scratch, Scratch)>,
}

impl Mounts {
    /// kiln's mount, a passthrough daemon on the raw directory, and the peers.
    fn create(bench: &Bench, tally: &mut Tally, raw_dir: &Path) -> Result<Self> {
        let mut all = Self { places: Vec::new(), _scratches: Vec::new(), _passthrough: None };
        let Options { mount, peers, .. } = &bench.options;
        if mount.is_none() && peers.is_empty() {
            return Ok(all);
        }
        if let Some(mount) = mount {
            all.add(bench, KILN, mount)?;
        }
        let (backing, point) =
            (Scratch::create(&bench.env, raw_dir)?, Scratch::create(&bench.env, raw_dir)?);
        match Passthrough::mount(backing.path(), point.path()) {
            Ok(passthrough) => {
                all.places.push(Place {
                    name: limits::PASSTHROUGH.into(),
                    dir: point.path().into(),
                    backing: Some(backing.path().into()),
                });
                all._passthrough = Some((passthrough, point, backing));
            }
            Err(error) => tally.note(error.to_string()),
        }
        for peer in peers {
            all.add(bench, &peer.name, &peer.dir)?;
        }
        Ok(all)
    }

    fn add(&mut self, bench: &Bench, name: &str, dir: &Path) -> Result<()> {
        let scratch = Scratch::create(&bench.env, dir)?;
        let dir = scratch.path().into();
        self.places.push(Place { name: name.into(), dir, backing: None });
        self._scratches.push(scratch);
        Ok(())
    }
}
