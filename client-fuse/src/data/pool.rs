//! What all files of a mount share: the environment and the budgets.

use super::DataOptions;
use kiln_env::Env;
use std::sync::Arc;

/// What the open files of one mount share.
pub(crate) struct DataPool {
    pub(super) env: Env,
    pub(super) options: DataOptions,
}

impl DataPool {
    /// A pool without any file.
    pub(crate) fn new(env: Env, options: DataOptions) -> Arc<Self> {
        Arc::new(Self { env, options })
    }
}
