//! Settings of the whole cluster: changed by operators, with a history.

use crate::manager::{Answer, Manager};
use kiln_types::{Code, Error, Result, SettingChange, Timestamp};

/// The changes that are remembered.
pub(crate) const CHANGES_MAX: usize = 1000;

impl Manager {
    /// Sets a setting, or takes it back: then each server's own configuration counts again.
    pub(crate) fn set_setting(
        &mut self,
        name: String,
        value: Option<String>,
        by: String,
        at: Timestamp,
    ) -> Result<Answer> {
        let settings = &mut self.state.routing.settings;
        match &value {
            Some(value) => kiln_config::check_setting(&name, value)?,
            None if !settings.contains_key(&name) => {
                let error = Error::new(Code::NotFound, format!("'{name}' is not set"));
                return Err(error.with_hint("'kiln admin config get' shows what is set"));
            }
            None => {}
        }
        let before = match &value {
            Some(value) => settings.insert(name.clone(), value.clone()),
            None => settings.remove(&name),
        };
        if before == value {
            return Ok(Answer::Done);
        }
        tracing::info!(name, ?before, after = ?value, by, "a setting was changed");
        let changes = &mut self.state.changes;
        let sequence = changes.back().map_or(1, |last| last.sequence + 1);
        changes.push_back(SettingChange { sequence, at, by, name, before, after: value });
        if changes.len() > CHANGES_MAX {
            changes.pop_front();
        }
        self.changed = true;
        Ok(Answer::Done)
    }
}
