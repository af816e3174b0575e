//! Pairs of a store as a file: to move them into another engine, and to keep them.
//!
//! A dump is a sequence of frames: a kind u8, the length u32 of what follows the head, and a CRC32C u32 of kind,
//! length and body. The first is the [`Head`]; then come pages of pairs, in order; the last says how many there were.
//! A dump without it was cut off, and goes on behind its last whole page.

use crate::{KEY_BYTES_MAX, VALUE_BYTES_MAX, successor};
use kiln_types::{Decoder, Encoder, Error, Result, Timestamp, crc32c};
use std::io::{self, ErrorKind, Read, Write};

const MAGIC: &[u8; 8] = b"kilndump";
const VERSION: u16 = 1;
const HEAD: u8 = 1;
const PAGE: u8 = 2;
const END: u8 = 3;
/// Kind, length and checksum.
const FRAME_HEAD_BYTES: usize = 9;
/// A page is closed when it has so many bytes.
const PAGE_BYTES: usize = 256 << 10;
const FRAME_BYTES_MAX: usize = PAGE_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX + 16;
const WHAT_BYTES_MAX: usize = 256;

/// What a dump is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Names this dump.
    pub id: u128,
    /// When it was begun.
    pub begun: Timestamp,
    /// What is in it, for people and for whoever reads it back.
    pub what: String,
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Writes a dump.
pub struct Writer<W> {
    to: W,
    page: Encoder,
    page_bytes: usize,
    last: Option<Vec<u8>>,
    pairs: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a dump.
    ///
    /// # Errors
    /// What writing reports, as do the others.
    pub fn begin(mut to: W, head: &Head) -> io::Result<Self> {
        let mut body = Encoder::new();
        body.raw(MAGIC).u16(VERSION).u128(head.id).u64(head.begun.0 as u64);
        body.bytes(head.what.as_bytes());
        write_frame(&mut to, HEAD, &body.finish())?;
        Ok(Self::go_on(to, None, 0))
    }

    /// Goes on with one whose whole pages end with the key `last` and have so many pairs; see [`Reader::whole`].
    pub fn go_on(to: W, last: Option<Vec<u8>>, pairs: u64) -> Self {
        Self { to, page: Encoder::new(), page_bytes: 0, last, pairs }
    }

    /// Adds a pair; its key comes behind those before.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.last.as_deref().is_some_and(|last| last >= key) {
            return Err(io::Error::other("keys that are not in order"));
        }
        self.page.bytes(key).bytes(value);
        self.page_bytes += 8 + key.len() + value.len();
        self.last = Some(key.to_vec());
        self.pairs += 1;
        if self.page_bytes >= PAGE_BYTES { self.end_page() } else { Ok(()) }
    }

    /// Writes what is left, and the end. How many pairs there are, and where they went.
    pub fn end(mut self) -> io::Result<(u64, W)> {
        self.end_page()?;
        let end = Encoder::new().u64(self.pairs).finish();
        write_frame(&mut self.to, END, &end)?;
        self.to.flush()?;
        Ok((self.pairs, self.to))
    }

    fn end_page(&mut self) -> io::Result<()> {
        let page = self.page.finish();
        match std::mem::take(&mut self.page_bytes) {
            0 => Ok(()),
            _ => write_frame(&mut self.to, PAGE, &page),
        }
    }
}

fn write_frame(to: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = (body.len() as u32).to_le_bytes();
    to.write_all(&[kind])?;
    to.write_all(&length)?;
    to.write_all(&checksum(kind, length, body).to_le_bytes())?;
    to.write_all(body)
}

fn checksum(kind: u8, length: [u8; 4], body: &[u8]) -> u32 {
    crc32c(&[&[kind], length.as_slice(), body].concat())
}

/// Reads a dump, and checks it as it goes.
pub struct Reader<R> {
    from: R,
    head: Head,
    /// Bytes of whole frames so far.
    at: u64,
    last: Option<Vec<u8>>,
    pairs: u64,
    is_ended: bool,
}

