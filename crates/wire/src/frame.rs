//! The data plane's frame: a fixed header, a small body, a bulk payload.
//!
//! ```text
//! offset bytes field (little-endian)
//!      0     4 magic
//!      4     2 version of this layout
//!      6     1 kind
//!      7     1 hop: how often servers passed the request on
//!      8     2 operation (request, reply)
//!     10     2 status: 0, or the code of an error (reply, goodbye)
//!     12     4 deadline: milliseconds that are left (request)
//!     16     8 request id, chosen by the connector, not reused on the connection
//!     24     4 bytes of the body
//!     28     4 bytes of the payload
//!     32     4 bytes that the caller's memory takes (request)
//!     36     4 CRC32C of the body
//!     40    20 zero
//!     60     4 CRC32C of the 60 bytes before
//! ```
//!
//! The payload has no checksum here: bodies carry one for each 4 KiB block of it, from the client's
//! buffer to the disk and back. A body is small, so it is checked before anyone reads it.

use kiln_types::{Code, Decoder, Encoder, Error, Result, crc32c};

/// Bytes of a header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// The longest body: the checksums of the largest payload take 64 KiB, names and ids the rest.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// The longest payload: the largest chunk, with some room for what travels beside it.
pub const PAYLOAD_BYTES_MAX: usize = (64 << 20) + (64 << 10);

const MAGIC: u32 = u32::from_le_bytes(*b"KLNF");
const VERSION: u16 = 1;
const CHECKED: usize = FRAME_HEADER_BYTES - 4;
const ZERO_BYTES: usize = 20;
const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A call: operation, deadline, body, payload to the server, room for a payload back.
    Request = 1,
    /// Its answer: status, body (or message and hint of an error), payload.
    Reply = 2,
    /// How much the acceptor lets be outstanding on the connection; see [`Credit`].
    Credit = 3,
    /// The caller does not want the answer any more. The request is still answered.
    Cancel = 4,
    /// The sender takes no new requests and closes after the answers; a status says why.
    Goodbye = 5,
    /// The acceptor is alive and still works on something.
    Alive = 6,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// How often servers passed the request on: 0 from whoever began it.
    pub hop: u8,
    /// What is asked for; the message layer numbers them.
    pub operation: u16,
    /// 0, or the number of an error's code.
    pub status: u16,
    /// Milliseconds until the caller stops waiting.
    pub deadline_ms: u32,
    /// Which request this is or belongs to.
    pub request: u64,
    /// Bytes of the body that follows.
    pub body_bytes: u32,
    /// Bytes of the payload that follows the body.
    pub payload_bytes: u32,
    /// Bytes of payload that the caller takes in the reply.
    pub receive_bytes: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
}

impl FrameHeader {
    /// A header of `kind` for `request` in front of `body`; everything else zero.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_BYTES_MAX`]: callers check first.
    pub fn new(kind: FrameKind, request: u64, body: &[u8]) -> Self {
        assert!(body.len() <= BODY_BYTES_MAX, "a body of {} bytes", body.len());
        Self {
            kind,
            hop: 0,
            operation: 0,
            status: 0,
            deadline_ms: 0,
            request,
            body_bytes: body.len() as u32,
            payload_bytes: 0,
            receive_bytes: 0,
            body_crc: crc32c(body),
        }
    }

