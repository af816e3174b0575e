//! The cluster's settings, as a running server takes them up.

use kiln_config::{ServiceConfig, with_settings};
use kiln_telemetry::adjust_log;
use kiln_types::RoutingInfo;
use std::sync::Arc;
use tokio::sync::watch;

/// Lays the cluster's settings over a server's own configuration, now and after each change, for ever.
/// The log follows here; `apply` gets the rest. Settings that this server cannot have are left as they are,
/// and that is logged.
pub async fn follow_settings<C: ServiceConfig + PartialEq>(
    config: C,
    mut routing: watch::Receiver<Arc<RoutingInfo>>,
    mut apply: impl FnMut(&C),
) {
    let mut last = None;
    loop {
        let settings = routing.borrow_and_update().settings.clone();
        match with_settings(&config, &settings) {
            Ok(new) if last.as_ref() != Some(&new) => {
                adjust_log(new.log().level.into(), new.log().slow);
                apply(&new);
                if last.replace(new).is_some() || !settings.is_empty() {
                    tracing::info!(?settings, "the cluster's settings are taken up");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the cluster's settings are not taken up"),
        }
        // Without a sender nobody changes anything any more.
        if routing.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