/// The whole part of a dump that was cut off, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its length in bytes: what is behind is no whole page.
    pub bytes: u64,
    /// The last key in it.
    pub last: Option<Vec<u8>>,
    /// How many pairs it has.
    pub pairs: u64,
    /// Whether the end is there.
    pub is_ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// `Invalid` for what is no dump, `Unsupported` for one of a later version, `Corrupt`, or `Local`.
    pub fn begin(from: R) -> Result<Self> {
        let head = Head { id: 0, begun: Timestamp(0), what: String::new() };
        let mut reader = Self { from, head, at: 0, last: None, pairs: 0, is_ended: false };
        let not_one = || Error::invalid("this file is no dump of a store");
        let frame = reader.frame().map_err(|error| match error.code() {
            kiln_types::Code::Corrupt => not_one(),
            _ => error,
        })?;
        let Some((HEAD, body)) = frame else { return Err(not_one()) };
        let mut fields = Decoder::new("head of a dump", &body);
        if fields.array()? != *MAGIC {
            return Err(not_one());
        }
        let version = fields.u16()?;
        if version > VERSION {
            let text = format!("a dump of version {version}; this build knows {VERSION}");
            let error = Error::new(kiln_types::Code::Unsupported, text);
            return Err(error.with_hint("use the build that wrote it, or a later one"));
        }
        let (id, begun) = (fields.u128()?, Timestamp(fields.u64()? as i64));
        let what = fields.bytes(WHAT_BYTES_MAX)?.to_vec();
        let what = String::from_utf8(what).map_err(|_| Error::corrupt("what a dump is of"))?;
        fields.finish()?;
        reader.head = Head { id, begun, what };
        Ok(reader)
    }

    /// What it is of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The next pairs; none at the end.
    ///
    /// # Errors
    /// `Corrupt` for what is damaged or cut off, or `Local`.
    pub fn page(&mut self) -> Result<Vec<Pair>> {
        if self.is_ended {
            return Ok(Vec::new());
        }
        match self.frame()? {
            Some((PAGE, body)) => self.pairs_of(&body),
            Some((END, body)) => {
                let mut fields = Decoder::new("end of a dump", &body);
                let pairs = fields.u64()?;
                fields.finish()?;
                if pairs != self.pairs {
                    return Err(self.damaged(&format!("{} of {pairs} pairs", self.pairs)));
                }
                self.is_ended = true;
                Ok(Vec::new())
            }
            Some((kind, _)) => Err(self.damaged(&format!("a frame of kind {kind}"))),
            None => Err(self.damaged("it was cut off")),
        }
    }

    /// Reads as far as it is whole.
    ///
    /// # Errors
    /// `Corrupt` when something in the middle is damaged, or `Local`.
    pub fn whole(mut self) -> Result<Whole> {
        loop {
            let before = self.at;
            match self.page() {
                Ok(page) if page.is_empty() => break,
                Ok(_) => {}
                // What was being written when it was cut off.
                Err(error) if error.code() == kiln_types::Code::Corrupt && self.is_at_end()? => {
                    self.at = before;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Whole { bytes: self.at, last: self.last, pairs: self.pairs, is_ended: self.is_ended })
    }

    fn is_at_end(&mut self) -> Result<bool> {
        let mut byte = [0];
        Ok(fill(&mut self.from, &mut byte).map_err(|error| Error::local("a dump", &error))? == 0)
    }

    fn pairs_of(&mut self, body: &[u8]) -> Result<Vec<Pair>> {
        let mut fields = Decoder::new("page of a dump", body);
        let mut pairs: Vec<Pair> = Vec::new();
        while fields.left() > 0 {
            let key = fields.bytes(KEY_BYTES_MAX)?;
            if self.last.as_deref().is_some_and(|last| last >= key) {
                return Err(self.damaged("keys that are not in order"));
            }
            self.last = Some(key.to_vec());
            pairs.push((key.to_vec(), fields.bytes(VALUE_BYTES_MAX)?.to_vec()));
        }
        if pairs.is_empty() {
            return Err(self.damaged("a page without pairs"));
        }
        self.pairs += pairs.len() as u64;
        Ok(pairs)
    }

    /// The next frame; `None` at the end of the file.
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let failed = |error| Error::local("read of a dump", &error);
        let mut head = [0; FRAME_HEAD_BYTES];
        match fill(&mut self.from, &mut head).map_err(failed)? {
            0 => return Ok(None),
            FRAME_HEAD_BYTES => {}
            _ => return Err(self.damaged("it was cut off")),
        }
        let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = [l0, l1, l2, l3];
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > FRAME_BYTES_MAX {
            return Err(self.damaged(&format!("a frame of {bytes} bytes")));
        }
        let mut body = vec![0; bytes];
        if fill(&mut self.from, &mut body).map_err(failed)? < bytes {
            return Err(self.damaged("it was cut off"));
        }
        if checksum(kind, length, &body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(self.damaged("a checksum that does not match"));
        }
        self.at += (FRAME_HEAD_BYTES + bytes) as u64;
        Ok(Some((kind, body)))
    }

    fn damaged(&self, what: &str) -> Error {
        Error::corrupt(format!("the dump is damaged at byte {}: {what}", self.at))
            .with_hint("take another copy of it, or make it again")
    }
}

