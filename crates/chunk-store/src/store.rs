//! The store: what callers may ask.

use crate::api::{
    ChunkRead, ChunkStat, Identity, Options, RetryRecord, TargetRecord, Update, Usage, Which,
};
use kiln_disk::Disk;
use kiln_env::Env;
use kiln_memory::Pool;
use kiln_types::{
    ChainId, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Error, Result, TargetId,
    TruncateEpoch,
};
use std::sync::Arc;

/// The chunks of one disk.
pub struct Store {
    identity: Identity,
}

fn soon<T>() -> Result<T> {
    Err(Error::new(Code::Unsupported, "the chunk store is being built"))
}

#[expect(clippy::unused_async, missing_docs, unused_variables, reason = "signatures first")]
impl Store {
    pub async fn format(disk: &Arc<dyn Disk>, identity: Identity) -> Result<()> {
        soon()
    }
    pub async fn identify(disk: &Arc<dyn Disk>) -> Result<Option<Identity>> {
        soon()
    }
    pub async fn open(
        disk: Arc<dyn Disk>,
        env: Env,
        pool: Pool,
        options: Options,
    ) -> Result<Arc<Self>> {
        soon()
    }
    pub fn identity(&self) -> Identity {
        self.identity
    }
    pub fn targets(&self) -> Vec<TargetRecord> {
        Vec::new()
    }
    pub async fn create_target(
        &self,
        target: TargetId,
        chain: ChainId,
        state: Vec<u8>,
    ) -> Result<()> {
        soon()
    }
    pub async fn set_target_state(&self, target: TargetId, state: Vec<u8>) -> Result<()> {
        soon()
    }
    pub async fn remove_target(&self, target: TargetId) -> Result<()> {
        soon()
    }
    pub async fn prepare(&self, target: TargetId, update: Update) -> Result<()> {
        soon()
    }
    pub async fn commit(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<()> {
        soon()
    }
    pub async fn discard(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<()> {
        soon()
    }
    pub async fn read(
        &self,
        target: TargetId,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        floor: TruncateEpoch,
    ) -> Result<ChunkRead> {
        soon()
    }
    pub async fn stat(&self, target: TargetId, chunk: ChunkId) -> Result<ChunkStat> {
        soon()
    }
    pub fn pending(&self, target: TargetId) -> Vec<(ChunkId, ChunkVersion)> {
        Vec::new()
    }
    pub async fn list(
        &self,
        target: TargetId,
        from: ChunkId,
        to: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, ChunkStat)>> {
        soon()
    }
    pub async fn last_chunk(
        &self,
        target: TargetId,
        from: ChunkId,
        to: ChunkId,
    ) -> Result<Option<(ChunkId, ChunkStat)>> {
        soon()
    }
    pub fn retry_record(
        &self,
        target: TargetId,
        client: ClientId,
        channel: ChannelId,
    ) -> Option<RetryRecord> {
        None
    }
    pub async fn forget_client(&self, client: ClientId) -> Result<()> {
        soon()
    }
    pub fn version_max(&self, target: TargetId) -> ChunkVersion {
        ChunkVersion::NONE
    }
    pub fn usage(&self) -> Usage {
        Usage::default()
    }
    pub async fn close(&self) -> Result<()> {
        soon()
    }
}
