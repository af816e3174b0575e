//! How many servers, disks and copies a local cluster has, and who keeps its metadata: chosen at its first
//! start, then fixed.

use kiln_config::{KvConfig, KvEngine, PostgresConfig, format_size};
use kiln_types::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a cluster consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Storage servers.
    pub storage: u32,
    /// Copies of each chunk.
    pub replicas: u32,
    /// Disks of each storage server.
    pub disks: u32,
    /// Bytes that each disk may take.
    #[serde(with = "kiln_config::size")]
    pub capacity: u64,
    /// Metadata servers.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub meta: u32,
    /// The PostgreSQL that keeps the state of manager and metadata servers; `None`: each keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
}

/// Where a PostgreSQL is, and how it is entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    /// The file with the password, absolute; empty: none.
    #[serde(default)]
    pub password_file: PathBuf,
    /// Dangers that are accepted by name.
    #[serde(default)]
    pub allow: Vec<String>,
}

fn one() -> u32 {
    1
}

fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Postgres {
    /// The engine over it, as a server's configuration says it, with its tables in `schema`.
    pub fn kv(&self, schema: String) -> KvConfig {
        let Self { url, password_file, allow } = self.clone();
        let connections = PostgresConfig::default().connections;
        let postgres = PostgresConfig { url, password_file, schema, connections, allow };
        KvConfig { engine: KvEngine::Postgres, postgres, ..KvConfig::default() }
    }
}

/// What was asked for; `None`: the default at the first start, what there is later.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Storage servers; default 3.
    pub storage: Option<u32>,
    /// Copies of each chunk; default 3, or the number of storage servers when that is less.
    pub replicas: Option<u32>,
    /// Disks of each storage server; default 1.
    pub disks: Option<u32>,
    /// Bytes that each disk may take; default: its share of nine tenths of what is free, at most 64 GiB.
    pub capacity: Option<u64>,
    /// Metadata servers; default 1. More of them need a PostgreSQL.
    pub meta: Option<u32>,
    /// The PostgreSQL that keeps the metadata; default: none.
    pub postgres: Option<Postgres>,
}

const CAPACITY_DEFAULT: u64 = 64 << 30;
const CAPACITY_MIN: u64 = 1 << 30;

impl Wishes {
    /// The shape of a new cluster on a file system with `free` bytes.
    ///
    /// # Errors
    /// `Invalid`, with the option and what is allowed.
    pub fn shape(&self, free: u64) -> Result<Shape> {
        let storage = check("--storage", self.storage.unwrap_or(3), 1, 64)?;
        let disks = check("--disks", self.disks.unwrap_or(1), 1, 16)?;
        let replicas = check("--replicas", self.replicas.unwrap_or(storage.min(3)), 1, 8)?;
        if replicas > storage {
            return Err(Error::invalid(format!(
                "--replicas {replicas} needs {replicas} storage servers and there are {storage}"
            ))
            .with_hint(format!(
                "each copy is on another server: --storage {replicas}, or --replicas {storage}"
            )));
        }
        let capacity = match self.capacity {
            Some(bytes) if bytes < CAPACITY_MIN => {
                return Err(Error::invalid(format!(
                    "--capacity {} is too little for a disk; allowed is {} and more",
                    format_size(bytes),
                    format_size(CAPACITY_MIN)
                )));
            }
            Some(bytes) => bytes,
            None => {
                let share = free / 10 * 9 / u64::from(storage * disks);
                let whole = share - share % CAPACITY_MIN;
                whole.clamp(CAPACITY_MIN, CAPACITY_DEFAULT)
            }
        };
        let meta = check("--meta", self.meta.unwrap_or(1), 1, 16)?;
        let postgres = self.postgres.clone();
        if meta > 1 && postgres.is_none() {
            return Err(Error::invalid(format!(
                "--meta {meta} needs a PostgreSQL: what one metadata server keeps by itself no other can read"
            ))
            .with_hint("--postgres postgres://USER@HOST:PORT/DATABASE names one"));
        }
        Ok(Shape { storage, replicas, disks, capacity, meta, postgres })
    }