/// Reads until `bytes` are full or there is no more; how many there were.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The keys behind those that are dumped.
pub fn rest(range: &crate::KeyRange, last: Option<&[u8]>) -> crate::KeyRange {
    match last {
        Some(last) => crate::KeyRange { start: successor(last), end: range.end.clone() },
        None => range.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::Code;

    fn head() -> Head {
        Head { id: 7, begun: Timestamp(-5), what: "a test".into() }
    }

    /// Pairs of several pages.
    fn pairs(count: u32) -> Vec<Pair> {
        let value = |at: u32| vec![at as u8; (at as usize * 977) % 3000];
        (0..count).map(|at| (at.to_be_bytes().to_vec(), value(at))).collect()
    }

    fn dump(pairs: &[Pair]) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), &head()).unwrap();
        pairs.iter().for_each(|(key, value)| writer.push(key, value).unwrap());
        writer.end().unwrap().1
    }

    fn read(bytes: &[u8]) -> Result<Vec<Pair>> {
        let (mut reader, mut all) = (Reader::begin(bytes)?, Vec::new());
        assert_eq!(*reader.head(), head());
        loop {
            match reader.page()? {
                page if page.is_empty() => return Ok(all),
                page => all.extend(page),
            }
        }
    }

    #[test]
    fn what_is_dumped_comes_back_and_damage_is_found() {
        for count in [0, 1, 700] {
            assert_eq!(read(&dump(&pairs(count))), Ok(pairs(count)));
        }
        let whole = dump(&pairs(700));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let mut damaged = whole.clone();
            let at = random.usize(0..damaged.len());
            damaged[at] ^= 1 << random.u8(0..8);
            let code = read(&damaged).expect_err("damage").code();
            assert!(matches!(code, Code::Corrupt | Code::Invalid), "byte {at}: {code:?}");
        }
    }

    #[test]
    fn one_that_was_cut_off_goes_on() {
        let (all, whole) = (pairs(700), dump(&pairs(700)));
        let head_bytes = dump(&[]).len() - FRAME_HEAD_BYTES - 8;
        let mut random = fastrand::Rng::with_seed(2);
        for cut in (0..60).map(|_| random.usize(head_bytes..whole.len())).chain([whole.len() - 1]) {
            let kept = &whole[..cut];
            assert_eq!(read(kept).expect_err("cut off").code(), Code::Corrupt);
            let found = Reader::begin(kept).unwrap().whole().unwrap();
            assert!(!found.is_ended && found.bytes as usize <= cut);
            let mut begun = whole[..found.bytes as usize].to_vec();
            let mut writer = Writer::go_on(&mut begun, found.last.clone(), found.pairs);
            for (key, value) in &all[found.pairs as usize..] {
                writer.push(key, value).unwrap();
            }
            writer.end().unwrap();
            assert_eq!(read(&begun), Ok(all.clone()), "cut at {cut}");
        }
        assert!(Reader::begin(&whole[..]).unwrap().whole().unwrap().is_ended);
        assert_eq!(Reader::begin(&whole[..5]).err().map(|error| error.code()), Some(Code::Invalid));
    }
}
