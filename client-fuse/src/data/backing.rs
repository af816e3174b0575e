//! Where the bytes of an open file are kept.

use async_trait::async_trait;
use kiln_client::SeekTo;
use kiln_memory::{Buffer, Bytes};
use kiln_types::Result;
use std::ops::Range;

/// The cluster's side of one open file: [`kiln_client::File`], or a test's model.
#[async_trait]
pub(crate) trait Backing: Send + Sync + 'static {
    /// Bytes from `offset` on, all of `buffer`: zeros where nothing was ever written, whatever the length
    /// of the file is.
    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer>;

    /// Makes sure that nothing but the servers' health will keep writes up to `end` from it.
    async fn reserve(&self, end: u64) -> Result<()>;

    /// Writes; durable on every replica when it returns. Writes of one chunk that overlap must not be
    /// under way at a time: which comes last is not defined.
    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()>;

    /// Writes zeros that take no space, as [`Self::write`] writes bytes.
    async fn zero(&self, range: Range<u64>) -> Result<()>;

    /// The first byte from `offset` on that is stored, or is not; what was never written is not.
    /// `BeyondEnd` when there is none as far as the file reaches.
    async fn seek(&self, offset: u64, to: SeekTo) -> Result<u64>;
}
