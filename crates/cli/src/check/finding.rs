//! What a check finds.

use kiln_types::{ChainId, InodeId, TargetId};
use serde::Serialize;
use std::collections::BTreeMap;

/// Findings of one kind that are told one by one.
const TOLD_MAX: usize = 100;

/// What is wrong, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Acknowledged bytes of a file are on no serving replica.
    Loss,
    /// A replica's content does not match its checksums.
    Damage,
    /// Replicas of a chunk are not the same.
    Difference,
    /// Servers, targets or chains are not as they should be.
    Cluster,
    /// Chunks of an inode that the metadata has not made yet.
    Newer,
    /// Chunks of no file.
    Leak,
}

impl Kind {
    /// What an operator does about it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Loss => {
                "loss: no serving replica has these bytes any more, they read as zeros. If a target of \
                 the chain is offline, bring its server back and check again; otherwise restore the \
                 files from a backup, or remove them."
            }
            Self::Damage => {
                "damage: a disk returned other bytes than were written. Readers get them from another \
                 replica, from which the server writes the chunk anew: check again. Replace a disk that \
                 does it often. If all replicas are damaged there, restore the file."
            }
            Self::Difference => {
                "difference: what a read returns depends on the replica it asks. Look at the file's \
                 content, then copy it to a new one in its place (cp FILE NEW && mv NEW FILE)."
            }
            Self::Cluster => {
                "cluster: start the servers that are not heard from ('kiln up' on this machine); \
                 'kiln status' and their logs tell more. A target that was away is filled again by \
                 itself; 'kiln admin chains' shows how far it is. A write that is pending ends when its \
                 servers answer or are out of the chain: check again then."
            }
            Self::Newer => {
                "newer: these chunks are of files that the metadata never made: it may have been put \
                 back to an older state. They are left alone; put the newest metadata back."
            }
            Self::Leak => {
                "leak: these chunks take up space and belong to no file. 'kiln admin check \
                 --remove-leaks' removes them."
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    /// What it is about, for people.
    pub(crate) what: String,
    /// What is wrong with it.
    pub(crate) why: String,
    #[serde(flatten)]
    pub(crate) place: Place,
}

/// Where, as far as that is known.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(default)]
pub(crate) struct Place {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inode: Option<InodeId>,
    /// The first byte in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) chains: Vec<ChainId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<TargetId>,
}

impl Place {
    /// The file, for people.
    pub(crate) fn file(&self) -> String {
        match (&self.path, self.inode) {
            // Names may hold what a terminal takes for commands.
            (Some(path), _) => path.replace(char::is_control, "?"),
            (None, Some(inode)) => format!("inode {inode}"),
            (None, None) => "?".into(),
        }
    }
}

/// All findings: counted, and the first ones of each kind kept.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: BTreeMap<Kind, Vec<Finding>>,
    counts: BTreeMap<Kind, u64>,
}

impl Findings {
    /// Whether another one of `kind` would be kept: only then are its path and its like looked up.
    pub(crate) fn keeps(&self, kind: Kind) -> bool {
        self.kept.get(&kind).is_none_or(|kept| kept.len() < TOLD_MAX)
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        *self.counts.entry(finding.kind).or_default() += 1;
        if self.keeps(finding.kind) {
            self.kept.entry(finding.kind).or_default().push(finding);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The kinds that there are, and how many of each are not kept.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        self.counts.iter().map(|(kind, count)| {
            let kept = self.kept.get(kind).map_or(0, |kept| kept.len() as u64);
            (*kind, count - kept)
        })
    }

    /// Those that are kept, worst first.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Finding> {
        self.kept.values().flatten()
    }
}
