//! What an operator says about the PostgreSQL, and what is refused before anything is connected.

use kiln_types::{Code, Error, Result};
use std::net::IpAddr;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// The schema that is used when none is named.
pub const SCHEMA: &str = "kiln";
/// The longest name of a schema that PostgreSQL keeps, in bytes.
const SCHEMA_BYTES_MAX: usize = 63;

/// Where the PostgreSQL is and what of it is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `postgres://USER@HOST:PORT/DATABASE`; several hosts are tried in order, a directory (written with
    /// `%2F`) is one with a socket.
    pub url: String,
    /// The password of the user, when it wants one.
    pub password: Option<Vec<u8>>,
    /// The schema that holds the cluster's tables; made when it is missing.
    pub schema: String,
    /// The most connections that read at the same time; one more commits.
    pub connections: u32,
    /// What is not refused although it may lose or show data.
    pub allow: Vec<Allow>,
}

impl Options {
    /// The PostgreSQL at `url`, with nothing dangerous allowed.
    pub fn new(url: impl Into<String>) -> Self {
        let (url, schema) = (url.into(), SCHEMA.into());
        Self { url, password: None, schema, connections: 16, allow: Vec::new() }
    }

    pub(crate) fn allows(&self, allow: Allow) -> bool {
        self.allow.contains(&allow)
    }
}

macro_rules! allows {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A danger that an operator accepts by its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Allow {
            $($(#[$doc])* $name,)*
        }

        impl Allow {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// How an operator writes it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

allows! {
    /// Passwords and metadata cross a network readable.
    Unencrypted = "unencrypted";
    /// `fsync = off`: a power cut destroys the database.
    FsyncOff = "fsync-off";
    /// `full_page_writes = off`: a power cut tears pages.
    FullPageWritesOff = "full-page-writes-off";
    /// `synchronous_commit = off`: a crash forgets what was acknowledged.
    SynchronousCommitOff = "synchronous-commit-off";
    /// Standbys that do not have what was acknowledged: a failover forgets it.
    AsynchronousStandbys = "asynchronous-standbys";
}

impl std::str::FromStr for Allow {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|allow| allow.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|allow| allow.name()).collect();
            Error::invalid(format!("'{text}' is nothing to allow"))
                .with_hint(format!("one of {}", names.join(", ")))
        })
    }
}

/// How to connect; refuses what the options do not allow.
pub(crate) fn connect_config(options: &Options) -> Result<Config> {
    check_schema(&options.schema)?;
    let mut config: Config = options.url.parse().map_err(|error: tokio_postgres::Error| {
        Error::invalid(format!("the URL of the PostgreSQL: {}", crate::errors::text(&error)))
            .with_hint("for example postgres://kiln@db1,db2:5432/kiln")
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(Error::invalid("the URL of the PostgreSQL names no host"));
    }
    if config.get_ssl_mode() == SslMode::Require {
        let error = Error::new(Code::Unsupported, "this build does not encrypt to PostgreSQL");
        return Err(error.with_hint("a tunnel that ends on this machine does; drop sslmode"));
    }
    if let Some(host) = far_host(&config).filter(|_| !options.allows(Allow::Unencrypted)) {
        let text = format!("the connection to the PostgreSQL at {host} would not be encrypted");
        return Err(Error::new(Code::NotPermitted, text).with_hint(
            "use a socket or a tunnel that ends on this machine, or allow 'unencrypted'",
        ));
    }
    if let Some(password) = &options.password {
        config.password(password);
    }
    if config.get_application_name().is_none() {
        config.application_name("kiln");
    }
    config.ssl_mode(SslMode::Disable);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    config.connect_timeout(crate::connection::CONNECT_TIME_MAX);
    Ok(config)
}

fn check_schema(schema: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = schema.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if begins && schema.bytes().all(is_plain) && schema.len() <= SCHEMA_BYTES_MAX {
        return Ok(());
    }
    let hint = "a-z first, then a-z, 0-9 and _, at most 63 of them";
    Err(Error::invalid(format!("'{schema}' is no name of a schema")).with_hint(hint))
}

/// A host that is reached over a network, if one is named.
fn far_host(config: &Config) -> Option<String> {
    let is_near = |name: &str| {
        name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    };
    let addresses = config.get_hostaddrs();
    if !addresses.is_empty() {
        return addresses.iter().find(|one| !one.is_loopback()).map(ToString::to_string);
    }
    config.get_hosts().iter().find_map(|host| match host {
        Host::Tcp(name) if !is_near(name) => Some(name.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(options: &Options) -> Option<Code> {
        connect_config(options).err().map(|error| error.code())
    }

    #[test]
    fn networks_want_to_be_named() {
        for near in [
            "postgres://kiln@localhost/kiln",
            "postgres://kiln@127.0.0.1:1,[::1]:2/kiln",
            "postgresql://kiln@%2Frun%2Fpostgresql/kiln",
            "postgres://kiln@db1/kiln?hostaddr=127.0.0.1",
        ] {
            assert_eq!(code(&Options::new(near)), None, "{near}");
        }
        for far in [
            "postgres://kiln@10.0.0.7/kiln",
            "postgres://kiln@localhost,db2/kiln",
            "postgres://kiln@localhost/kiln?hostaddr=10.0.0.7",
        ] {
            let mut options = Options::new(far);
            assert_eq!(code(&options), Some(Code::NotPermitted), "{far}");
            options.allow.push(Allow::Unencrypted);
            assert_eq!(code(&options), None, "{far}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        assert_eq!(code(&Options::new("http://a/b")), Some(Code::Invalid));
        assert_eq!(code(&Options::new("postgres:///kiln")), Some(Code::Invalid));
        let tls = "postgres://kiln@localhost/kiln?sslmode=require";
        assert_eq!(code(&Options::new(tls)), Some(Code::Unsupported));
        for schema in ["", "9", "Kiln", "a-b", "a\"; drop", &"a".repeat(64)] {
            let schema = schema.to_string();
            let options = Options { schema, ..Options::new("postgres://kiln@localhost/kiln") };
            assert_eq!(code(&options), Some(Code::Invalid));
        }
        let error = "everything".parse::<Allow>().unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("fsync-off")), "{error}");
        assert_eq!("fsync-off".parse(), Ok(Allow::FsyncOff));
    }
}
