//! Whether a cluster that has just started can be used: files can be made, read and written.

use crate::admin;
use crate::remote::{Remote, of_dir};
use kiln_env::Env;
use kiln_launch::ClusterDir;
use kiln_types::{InodeId, Result};
use std::time::Duration;

/// How long a cluster may take to settle after its servers are ready.
const SETTLE_WITHIN: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the cluster can be used; after a while says why it cannot.
pub(crate) async fn unready(dir: &ClusterDir, env: &Env) -> Option<String> {
    match Box::pin(settle(dir, env)).await {
        Ok(why) => why.map(|why| format!("{why}.\nkiln admin check shows more.")),
        Err(error) => Some(format!("it does not answer yet: {error}.")),
    }
}

async fn settle(dir: &ClusterDir, env: &Env) -> Result<Option<String>> {
    let deadline = env.deadline_after(SETTLE_WITHIN);
    let (address, credential) = of_dir(dir)?;
    let remote = Remote::connect(&address, credential, env.clone()).await?;
    while let Some(why) = admin::unusable(&remote.client.routing()) {
        if deadline.passed(env.now()) {
            return Ok(Some(why));
        }
        env.sleep(PAUSE).await;
    }
    let root = Box::pin(remote.client.list_dir(&remote.caller, InodeId::ROOT));
    env.until(deadline, "the root directory", root).await??;
    remote.close().await;
    Ok(None)
}
