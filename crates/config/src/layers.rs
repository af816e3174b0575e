//! File < environment < flag.
//!
//! The keys of a service are those of its defaults; the environment variable of `node.listen` is
//! `KILN_NODE_LISTEN`. The file is parsed typed first, so that errors have a line; then each setting is
//! laid over it by itself, so that an error names the setting.

use crate::ServiceConfig;
use kiln_types::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// One key set from the environment or by a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key with its table, `node.listen`.
    pub key: String,
    /// Its value as text; lists and tables as TOML.
    pub value: String,
    /// Where it comes from, for messages: `--listen`, `KILN_NODE_LISTEN`.
    pub source: String,
}

impl Setting {
    /// What the flag `source` sets.
    pub fn flag(source: &str, key: &str, value: impl ToString) -> Self {
        Self { key: key.into(), value: value.to_string(), source: source.into() }
    }

    /// Reads `KEY=VALUE`, as `--set` takes it.
    ///
    /// # Errors
    /// `Invalid` without a `=`.
    pub fn parse(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Error::invalid(format!("'{text}' is not KEY=VALUE"))
                .with_hint("for example node.listen=127.0.0.1:7411")
        })?;
        Ok(Self::flag("--set", key.trim(), value.trim()))
    }
}

/// The configuration of a service: its defaults, over them the file, over it the environment, over it
/// the flags; then validated.
///
/// # Errors
/// `Invalid`, naming the file and line, the variable or the flag, the key, and what is allowed; `Local`
/// when the file cannot be read.
pub fn load<C: ServiceConfig>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[Setting],
) -> Result<C> {
    let known = Table::try_from(C::default()).map_err(internal)?;
    let mut table = match file {
        Some(path) => read_checked::<C>(path)?,
        None => known.clone(),
    };
    let mut settings = from_environment(&known, environment)?;
    settings.extend_from_slice(flags);
    for setting in &settings {
        lay_over(&mut table, &known, setting)?;
        over::<C>(&table, setting)?;
    }
    let config = C::deserialize(table).map_err(internal)?;
    config.validate().map_err(|error| match file {
        Some(path) => error.while_doing(path.display()),
        None => error,
    })?;
    Ok(config)
}

/// A configuration as a file that [`load`] reads.
///
/// # Errors
/// `Internal` when the value has no TOML form.
pub fn to_toml(config: &impl serde::Serialize) -> Result<String> {
    toml::to_string(config).map_err(internal)
}

/// Parses TOML that was read from `path`.
///
/// # Errors
/// `Invalid`, naming the file, the line and what is allowed.
pub fn parse_file<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        Error::invalid(format!("{}:{line}: {}", path.display(), one_line(&error)))
    })
}

fn read_checked<C: ServiceConfig>(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::local(format_args!("configuration {}", path.display()), &error)
            .with_hint(format!("'kiln config example {}' prints one to start from", C::SERVICE))
    })?;
    let mut config: C = parse_file(path, &text)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    for place in config.paths() {
        if place.is_relative() && !place.as_os_str().is_empty() {
            // By components, so that "." is the directory and not a name in it.
            *place = dir.join(&*place).components().collect();
        }
    }
    Table::try_from(config).map_err(internal)
}

fn from_environment(
    known: &Table,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Setting>> {
    let mut keys = Vec::new();
    collect_keys(known, "", &mut keys);
    let variable = |key: &str| format!("KILN_{}", key.replace('.', "_").to_uppercase());
    let mut settings = Vec::new();
    for (name, value) in environment {
        if let Some(key) = keys.iter().find(|key| variable(key) == name) {
            settings.push(Setting { key: key.clone(), value, source: name });
        } else if known.keys().any(|table| name.starts_with(&format!("{}_", variable(table)))) {
            let allowed: Vec<_> = keys.iter().map(|key| variable(key)).collect();
            return Err(Error::invalid(format!("{name} in the environment sets no key"))
                .with_hint(format!("known are {}", allowed.join(", "))));
        }
    }
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(settings)
}

/// The keys of a configuration; a list or an empty table is one key.
fn collect_keys(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => collect_keys(inner, &key, keys),
            _ => keys.push(key),
        }
    }
}

/// Checks the types of a configuration over which `setting` was laid last.
pub(crate) fn over<C: ServiceConfig>(table: &Table, setting: &Setting) -> Result<()> {
    C::deserialize(table.clone()).map(drop).map_err(|error| {
        Error::invalid(format!("{}: {}: {}", setting.source, setting.key, one_line(&error)))
    })
}

pub(crate) fn lay_over(table: &mut Table, known: &Table, setting: &Setting) -> Result<()> {
    let unknown = || {
        let mut keys = Vec::new();
        collect_keys(known, "", &mut keys);
        Error::invalid(format!("{}: there is no key '{}'", setting.source, setting.key))
            .with_hint(format!("known are {}", keys.join(", ")))
    };
    let mut parts: Vec<&str> = setting.key.split('.').collect();
    let last = parts.pop().ok_or_else(unknown)?;
    let (mut model, mut place) = (known, table);
    for part in parts {
        model = model.get(part).and_then(Value::as_table).ok_or_else(unknown)?;
        place = place
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(unknown)?;
    }
    let value = match model.get(last).ok_or_else(unknown)? {
        Value::Table(inner) if !inner.is_empty() => return Err(unknown()),
        Value::String(_) => Value::String(setting.value.clone()),
        _ => parse_value(setting)?,
    };
    place.insert(last.into(), value);
    Ok(())
}

/// A value that is not text: a number, a list, a table, as TOML has them.
fn parse_value(setting: &Setting) -> Result<Value> {
    let wrong = || {
        Error::invalid(format!("{}: {} cannot be '{}'", setting.source, setting.key, setting.value))
            .with_hint("write it as in a configuration file, for example 3 or [\"127.0.0.1:7411\"]")
    };
    let line: Table = format!("value = {}", setting.value).parse().map_err(|_| wrong())?;
    line.into_iter()
        .next()
        .filter(|_| !setting.value.contains('\n'))
        .map(|(_, v)| v)
        .ok_or_else(wrong)
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("configuration: {error}"))
}
