//! Names and small files.

use super::Place;
use crate::limits::{self, Commits};
use crate::machine;
use crate::operation::Operation;
use crate::report::Tally;
use crate::run::{Bench, Group, RANDOM_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_memory::Bytes;
use kiln_types::{Context, Error, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const WARM_CACHES: &str = "Cold figures are missing: only root may drop the kernel's caches.";

/// One round of everything.
pub(crate) async fn names(
    bench: &Bench,
    tally: &mut Tally,
    places: &[Place],
    commits: &Commits,
) -> Result<()> {
    for &workers in &bench.options.workers {
        (bench.progress)("commits of the key-value engine");
        let commit_rate = commits.measure(bench, workers).await?;
        let mut all = Vec::new();
        for place in places {
            all.push((place, Arc::new(Files::create(bench, place, workers)?)));
        }
        for operation in Operation::ALL {
            let workload = operation.workload(Group::Metadata, workers);
            if operation.commits() {
                tally.add(&workload, limits::COMMITS, commit_rate.clone());
            }
            for (place, files) in &all {
                if operation.is_cold() && !machine::drop_caches() {
                    tally.note(WARM_CACHES);
                    continue;
                }
                let measurement = files.measure(bench, operation);
                bench.measure(tally, &workload, &place.name, measurement).await?;
            }
        }
        for (_, files) in all {
            let removed = bench.env.blocking(move || files.remove()).await?;
            removed.context("removing test files")?;
        }
    }
    Ok(())
}

/// A directory for each worker, and how many files are in it.
struct Files {
    directories: Vec<PathBuf>,
    made: Vec<AtomicU64>,
    content: Bytes,
}

impl Files {
    fn create(bench: &Bench, place: &Place, workers: usize) -> Result<Self> {
        let directories: Vec<_> =
            (0..workers).map(|worker| place.path(&format!("names-{worker}"))).collect();
        for directory in &directories {
            let what = format_args!("test directory {}", directory.display());
            fs::create_dir(directory).context(what)?;
        }
        let made = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { directories, made, content: bench.random_block(RANDOM_BYTES) })
    }

    fn remove(&self) -> io::Result<()> {
        self.directories.iter().try_for_each(fs::remove_dir_all)
    }

    async fn measure(self: &Arc<Self>, bench: &Bench, operation: Operation) -> Result<Sample> {
        let files = Arc::clone(self);
        let work = move |_: &mut (), turn: Turn| {
            let done = files.perform(operation, turn);
            done.map_err(|error| Error::local(format_args!("{operation:?}"), &error))
        };
        let sample = bench.timed(self.directories.len()).threads(|_| Ok(()), work).await?;
        Ok(if operation == Operation::List { sample.whole() } else { sample })
    }

    fn perform(&self, operation: Operation, turn: Turn) -> io::Result<u64> {
        let (directory, made) = (&self.directories[turn.worker], &self.made[turn.worker]);
        let there = made.load(Ordering::Relaxed);
        let path = |kind: char| directory.join(format!("{kind}{}", turn.own));
        match operation {
            Operation::Create => {
                File::create_new(path('c'))?;
                made.store(turn.own + 1, Ordering::Relaxed);
            }
            Operation::CreateSynced => {
                File::create_new(path('x'))?.sync_all()?;
                File::open(directory)?.sync_all()?;
            }
            Operation::SmallFile => File::create_new(path('s'))?.write_all(&self.content)?,
            Operation::SmallFileSynced => {
                let mut file = File::create_new(path('d'))?;
                file.write_all(&self.content)?;
                file.sync_all()?;
                File::open(directory)?.sync_all()?;
            }
            Operation::StatCold if turn.own < there => {
                fs::symlink_metadata(path('c'))?;
            }
            Operation::StatWarm if there > 0 => {
                let again = directory.join(format!("c{}", turn.own % there));
                fs::symlink_metadata(again)?;
            }
            Operation::List if turn.own == 0 => return list(directory),
            Operation::Rename if turn.own < there => fs::rename(path('c'), path('r'))?,
            Operation::Unlink => match fs::remove_file(path('r')) {
                // The renaming did not come further.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
                removed => removed?,
            },
            Operation::MakeDir => fs::create_dir(path('m'))?,
            _ => return Ok(0),
        }
        Ok(1)
    }
}

/// Asks for the attributes of all that is in a directory.
fn list(directory: &Path) -> io::Result<u64> {
    let mut entries = 0;
    for entry in fs::read_dir(directory)? {
        entry?.metadata()?;
        entries += 1;
    }
    Ok(entries)
}
