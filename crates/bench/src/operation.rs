//! What is done with names and small files, the same through every way.

use crate::report::{Unit, Workload};
use crate::run::Group;

/// One kind of work; they follow each other on the same files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Make an empty file and close it.
    Create,
    /// The same, then sync the file and its directory.
    CreateSynced,
    /// Make a file, write 4 KiB, close it.
    SmallFile,
    /// The same, synced before the close.
    SmallFileSynced,
    /// Attributes of a name that no cache has.
    StatCold,
    /// Of one that was just asked for.
    StatWarm,
    /// All names of a directory with their attributes, as `ls -l`.
    List,
    /// Another name in the same directory.
    Rename,
    /// Remove a file.
    Unlink,
    /// Make a directory.
    MakeDir,
}

impl Operation {
    pub(crate) const ALL: [Self; 10] = [
        Self::Create,
        Self::CreateSynced,
        Self::SmallFile,
        Self::SmallFileSynced,
        Self::StatCold,
        Self::StatWarm,
        Self::List,
        Self::Rename,
        Self::Unlink,
        Self::MakeDir,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::CreateSynced => "create, fsync",
            Self::SmallFile => "create, write 4 KiB",
            Self::SmallFileSynced => "create, write 4 KiB, fsync",
            Self::StatCold => "stat, cold",
            Self::StatWarm => "stat, warm",
            Self::List => "readdir and stat, cold",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::MakeDir => "mkdir",
        }
    }

    pub(crate) fn workload(self, group: Group, workers: usize) -> Workload {
        Workload::new(group, format!("{}, {workers} at a time", self.words()), Unit::PerSecond)
    }

    /// Whether it commits a transaction.
    pub(crate) fn commits(self) -> bool {
        !self.only_reads()
    }

    /// Whether it only asks.
    pub(crate) fn only_reads(self) -> bool {
        matches!(self, Self::StatCold | Self::StatWarm | Self::List)
    }

    /// Whether caches are dropped before.
    pub(crate) fn is_cold(self) -> bool {
        matches!(self, Self::StatCold | Self::List)
    }
}
