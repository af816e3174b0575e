//! Names and small files.

use super::{Directory, new_file};
use crate::limits::{self, Commits, round_trips};
use crate::operation::Operation;
use crate::report::{KILN, Tally};
use crate::run::{Bench, Group, RANDOM_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_client::{Client, Rename};
use kiln_memory::Bytes;
use kiln_types::{Caller, InodeId, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a program sees through the library: nothing is cached there, and what returned is durable.
const OPERATIONS: [Operation; 7] = [
    Operation::Create,
    Operation::SmallFileSynced,
    Operation::StatCold,
    Operation::List,
    Operation::Rename,
    Operation::Unlink,
    Operation::MakeDir,
];

/// One round of everything.
pub(crate) async fn names(
    bench: &Bench,
    tally: &mut Tally,
    directory: &Directory,
    commits: &Commits,
    round: usize,
) -> Result<()> {
    for &workers in &bench.options.workers {
        let commit_rate = commits.measure(bench, workers).await?;
        let round_trip = round_trips(bench, workers).await?;
        let prefix = format!("{round}-{workers}");
        let files = Arc::new(Files::create(bench, directory, &prefix, workers).await?);
        for operation in OPERATIONS {
            let workload = operation.workload(Group::LibraryMetadata, workers);
            bench.measure(tally, &workload, KILN, files.measure(bench, operation)).await?;
            let (limit, sample) = match operation.only_reads() {
                true => (limits::ROUND_TRIP, &round_trip),
                false => (limits::COMMITS, &commit_rate),
            };
            if operation != Operation::List {
                tally.add(&workload, limit, sample.clone());
            }
        }
    }
    Ok(())
}

/// A directory for each worker, and how many files are in it.
struct Files {
    client: Arc<Client>,
    caller: Caller,
    directories: Vec<InodeId>,
    made: Vec<AtomicU64>,
    content: Bytes,
}

impl Files {
    async fn create(
        bench: &Bench,
        directory: &Directory,
        prefix: &str,
        workers: usize,
    ) -> Result<Self> {
        let (client, caller) = (Arc::clone(&bench.client), bench.caller.clone());
        let mut directories = Vec::new();
        for worker in 0..workers {
            let name = format!("{prefix}-{worker}");
            let made = client.make_dir(&caller, directory.inode(), name.as_bytes(), 0o700).await?;
            directories.push(made.inode);
        }
        let made = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { client, caller, directories, made, content: bench.random_block(RANDOM_BYTES) })
    }

    async fn measure(self: &Arc<Self>, bench: &Bench, operation: Operation) -> Result<Sample> {
        let files = Arc::clone(self);
        let work = move |turn: Turn| {
            let files = Arc::clone(&files);
            async move { files.perform(operation, turn).await }
        };
        let sample = bench.timed(self.directories.len()).tasks(work).await?;
        Ok(if operation == Operation::List { sample.whole() } else { sample })
    }

    async fn perform(&self, operation: Operation, turn: Turn) -> Result<u64> {
        let (client, caller) = (&*self.client, &self.caller);
        let (parent, made) = (self.directories[turn.worker], &self.made[turn.worker]);
        let there = made.load(Ordering::Relaxed);
        let name = |kind: char| format!("{kind}{}", turn.own).into_bytes();
        let uses_files = !matches!(
            operation,
            Operation::Create | Operation::SmallFileSynced | Operation::MakeDir | Operation::List
        );
        if uses_files && turn.own >= there {
            return Ok(0);
        }
        match operation {
            Operation::Create => {
                let file = client.create(caller, &new_file(parent, &name('c'))).await?;
                file.close().await?;
                made.store(turn.own + 1, Ordering::Relaxed);
            }
            Operation::SmallFileSynced => {
                let file = client.create(caller, &new_file(parent, &name('s'))).await?;
                file.write_at(0, self.content.clone()).await?;
                file.close().await?;
            }
            Operation::List if turn.own > 0 => return Ok(0),
            Operation::List => return Ok(client.list_dir(caller, parent).await?.len() as u64),
            Operation::Rename => {
                let (from, to) = (name('c'), name('r'));
                client.rename(caller, (parent, &from), (parent, &to), Rename::Replace).await?;
            }
            Operation::Unlink => match client.remove(caller, parent, &name('r'), false).await {
                // The renaming did not come that far.
                Err(error) if error.code() == kiln_types::Code::NotFound => return Ok(0),
                removed => drop(removed?),
            },
            Operation::MakeDir => drop(client.make_dir(caller, parent, &name('m'), 0o700).await?),
            _ => drop(client.lookup(caller, parent, &name('c')).await?),
        }
        Ok(1)
    }
}
