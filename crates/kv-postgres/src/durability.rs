//! Whether what PostgreSQL acknowledges survives, out of its settings.

use crate::connection::Connection;
use crate::options::{Allow, Options};
use kiln_types::{Code, Error, Result};

/// What decides, as the session has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    version: u32,
    fsync: String,
    full_page_writes: String,
    synchronous_commit: String,
    synchronous_standby_names: String,
    /// Connections of standbys, and slots that are kept for them.
    standbys: u32,
}

impl Settings {
    pub(crate) async fn read(connection: &Connection) -> Result<Self> {
        let sql = "SELECT current_setting('server_version_num'), current_setting('fsync'),
            current_setting('full_page_writes'), current_setting('synchronous_commit'),
            current_setting('synchronous_standby_names'),
            (SELECT count(*) FROM pg_stat_replication)
                + (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical')";
        let rows = connection.texts("its settings", sql).await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut next = || row.next().unwrap_or_default();
        let number = |text: String| {
            text.parse().map_err(|_| Error::internal(format!("PostgreSQL's setting '{text}'")))
        };
        Ok(Self {
            version: number(next())?,
            fsync: next(),
            full_page_writes: next(),
            synchronous_commit: next(),
            synchronous_standby_names: next(),
            standbys: number(next())?,
        })
    }

    /// Refuses what may lose something that was acknowledged, unless it is allowed by name.
    pub(crate) fn check(&self, options: &Options) -> Result<()> {
        if self.version < 120_000 {
            let text = format!("PostgreSQL {}", self.version / 10_000);
            return Err(Error::new(Code::Unsupported, text).with_hint("12 or newer is needed"));
        }
        self.dangers().into_iter().try_for_each(|danger| danger.check(options))
    }

    /// The same for standbys that no commit waits for. A backup looks like one while it is taken, so this
    /// is asked when a store is opened, and not of every connection.
    pub(crate) fn check_standbys(&self, options: &Options) -> Result<()> {
        if self.standbys == 0 || !self.synchronous_standby_names.is_empty() {
            return Ok(());
        }
        let text = "there are standbys and no commit waits for them: \
                    a failover forgets what was acknowledged";
        let cure = "set synchronous_standby_names";
        Danger { allow: Allow::AsynchronousStandbys, text: text.into(), cure }.check(options)
    }

    fn dangers(&self) -> Vec<Danger> {
        let mut found = Vec::new();
        let mut add =
            |allow, text: &str, cure| found.push(Danger { allow, text: text.into(), cure });
        if self.fsync != "on" {
            let text = "fsync is off: a power cut destroys the database";
            add(Allow::FsyncOff, text, "set fsync = on");
        }
        if self.full_page_writes != "on" {
            let text = "full_page_writes is off: a power cut tears pages";
            add(Allow::FullPageWritesOff, text, "set full_page_writes = on");
        }
        let waits = self.synchronous_commit.as_str();
        if waits == "off" {
            let text = "synchronous_commit is off: a crash forgets what was acknowledged";
            add(Allow::SynchronousCommitOff, text, "set synchronous_commit = on");
        } else if !self.synchronous_standby_names.is_empty()
            && !matches!(waits, "on" | "remote_apply")
        {
            let text = format!(
                "with synchronous_commit = {waits} a standby need not have what was acknowledged"
            );
            add(Allow::AsynchronousStandbys, &text, "set synchronous_commit = on");
        }
        found
    }
}

/// Something that may lose what was acknowledged, and what to do about it.
struct Danger {
    allow: Allow,
    text: String,
    cure: &'static str,
}

impl Danger {
    fn check(self, options: &Options) -> Result<()> {
        let Self { allow, text, cure } = self;
        if options.allows(allow) {
            tracing::debug!("PostgreSQL: {text}; allowed as '{}'", allow.name());
            return Ok(());
        }
        let hint = format!("{cure}; or accept it by name: allow '{}'", allow.name());
        Err(Error::new(Code::NotPermitted, format!("PostgreSQL: {text}")).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe() -> Settings {
        let on = || "on".to_string();
        let (fsync, full_page_writes, synchronous_commit) = (on(), on(), on());
        let settings =
            Settings { version: 150_010, fsync, full_page_writes, ..Settings::default() };
        Settings { synchronous_commit, ..settings }
    }

    #[test]
    fn each_danger_is_refused_and_its_name_is_in_the_hint() {
        let mut options = Options::new("");
        assert_eq!(safe().check(&options), Ok(()));
        let off = || "off".to_string();
        let named = || "ANY 1 (a, b)".to_string();
        let remote_write = || "remote_write".to_string();
        let standby = Settings { standbys: 1, ..safe() };
        let waited_for = Settings { synchronous_standby_names: named(), ..standby.clone() };
        assert_eq!(waited_for.check(&options), Ok(()));
        assert_eq!(waited_for.check_standbys(&options), Ok(()));
        for (settings, allow) in [
            (Settings { fsync: off(), ..safe() }, Allow::FsyncOff),
            (Settings { full_page_writes: off(), ..safe() }, Allow::FullPageWritesOff),
            (Settings { synchronous_commit: off(), ..safe() }, Allow::SynchronousCommitOff),
            (standby, Allow::AsynchronousStandbys),
            (
                Settings { synchronous_commit: remote_write(), ..waited_for },
                Allow::AsynchronousStandbys,
            ),
        ] {
            let check = |options: &Options| {
                settings.check(options).and_then(|()| settings.check_standbys(options))
            };
            let error = check(&options).unwrap_err();
            assert_eq!(error.code(), Code::NotPermitted);
            assert!(error.hint().is_some_and(|hint| hint.contains(allow.name())), "{error}");
            options.allow = vec![allow];
            assert_eq!(check(&options), Ok(()), "{allow:?}");
            options.allow.clear();
        }
        let old = Settings { version: 110_022, ..safe() };
        assert_eq!(old.check(&options).map_err(|error| error.code()), Err(Code::Unsupported));
    }
}