    /// The header as it travels.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&VERSION.to_le_bytes());
        put(&[self.kind as u8, self.hop]);
        put(&self.operation.to_le_bytes());
        put(&self.status.to_le_bytes());
        put(&self.deadline_ms.to_le_bytes());
        put(&self.request.to_le_bytes());
        put(&self.body_bytes.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
        put(&self.receive_bytes.to_le_bytes());
        put(&self.body_crc.to_le_bytes());
        let crc = crc32c(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// `Corrupt` when a check fails or a length is above its limit, `ProtocolMismatch` when the
    /// layout has another version.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self> {
        let mut fields = Decoder::new("frame header", bytes);
        if fields.u32()? != MAGIC {
            return Err(Error::corrupt("frame header: the magic number is wrong"));
        }
        let stored = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        if stored != crc32c(&bytes[..CHECKED]) {
            return Err(Error::corrupt("frame header: the checksum is wrong"));
        }
        let version = fields.u16()?;
        if version != VERSION {
            let message = format!("frame version {version}, this build knows {VERSION}");
            return Err(Error::new(Code::ProtocolMismatch, message));
        }
        let kind = FrameKind::from_number(fields.u8()?)?;
        let header = Self {
            kind,
            hop: fields.u8()?,
            operation: fields.u16()?,
            status: fields.u16()?,
            deadline_ms: fields.u32()?,
            request: fields.u64()?,
            body_bytes: fields.u32()?,
            payload_bytes: fields.u32()?,
            receive_bytes: fields.u32()?,
            body_crc: fields.u32()?,
        };
        if fields.raw(ZERO_BYTES)?.iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt("frame header: bytes that are reserved are not zero"));
        }
        at_most("body", header.body_bytes, BODY_BYTES_MAX)?;
        at_most("payload", header.payload_bytes, PAYLOAD_BYTES_MAX)?;
        at_most("receive capacity", header.receive_bytes, PAYLOAD_BYTES_MAX)?;
        Ok(header)
    }

    /// Checks the body that followed the header.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that was sent.
    pub fn check_body(&self, body: &[u8]) -> Result<()> {
        if body.len() != self.body_bytes as usize || crc32c(body) != self.body_crc {
            return Err(Error::corrupt("frame body: the checksum is wrong"));
        }
        Ok(())
    }
}

fn at_most(what: &str, bytes: u32, limit: usize) -> Result<()> {
    if bytes as usize > limit {
        return Err(Error::corrupt(format!(
            "frame header: a {what} of {bytes} bytes, at most {limit} allowed"
        )));
    }
    Ok(())
}

impl FrameKind {
    fn from_number(number: u8) -> Result<Self> {
        [Self::Request, Self::Reply, Self::Credit, Self::Cancel, Self::Goodbye, Self::Alive]
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .ok_or_else(|| Error::corrupt(format!("frame header: kind {number} is unknown")))
    }
}

/// What may be outstanding on a connection: sent once, before the first request. A request takes
/// its share when it is sent and gives it back with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Requests without a reply.
    pub requests: u32,
    /// Their bytes in all: see [`Credit::cost`].
    pub bytes: u32,
}

impl Credit {
    /// The bytes that a request with these lengths counts for: all that the server may have to hold
    /// for it, at least 4 KiB, and at most the whole window, so that the largest request can go
    /// alone.
    pub fn cost(&self, body: usize, payload: usize, receive: usize) -> u32 {
        let bytes = (body + payload + receive).max(4096);
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes)
    }

    /// The body of a credit frame.
    pub fn encode(&self) -> Vec<u8> {
        Encoder::new().u32(self.requests).u32(self.bytes).finish()
    }

    /// Reads the body of a credit frame.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed or allows nothing.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new("credit", body);
        let credit = Self { requests: fields.u32()?, bytes: fields.u32()? };
        fields.finish()?;
        if credit.requests == 0 || credit.bytes == 0 {
            return Err(Error::corrupt("credit: nothing is allowed"));
        }
        Ok(credit)
    }
}

/// An error as the body of a reply or goodbye; its code travels in the header's status.
pub fn encode_error(error: &Error) -> Vec<u8> {
    let mut body = Encoder::new();
    body.bytes(clip(error.message(), MESSAGE_BYTES_MAX).as_bytes());
    body.bytes(clip(error.hint().unwrap_or(""), MESSAGE_BYTES_MAX).as_bytes());
    body.finish()
}

/// Reads what [`encode_error`] wrote; a malformed body is an error of its own.
pub fn decode_error(status: u16, body: &[u8]) -> Error {
    let read = || -> Result<Error> {
        let mut fields = Decoder::new("error", body);
        let message = fields.bytes(MESSAGE_BYTES_MAX)?;
        let hint = fields.bytes(MESSAGE_BYTES_MAX)?;
        fields.finish()?;
        let error = Error::new(Code::from_number(status), String::from_utf8_lossy(message));
        Ok(match hint {
            [] => error,
            hint => error.with_hint(String::from_utf8_lossy(hint)),
        })
    };
    read().unwrap_or_else(|malformed| malformed)
}

