//! Records in the manager's store: a kind (u8), a format version (u8), the body's length (u32) and the
//! body, a message of `kiln.v1` unless said otherwise.

use kiln_kv::KeyWriter;
use kiln_types::{Code, Decoder, Encoder, Error, Result};

const FORMAT: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Cluster (16 bytes), routing version (u64), whether chains are planned (u8), next target (u64).
    Head = 1,
    Node = 2,
    Target = 3,
    Chain = 4,
    /// Number of chains in the table (u32), then the ids (u64) of those in this page.
    TablePage = 5,
    Credential = 6,
    /// The primary manager: its term (16 bytes), its address (length, bytes).
    Primary = 7,
    /// How often the primary has said that it lives (u64).
    Beat = 8,
    /// The name is the key; the value of the setting (length, bytes).
    Setting = 9,
    /// The number of the change is the key.
    SettingChange = 10,
    Move = 16,
    Retired = 17,
    Drain = 18,
    Extension = 19,
}

pub(crate) fn prefix(kind: Kind) -> Vec<u8> {
    KeyWriter::new().rest(b"mgmtd/").u8(kind as u8).finish()
}

pub(crate) fn key(kind: Kind) -> KeyWriter {
    KeyWriter::new().rest(&prefix(kind))
}

pub(crate) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    Encoder::new().u8(kind as u8).u8(FORMAT).bytes(body).finish()
}

pub(crate) fn decode(kind: Kind, record: &[u8]) -> Result<&[u8]> {
    decode_up_to(FORMAT, kind, record).map(|(_, body)| body)
}

/// The format, of those up to `newest`, and the body.
pub(crate) fn decode_up_to(newest: u8, kind: Kind, record: &[u8]) -> Result<(u8, &[u8])> {
    let mut fields = Decoder::new("manager record", record);
    let (found, format) = (fields.u8()?, fields.u8()?);
    if found != kind as u8 {
        return Err(Error::corrupt(format!("record of kind {found} where {kind:?} should be")));
    }
    if !(FORMAT..=newest).contains(&format) {
        return Err(Error::new(
            Code::Unsupported,
            format!("a {kind:?} record has format {format}, this build knows {newest}"),
        )
        .with_hint("start the newer version of kiln that wrote it"));
    }
    let body = fields.bytes(usize::MAX)?;
    fields.finish()?;
    Ok((format, body))
}
