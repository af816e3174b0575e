//! What all parts of a run share.

use crate::report::{Tally, Workload};
use crate::sample::Sample;
use crate::workers::{Crew, Interrupt};
use kiln_client::Client;
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_types::Caller;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one sequential request.
pub(crate) const SEQUENTIAL_BYTES: usize = 1 << 20;
/// Bytes of one random request, and of a small file.
pub(crate) const RANDOM_BYTES: usize = 4 << 10;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Reads and writes through the client library.
    Library,
    /// Reads and writes through a mount.
    Mount,
    /// Names and small files, through a mount.
    Metadata,
    /// Names and small files, through the client library.
    LibraryMetadata,
}

/// A mounted file system that is measured beside kiln's.
#[derive(Clone, Debug)]
pub struct Peer {
    /// How it is called in the report.
    pub name: String,
    /// A directory in it.
    pub dir: PathBuf,
}

/// What to run, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the test files: a multiple of 1 MiB.
    pub size: u64,
    /// Sequential requests under way, where more than one is.
    pub depth: usize,
    /// Random requests under way in the client library.
    pub random_depth: usize,
    /// How many work on names and small files at a time, in turn.
    pub workers: Vec<usize>,
    /// How long each measurement that has no size lasts.
    pub time: Duration,
    /// How often everything is measured, in turn.
    pub rounds: usize,
    /// A local directory on the disk that is compared with.
    pub raw_dir: PathBuf,
    /// How often the limit of replicated writes writes each byte.
    pub replicas: usize,
    /// A directory in a mount of the cluster.
    pub mount: Option<PathBuf>,
    /// Others to measure beside it.
    pub peers: Vec<Peer>,
    /// What is measured.
    pub groups: Vec<Group>,
}

/// A run on a cluster.
pub struct Bench {
    /// The seams.
    pub env: Env,
    /// The cluster's client.
    pub client: Arc<Client>,
    /// Who makes the requests.
    pub caller: Caller,
    /// What to run.
    pub options: Options,
    /// Ends it early.
    pub interrupt: Interrupt,
    /// Is told what is measured.
    pub progress: Box<dyn Fn(&str) + Send + Sync>,
}

impl Bench {
    /// Workers that go on until nothing is left.
    pub(crate) fn crew(&self, workers: usize) -> Crew {
        let (env, interrupt) = (self.env.clone(), self.interrupt.clone());
        Crew { env, interrupt, workers, time: None }
    }

    /// Workers that go on until the time is over.
    pub(crate) fn timed(&self, workers: usize) -> Crew {
        Crew { time: Some(self.options.time), ..self.crew(workers) }
    }

    /// Sequential requests in a test file.
    pub(crate) fn blocks(&self) -> u64 {
        self.options.size / SEQUENTIAL_BYTES as u64
    }

    /// Bytes that do not compress.
    pub(crate) fn random_block(&self, bytes: usize) -> Bytes {
        let mut block = Pool::new(0).take(bytes);
        self.env.fill_random(&mut block);
        block.freeze()
    }

    /// Where the random request of a number goes.
    pub(crate) fn random_offsets(&self) -> impl Fn(u64) -> u64 + Clone + Send + Sync + 'static {
        let (key, blocks) = (self.env.random_u64() | 1, self.options.size / RANDOM_BYTES as u64);
        // Odd multipliers visit all residues of 2^64; the high bits are spread well enough for a disk.
        move |number: u64| {
            let drawn = number.wrapping_add(1).wrapping_mul(key);
            let block = (u128::from(drawn) * u128::from(blocks)) >> 64;
            block as u64 * RANDOM_BYTES as u64
        }
    }

    /// Measures, and notes it under the workload.
    pub(crate) async fn measure(
        &self,
        tally: &mut Tally,
        workload: &Workload,
        who: &str,
        measurement: impl Future<Output = kiln_types::Result<Sample>>,
    ) -> kiln_types::Result<()> {
        (self.progress)(&format!("{}: {who}", workload.name));
        let sample = measurement.await?;
        tally.add(workload, who, sample);
        Ok(())
    }
}
