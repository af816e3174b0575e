//! Keys made of fields whose bytes sort as the fields do.

use kiln_types::{Error, Result};

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const FIELD_END: u8 = 0x01;

/// Builds a key. Numbers are big-endian; [`bytes`](Self::bytes) may be followed by more fields,
/// [`rest`](Self::rest) ends the key.
///
/// ```
/// # use kiln_kv::{KeyReader, KeyWriter};
/// let key = KeyWriter::new().u8(b'd').u64(7).bytes(b"name").u32(1).finish();
/// let mut fields = KeyReader::new(&key);
/// assert_eq!((fields.u8(), fields.u64()), (Ok(b'd'), Ok(7)));
/// assert_eq!((fields.bytes(), fields.u32()), (Ok(b"name".to_vec()), Ok(1)));
/// assert_eq!(fields.finish(), Ok(()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct KeyWriter {
    key: Vec<u8>,
}

/// Takes the fields of a key apart; every read is checked.
#[derive(Clone, Debug)]
pub struct KeyReader<'a> {
    rest: &'a [u8],
}

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {
        impl KeyWriter {
            $(
                #[doc = concat!("Appends a ", stringify!($type), ".")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.key.extend_from_slice(&value.to_be_bytes());
                    self
                }
            )*
        }

        impl KeyReader<'_> {
            $(
                #[doc = concat!("Takes a ", stringify!($type), ".")]
                ///
                /// # Errors
                /// `Corrupt` when the key ends first.
                pub fn $name(&mut self) -> Result<$type> {
                    let (field, rest) = self.rest.split_first_chunk().ok_or_else(ends_early)?;
                    self.rest = rest;
                    Ok(<$type>::from_be_bytes(*field))
                }
            )*
        }
    };
}

numbers!(u8: u8, u16: u16, u32: u32, u64: u64, u128: u128);

impl KeyWriter {
    /// An empty key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes of any length, escaped and ended, so that more fields can follow.
    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        for byte in value {
            self.key.push(*byte);
            if *byte == ESCAPE {
                self.key.push(ESCAPED_ZERO);
            }
        }
        self.key.extend_from_slice(&[ESCAPE, FIELD_END]);
        self
    }

    /// Appends the last field as it is.
    #[must_use]
    pub fn rest(mut self, value: &[u8]) -> Self {
        self.key.extend_from_slice(value);
        self
    }

    /// The key.
    pub fn finish(self) -> Vec<u8> {
        self.key
    }
}

impl<'a> KeyReader<'a> {
    /// Begins with the first field of `key`.
    pub fn new(key: &'a [u8]) -> Self {
        Self { rest: key }
    }

    /// Takes a field that [`KeyWriter::bytes`] wrote.
    ///
    /// # Errors
    /// `Corrupt` when the key ends first or holds an unknown escape.
    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        loop {
            match self.u8()? {
                ESCAPE => match self.u8()? {
                    FIELD_END => return Ok(value),
                    ESCAPED_ZERO => value.push(0),
                    _ => return Err(Error::corrupt("an unknown escape in a key")),
                },
                byte => value.push(byte),
            }
        }
    }

    /// Takes everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `Corrupt` when something is.
    pub fn finish(self) -> Result<()> {
        match self.rest {
            [] => Ok(()),
            rest => Err(Error::corrupt(format!("{} more bytes in a key", rest.len()))),
        }
    }
}

fn ends_early() -> Error {
    Error::corrupt("a key ends within a field")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Fields = (u8, Vec<u8>, u64, Vec<u8>);

    fn key(fields: &Fields) -> Vec<u8> {
        KeyWriter::new().u8(fields.0).bytes(&fields.1).u64(fields.2).rest(&fields.3).finish()
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_fields_and_come_back(mut all: Vec<Fields>) {
            all.sort();
            let keys: Vec<_> = all.iter().map(key).collect();
            prop_assert!(keys.is_sorted());
            for (fields, key) in all.iter().zip(&keys) {
                let mut reader = KeyReader::new(key);
                prop_assert_eq!(reader.u8()?, fields.0);
                prop_assert_eq!(&reader.bytes()?, &fields.1);
                prop_assert_eq!(reader.u64()?, fields.2);
                prop_assert_eq!(reader.rest(), fields.3.as_slice());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(key: Vec<u8>) {
            let mut reader = KeyReader::new(&key);
            while reader.bytes().is_ok() {}
            let _ = reader.u128();
        }
    }
}