    /// Whether a cluster of this shape is what was asked for.
    ///
    /// # Errors
    /// `Invalid`: says what the cluster has.
    pub fn check(&self, shape: &Shape) -> Result<()> {
        let count = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let url = |postgres: &Option<Postgres>| postgres.as_ref().map(|one| one.url.clone());
        let differs = |wish: Option<u32>, is: u32| wish.is_some_and(|wish| wish != is);
        let is = if differs(self.storage, shape.storage) {
            format!("has {}", count(shape.storage, "storage server"))
        } else if differs(self.disks, shape.disks) {
            format!("has {} on each storage server", count(shape.disks, "disk"))
        } else if differs(self.replicas, shape.replicas) {
            format!("keeps {} of everything", count(shape.replicas, "replica"))
        } else if self.capacity.is_some_and(|wish| wish != shape.capacity) {
            format!("has disks of {}", format_size(shape.capacity))
        } else if differs(self.meta, shape.meta) {
            format!("has {}", count(shape.meta, "metadata server"))
        } else if url(&self.postgres).is_some() && url(&self.postgres) != url(&shape.postgres) {
            match &shape.postgres {
                Some(postgres) => format!("keeps its metadata in {}", postgres.url),
                None => "keeps its metadata itself".into(),
            }
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("this cluster {is}; that is chosen at its first start"))
            .with_hint(
                "leave the option out to start it as it is, or name another directory with --dir",
            ))
    }
}

fn check(option: &str, value: u32, least: u32, most: u32) -> Result<u32> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{option} is {value}; allowed is {least} to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const GIB: u64 = 1 << 30;

    #[test]
    fn defaults_follow_the_number_of_servers_and_the_free_space() {
        let shape = |storage, free| Wishes { storage, ..Wishes::default() }.shape(free).unwrap();
        let expected = Shape {
            storage: 3,
            replicas: 3,
            disks: 1,
            capacity: 64 * GIB,
            meta: 1,
            postgres: None,
        };
        assert_eq!(shape(None, 1 << 50), expected);
        assert_eq!(shape(Some(1), 1 << 50).replicas, 1);
        assert_eq!(shape(Some(2), 1 << 50).replicas, 2);
        assert_eq!(shape(Some(5), 1 << 50).replicas, 3);
        assert_eq!(shape(None, 100 * GIB).capacity, 30 * GIB);
        assert_eq!(shape(None, 0).capacity, GIB);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_option_named() {
        let wrong = |wishes: Wishes| wishes.shape(1 << 50).unwrap_err().to_string();
        let none = Wishes::default;
        assert!(wrong(Wishes { storage: Some(0), ..none() }).contains("--storage is 0"));
        assert!(wrong(Wishes { replicas: Some(4), ..none() }).contains("--storage 4"));
        assert!(wrong(Wishes { capacity: Some(5), ..none() }).contains("--capacity 5B"));
        assert!(wrong(Wishes { meta: Some(2), ..none() }).contains("needs a PostgreSQL"));
    }

    #[test]
    fn an_existing_cluster_keeps_its_shape() {
        let file = "storage = 3\nreplicas = 2\ndisks = 1\ncapacity = \"1GiB\"\n";
        let shape: Shape = kiln_config::parse_file(Path::new("cluster.toml"), file).unwrap();
        let none = Wishes::default;
        none().check(&shape).unwrap();
        Wishes { storage: Some(3), capacity: Some(GIB), meta: Some(1), ..none() }
            .check(&shape)
            .unwrap();
        let wrong = |wishes: Wishes| wishes.check(&shape).unwrap_err().to_string();
        assert!(wrong(Wishes { storage: Some(4), ..none() }).contains("has 3 storage servers"));
        assert!(wrong(Wishes { replicas: Some(3), ..none() }).contains("keeps 2 replicas"));
        assert!(wrong(Wishes { disks: Some(2), ..none() }).contains("has 1 disk on"));
        assert!(wrong(Wishes { capacity: Some(5), ..none() }).contains("disks of 1GiB"));
        let postgres = Postgres { url: "postgres://a/b".into(), ..Postgres::default() };
        let wish = Wishes { postgres: Some(postgres), ..none() };
        assert!(wrong(wish.clone()).contains("its metadata itself"));
        let shape = Shape { postgres: wish.postgres.clone(), ..shape.clone() };
        wish.check(&shape).unwrap();
    }
}
