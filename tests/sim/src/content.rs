//! What a chunk holds, by who wrote it.

use std::ops::Range;

/// Bytes that a write puts down at once, so that each says whose it is.
const WORD: usize = 8;

/// The content of a chunk: each part is of one write, or zeros.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    /// Where each part ends, and the number of the write; 0 is zeros.
    parts: Vec<(u32, u32)>,
}

impl Content {
    pub(crate) fn len(&self) -> u32 {
        self.parts.last().map_or(0, |(end, _)| *end)
    }

    /// Bytes of one write alone.
    pub(crate) fn of(tag: u32, length: u32) -> Self {
        let mut content = Self::default();
        content.push(length, tag);
        content
    }

    pub(crate) fn cut(&self, length: u32) -> Self {
        let mut content = Self::default();
        for (end, tag) in &self.parts {
            content.push((*end).min(length), *tag);
        }
        content
    }

    pub(crate) fn write(&self, tag: u32, offset: u32, length: u32) -> Self {
        let mut content = self.cut(offset);
        content.push(offset, 0);
        content.push(offset + length, tag);
        for (end, tag) in &self.parts {
            content.push(*end, *tag);
        }
        content
    }

    pub(crate) fn zero(&self, offset: u32, length: u32) -> Self {
        let end = (offset + length).min(self.len());
        if offset < end { self.write(0, offset, end - offset) } else { self.clone() }
    }

    fn push(&mut self, end: u32, tag: u32) {
        if end <= self.len() {
            return;
        }
        match self.parts.last_mut() {
            Some(last) if last.1 == tag => last.0 = end,
            _ => self.parts.push((end, tag)),
        }
    }

    /// Whether a read of `length` bytes at `offset` that found `bytes` saw this.
    pub(crate) fn shows(&self, offset: u32, length: u32, bytes: &[u8]) -> bool {
        let there = self.len().saturating_sub(offset).min(length);
        if bytes.len() != there as usize {
            return false;
        }
        let mut at = offset;
        for (end, tag) in &self.parts {
            let end = (*end).min(offset + there);
            if end > at {
                let seen = &bytes[(at - offset) as usize..(end - offset) as usize];
                if !is_of(*tag, at, seen) {
                    return false;
                }
                at = end;
            }
        }
        true
    }
}

impl Content {
    /// Whether all is zeros of `length` bytes at `offset` that is not in `data`.
    pub(crate) fn stores_at_most(&self, offset: u32, length: u32, data: &[Range<u32>]) -> bool {
        let stored = |from: u32, to: u32| data.iter().any(|d| d.start <= from && to <= d.end);
        let mut start = 0;
        self.parts.iter().all(|(end, tag)| {
            let (from, to) = (start.max(offset), (*end).min(offset + length));
            start = *end;
            // A write may have begun or ended with zeros.
            let shown = |(at, byte)| byte == 0 || stored(at, at + 1);
            *tag == 0
                || from >= to
                || stored(from, to)
                || (from..to).zip(bytes_of(*tag, from..to)).all(shown)
        })
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut start = 0;
        f.write_str("[")?;
        for (end, tag) in &self.parts {
            let gap = if start > 0 { " " } else { "" };
            write!(f, "{gap}{start}..{end}:{tag}")?;
            start = *end;
        }
        f.write_str("]")
    }
}

/// The word `index` of what write `tag` puts down: half of it is the tag.
fn word(tag: u32, index: u32) -> [u8; WORD] {
    if tag == 0 {
        return [0; WORD];
    }
    let mixed = (u64::from(tag) << 32 | u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u64::from(tag) << 32 | mixed >> 32).to_le_bytes()
}

/// The bytes that write `tag` puts at `range` of a chunk.
pub(crate) fn bytes_of(tag: u32, range: Range<u32>) -> Vec<u8> {
    let word_bytes = WORD as u32;
    let words = range.start / word_bytes..range.end.div_ceil(word_bytes);
    let skipped = (range.start % word_bytes) as usize;
    let bytes = words.flat_map(|index| word(tag, index)).skip(skipped);
    bytes.take(range.len()).collect()
}

fn is_of(tag: u32, at: u32, seen: &[u8]) -> bool {
    let (mut at, mut seen) = (at as usize, seen);
    while !seen.is_empty() {
        let word = word(tag, (at / WORD) as u32);
        let part = &word[at % WORD..];
        let count = part.len().min(seen.len());
        if part[..count] != seen[..count] {
            return false;
        }
        (at, seen) = (at + count, &seen[count..]);
    }
    true
}

/// Whether anything that was read at `offset` may be of write `tag`.
pub(crate) fn has_part_of(tag: u32, offset: u32, bytes: &[u8]) -> bool {
    let first = (WORD - offset as usize % WORD).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let rest = (offset as usize + first..).step_by(WORD).zip(rest.chunks(WORD));
    let mut parts = std::iter::once((offset as usize, head)).chain(rest);
    parts.any(|(at, part)| !part.is_empty() && is_of(tag, at as u32, part))
}

/// Who wrote what was read at `offset`, as far as whole words tell, for messages.
pub(crate) fn describe(offset: u32, bytes: &[u8]) -> String {
    let mut content = Content::default();
    let skip = (offset as usize).next_multiple_of(WORD) - offset as usize;
    content.push(offset + skip as u32, u32::MAX);
    for (i, chunk) in bytes.get(skip..).unwrap_or_default().chunks_exact(WORD).enumerate() {
        let tag = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
        content.push(offset + (skip + (i + 1) * WORD) as u32, tag);
    }
    content.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_what_their_bytes_are() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let (mut content, mut bytes) = (Content::default(), Vec::new());
            for tag in 1..random.u32(2..12) {
                let (offset, length) = (random.u32(..60), random.u32(1..60));
                match random.u8(..4) {
                    0 => {
                        content = content.cut(offset);
                        bytes.truncate(offset as usize);
                    }
                    1 => {
                        content = Content::of(tag, length);
                        bytes = bytes_of(tag, 0..length);
                    }
                    _ => {
                        content = content.write(tag, offset, length);
                        let end = (offset + length) as usize;
                        bytes.resize(bytes.len().max(end), 0);
                        let new = bytes_of(tag, offset..offset + length);
                        bytes[offset as usize..end].copy_from_slice(&new);
                    }
                }
            }
            assert_eq!(content.len() as usize, bytes.len());
            let (offset, length) = (random.u32(..70), random.u32(1..70));
            let start = (offset as usize).min(bytes.len());
            let seen = &bytes[start..((offset + length) as usize).clamp(start, bytes.len())];
            assert!(content.shows(offset, length, seen), "{content}");
            let mut wrong = seen.to_vec();
            if let Some(byte) = wrong.last_mut() {
                *byte ^= 1;
                assert!(!content.shows(offset, length, &wrong));
            }
        }
    }
}
