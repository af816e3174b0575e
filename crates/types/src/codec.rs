//! Little-endian encoding of fixed fields, for frames and records on disk.

use crate::{Error, Result};

/// Appends fields to a byte vector.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

/// Takes fields from a byte slice; every read is checked.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    what: &'static str,
}

macro_rules! integers {
    ($($name:ident: $type:ty),*) => {
        impl Encoder {
            $(
                #[doc = concat!("Appends a little-endian ", stringify!($type), ".")]
                pub fn $name(&mut self, value: $type) -> &mut Self {
                    self.bytes.extend_from_slice(&value.to_le_bytes());
                    self
                }
            )*
        }

        impl Decoder<'_> {
            $(
                #[doc = concat!("Takes a little-endian ", stringify!($type), ".")]
                ///
                /// # Errors
                /// `Corrupt` when the input ends first.
                pub fn $name(&mut self) -> Result<$type> {
                    Ok(<$type>::from_le_bytes(self.array()?))
                }
            )*
        }
    };
}

integers!(u8: u8, u16: u16, u32: u32, u64: u64, u128: u128);

impl Encoder {
    /// An empty encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends raw bytes, without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a u32 length and the bytes.
    ///
    /// # Panics
    /// When `bytes` is longer than u32 can say; callers bound their fields far below.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).expect("invariant: encoded fields are bounded");
        self.u32(length).raw(bytes)
    }

    /// What was encoded.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl<'a> Decoder<'a> {
    /// Decodes `bytes`; `what` names them in errors ("write request", "chunk record").
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    /// Takes `count` raw bytes.
    ///
    /// # Errors
    /// `Corrupt` when fewer are left.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.rest.len() {
            return Err(Error::corrupt(format!(
                "{}: {count} bytes expected, {} left",
                self.what,
                self.rest.len()
            )));
        }
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    /// Takes an array of N raw bytes.
    ///
    /// # Errors
    /// `Corrupt` when fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.raw(N)?.try_into().expect("invariant: raw returned N bytes"))
    }

    /// Takes a u32 length of at most `limit`, and that many bytes.
    ///
    /// # Errors
    /// `Corrupt` when the length is above the limit or above what is left.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8]> {
        let length = self.u32()? as usize;
        if length > limit {
            return Err(Error::corrupt(format!(
                "{}: a field of {length} bytes, at most {limit} allowed",
                self.what
            )));
        }
        self.raw(length)
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// `Corrupt` when bytes are left over.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::corrupt(format!("{}: {} bytes left over", self.what, self.rest.len())))
        }
    }
}
