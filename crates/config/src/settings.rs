//! Settings of the whole cluster: keys that an operator changes for all servers of a kind while they run.
//! They come over a server's file, environment and flags. A name is the service and the key:
//! `storage.recovery.rate`.

use crate::layers::{lay_over, over};
use crate::{DiskConfig, MetaConfig, MgmtdConfig, ServiceConfig, Setting, StorageConfig};
use kiln_types::{Error, Result, ServiceKind};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Where such a setting comes from, for messages.
const SOURCE: &str = "the cluster's configuration";

/// The names of all settings, each with its value where nobody set it.
pub fn settings() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    add_settings::<MgmtdConfig>(&mut all);
    add_settings::<MetaConfig>(&mut all);
    add_settings::<StorageConfig>(&mut all);
    all
}

/// Checks that there is such a setting and that it may have this value.
///
/// # Errors
/// `NotFound` with what there is, `Invalid` with what is allowed.
pub fn check_setting(name: &str, value: &str) -> Result<()> {
    if !settings().contains_key(name) {
        let known: Vec<_> = settings().into_keys().collect();
        let error = Error::new(kiln_types::Code::NotFound, format!("there is no setting '{name}'"));
        return Err(error.with_hint(format!("there are {}", known.join(", "))));
    }
    let one = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    match service_of(name) {
        Some(ServiceKind::Mgmtd) => with_settings(&MgmtdConfig::default(), &one).map(drop),
        Some(ServiceKind::Meta) => with_settings(&MetaConfig::default(), &one).map(drop),
        _ => with_settings(&some_storage(), &one).map(drop),
    }
}

/// A storage server's configuration names disks, without which it is not valid.
fn some_storage() -> StorageConfig {
    let disk = DiskConfig { path: "/".into(), capacity: 1 << 30 };
    StorageConfig { disks: vec![disk], ..StorageConfig::default() }
}

/// The configuration of a server with the cluster's settings laid over it. Settings that this build does
/// not know are left out.
///
/// # Errors
/// `Invalid`, naming the setting and what is allowed.
pub fn with_settings<C: ServiceConfig>(
    config: &C,
    settings: &BTreeMap<String, String>,
) -> Result<C> {
    let known = Table::try_from(C::default()).map_err(internal)?;
    let mut table = Table::try_from(config).map_err(internal)?;
    for key in C::HOT {
        let name = format!("{}.{key}", C::SERVICE);
        if let Some(value) = settings.get(&name) {
            let setting =
                Setting { key: (*key).into(), value: value.clone(), source: SOURCE.into() };
            lay_over(&mut table, &known, &setting)?;
            over::<C>(&table, &setting)?;
        }
    }
    let config: C = table.try_into().map_err(internal)?;
    config.validate()?;
    Ok(config)
}

fn service_of(name: &str) -> Option<ServiceKind> {
    let service = name.split_once('.')?.0;
    let all = [ServiceKind::Mgmtd, ServiceKind::Meta, ServiceKind::Storage];
    all.into_iter().find(|kind| kind.to_string() == service)
}

fn add_settings<C: ServiceConfig>(all: &mut BTreeMap<String, String>) {
    let defaults = Table::try_from(C::default()).unwrap_or_default();
    for key in C::HOT {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| defaults.get(part));
        let found = parts.fold(first, |value, part| value?.as_table()?.get(part));
        let shown = match found {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        all.insert(format!("{}.{key}", C::SERVICE), shown);
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("configuration: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use kiln_types::Code;

    #[test]
    fn every_setting_is_a_key_of_its_service() {
        let all = settings();
        assert!(all.len() > 5);
        for (name, value) in &all {
            assert!(!value.is_empty(), "{name} has no default");
            check_setting(name, value).unwrap();
        }
    }

    #[test]
    fn settings_come_over_a_servers_own_and_are_checked() {
        let mut config = some_storage();
        config.recovery.rate = 7;
        let set = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let with = |settings| with_settings(&config, &settings);
        assert_eq!(with(BTreeMap::new()).unwrap().recovery.rate, 7);
        let faster = with(set("storage.recovery.rate", "64MiB")).unwrap();
        assert_eq!(faster.recovery.rate, 64 << 20);
        assert_eq!(with(set("meta.log.slow", "3s")).unwrap(), config);
        let wrong = check_setting("storage.recovery.rate", "fast").unwrap_err();
        assert_eq!(wrong.code(), Code::Invalid, "{wrong}");
        let unknown = check_setting("storage.disks", "[]").unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    }
}