/// The longest beginning of `text` that has at most `bytes` bytes.
pub(crate) fn clip(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = (FrameHeader, Vec<u8>)> {
        let kind = prop::sample::select(vec![
            FrameKind::Request,
            FrameKind::Reply,
            FrameKind::Credit,
            FrameKind::Cancel,
            FrameKind::Goodbye,
            FrameKind::Alive,
        ]);
        let body = prop::collection::vec(any::<u8>(), 0..300);
        let lengths = (0..=PAYLOAD_BYTES_MAX as u32, 0..=PAYLOAD_BYTES_MAX as u32);
        (kind, body, lengths, any::<(u8, u16, u16, u32, u64)>()).prop_map(
            |(kind, body, (payload_bytes, receive_bytes), fields)| {
                let (hop, operation, status, deadline_ms, request) = fields;
                let header = FrameHeader {
                    hop,
                    operation,
                    status,
                    deadline_ms,
                    payload_bytes,
                    receive_bytes,
                    ..FrameHeader::new(kind, request, &body)
                };
                (header, body)
            },
        )
    }

    proptest! {
        #[test]
        fn headers_come_back((header, body) in headers()) {
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
            prop_assert!(header.check_body(&body).is_ok());
        }

        #[test]
        fn every_flipped_bit_is_seen((header, body) in headers(), pick in any::<u16>()) {
            for bit in 0..FRAME_HEADER_BYTES * 8 {
                let mut bytes = header.encode();
                bytes[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(FrameHeader::decode(&bytes).is_err(), "header bit {}", bit);
            }
            if !body.is_empty() {
                let bit = usize::from(pick) % (body.len() * 8);
                let mut flipped = body.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(header.check_body(&flipped).is_err());
                prop_assert!(header.check_body(&body[1..]).is_err());
            }
        }

        #[test]
        fn garbage_is_an_error(bytes in prop::array::uniform32(any::<u8>())) {
            let mut all = [0; FRAME_HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&bytes);
            prop_assert!(FrameHeader::decode(&all).is_err());
            let _ = (Credit::decode(&bytes), decode_error(100, &bytes));
        }

        #[test]
        fn errors_travel(message in ".{0,40}", hint in proptest::option::of(".{1,40}")) {
            let mut error = Error::new(Code::StaleEpoch, message);
            if let Some(hint) = hint {
                error = error.with_hint(hint);
            }
            prop_assert_eq!(decode_error(Code::StaleEpoch as u16, &encode_error(&error)), error);
        }
    }

    #[test]
    fn limits_hold_even_with_a_right_checksum() {
        let header = FrameHeader::new(FrameKind::Request, 1, b"");
        for (body, payload, receive) in [
            (BODY_BYTES_MAX as u32 + 1, 0, 0),
            (0, PAYLOAD_BYTES_MAX as u32 + 1, 0),
            (0, 0, PAYLOAD_BYTES_MAX as u32 + 1),
        ] {
            let header = FrameHeader {
                body_bytes: body,
                payload_bytes: payload,
                receive_bytes: receive,
                ..header
            };
            assert_eq!(FrameHeader::decode(&header.encode()).unwrap_err().code(), Code::Corrupt);
        }
    }

    #[test]
    fn a_cost_covers_what_is_held_and_never_more_than_the_window() {
        let credit = Credit { requests: 8, bytes: 1 << 20 };
        assert_eq!(credit.cost(10, 0, 0), 4096);
        assert_eq!(credit.cost(100, 8000, 9000), 17_100);
        assert_eq!(credit.cost(0, PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX), 1 << 20);
        assert_eq!(Credit::decode(&credit.encode()), Ok(credit));
        assert!(Credit::decode(&Credit { requests: 0, bytes: 1 }.encode()).is_err());
    }

    #[test]
    fn long_messages_are_clipped_between_characters() {
        let error = Error::new(Code::Internal, "ä".repeat(MESSAGE_BYTES_MAX));
        let back = decode_error(Code::Internal as u16, &encode_error(&error));
        assert_eq!(back.message().len(), MESSAGE_BYTES_MAX);
    }
}
