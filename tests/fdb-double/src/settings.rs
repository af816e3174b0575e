//! What stands in the double's cluster file.
//!
//! | key | what |
//! | --- | --- |
//! | `directory` | where the log of commits is; without one the store goes with its last database |
//! | `seed` | decides everything random |
//! | `conflict` | how likely a commit is `not_committed` for nothing |
//! | `unknown` | how likely a commit is `commit_unknown_result`: committed, not committed, or committed later |
//! | `too_old` | how likely a read or commit is `transaction_too_old` |
//! | `behind` | how likely a read is `future_version` or `process_behind` |
//! | `lost` | how likely a call never gets an answer |
//! | `at_once` | `true`: everything is done when it is asked, and answered when it is looked at twice; for simulations |
//! | `outage` | how likely a commit begins an outage: for a while nothing is answered, and what was being committed is unknown |

use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) directory: Option<PathBuf>,
    pub(crate) at_once: bool,
    pub(crate) seed: u64,
    pub(crate) conflict: f64,
    pub(crate) unknown: f64,
    pub(crate) too_old: f64,
    pub(crate) behind: f64,
    pub(crate) lost: f64,
    pub(crate) outage: f64,
}

impl Settings {
    /// Reads a cluster file's text; the first thing in it that is not understood.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        for line in lines.filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once('=').ok_or_else(|| line.to_string())?;
            let (key, value) = (key.trim(), value.trim());
            let wrong = || line.to_string();
            match key {
                "directory" => settings.directory = Some(value.into()),
                "at_once" => settings.at_once = value.parse().map_err(|_| wrong())?,
                "seed" => settings.seed = value.parse().map_err(|_| wrong())?,
                _ => {
                    *settings.chance(key).ok_or_else(wrong)? = value.parse().map_err(|_| wrong())?
                }
            }
        }
        Ok(settings)
    }

    /// Whether nothing ever fails.
    pub(crate) fn is_calm(&self) -> bool {
        let Self { conflict, unknown, too_old, behind, lost, outage, .. } = *self;
        conflict + unknown + too_old + behind + lost + outage == 0.0
    }

    fn chance(&mut self, key: &str) -> Option<&mut f64> {
        Some(match key {
            "conflict" => &mut self.conflict,
            "unknown" => &mut self.unknown,
            "too_old" => &mut self.too_old,
            "behind" => &mut self.behind,
            "lost" => &mut self.lost,
            "outage" => &mut self.outage,
            _ => return None,
        })
    }
}
