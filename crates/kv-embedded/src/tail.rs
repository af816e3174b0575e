//! The end of the journal after a power loss.
//!
//! One batch at a time is written and synced, so at most the last one may not be whole: the disk may have got any of
//! its sectors, and zeros are read in the place of the others. The tree takes some of these for damage and does not
//! open. So its end is looked at before: a batch that was never acknowledged is cut off, and what is damaged otherwise is
//! told as that, since it may have been acknowledged.
//!
//! Format: fjall 3.1, `journal/entry.rs`: a batch is a start (1, items u32, sequence number u64), items (2, type u8,
//! compression u8, keyspace u64, key length u16, value length u32, stored length u32, key, value) or clears (4, keyspace
//! u64), and an end (3, XXH3-64 of items and clears u64, magic).

use kiln_kv::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use kiln_types::{Context, Decoder, Error, Result};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];
/// What a disk writes whole.
const SECTOR: usize = 512;
/// A start and an end without anything between them, which nobody writes.
const EMPTY_BATCH: usize = 13 + 13;

/// Cuts off what was never acknowledged.
///
/// # Errors
/// `Corrupt` for damage elsewhere, or `Local`.
pub(crate) fn mend(tree: &Path) -> Result<()> {
    let Some(journal) = newest(tree)? else { return Ok(()) };
    let bytes = fs::read(&journal).context(journal.display())?;
    let end = whole_end(&bytes);
    let rest = &bytes[end..];
    if rest.is_empty() {
        return Ok(());
    }
    if !is_torn(&bytes, end) {
        let text = format!("{}: the journal is damaged at byte {end}", journal.display());
        return Err(Error::corrupt(text).with_hint("restore from a backup"));
    }
    let file = OpenOptions::new().write(true).open(&journal).context(journal.display())?;
    file.set_len(end as u64).and_then(|()| file.sync_all()).context(journal.display())?;
    let lost = rest.len();
    tracing::warn!(journal = %journal.display(), lost, "the end of the journal was never acknowledged, and is dropped");
    Ok(())
}

/// The journal that is written to.
fn newest(tree: &Path) -> Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    if !tree.try_exists().context(tree.display())? {
        return Ok(None);
    }
    for entry in fs::read_dir(tree).context(tree.display())? {
        let path = entry.context(tree.display())?.path();
        let is_journal = path.extension().is_some_and(|end| end == "jnl");
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| is_journal)
            && newest.as_ref().is_none_or(|(highest, _)| number > *highest)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the last whole batch ends.
fn whole_end(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Found::Whole(length) = look(&bytes[end..]) {
        end += length;
    }
    end
}

/// What is found where a batch should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// One of this length.
    Whole(usize),
    /// With more bytes it might be one.
    EndsEarly,
    Broken,
}

fn look(bytes: &[u8]) -> Found {
    match read(bytes) {
        Ok(Some(length)) => Found::Whole(length),
        Ok(None) => Found::Broken,
        Err(_) => Found::EndsEarly,
    }
}

/// The length of the batch that `bytes` begin with, if it is whole.
///
/// # Errors
/// `Corrupt` when they end before it does.
fn read(bytes: &[u8]) -> Result<Option<usize>> {
    let mut fields = Decoder::new("journal", bytes);
    if fields.u8()? != START {
        return Ok(None);
    }
    let (items, _) = (fields.u32()?, fields.u64()?);
    let begin = bytes.len() - fields.left();
    for _ in 0..items {
        match fields.u8()? {
            ITEM => {
                fields.raw(2 + 8)?;
                let (key, value) = (usize::from(fields.u16()?), fields.u32()? as usize);
                let is_stored_so = fields.u32()? as usize == value;
                if key > KEY_BYTES_MAX || value > VALUE_BYTES_MAX || !is_stored_so {
                    return Ok(None);
                }
                fields.raw(key + value)?;
            }
            CLEAR => drop(fields.raw(8)?),
            _ => return Ok(None),
        }
    }
    let end = bytes.len() - fields.left();
    let is_end = fields.u8()? == END;
    let is_sum = fields.u64()? == xxh3_64(&bytes[begin..end]);
    let is_whole = fields.array()? == MAGIC && is_end && is_sum;
    Ok(is_whole.then(|| bytes.len() - fields.left()))
}

/// Whether what begins at `end` looks like one batch of which not all got to the disk: it ends too early, or has a
/// sector, or what it has of one, without a byte in it; and nothing whole comes behind it.
fn is_torn(bytes: &[u8], end: usize) -> bool {
    let rest = &bytes[end..];
    let mut begins = (1..rest.len()).filter(|at| rest[*at] == START);
    if begins.any(|at| matches!(look(&rest[at..]), Found::Whole(length) if length > EMPTY_BATCH)) {
        return false;
    }
    let (first, others) = rest.split_at((SECTOR - end % SECTOR).min(rest.len()));
    let is_empty = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let ends_early = look(rest) == Found::EndsEarly && !rest.ends_with(&MAGIC);
    ends_early || rest.ends_with(&[0]) || is_empty(first) || others.chunks(SECTOR).any(is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch as the tree writes it.
    fn batch(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut items = Vec::new();
        for (key, value) in pairs {
            items.extend([ITEM, 0, 0]);
            items.extend(1u64.to_le_bytes());
            items.extend((key.len() as u16).to_le_bytes());
            items.extend((value.len() as u32).to_le_bytes());
            items.extend((value.len() as u32).to_le_bytes());
            items.extend(*key);
            items.extend(*value);
        }
        let count = (pairs.len() as u32).to_le_bytes();
        let head = [&[START][..], &count, &7u64.to_le_bytes()].concat();
        [&head[..], &items, &[END], &xxh3_64(&items).to_le_bytes(), &MAGIC].concat()
    }

    #[test]
    fn what_was_cut_off_is_told_from_what_is_damaged() {
        let first = batch(&[(b"a", b"1"), (b"b", &[9; 700])]);
        let last = batch(&[(b"c", &[7; 3000]), (b"d", b"")]);
        let whole = [&first[..], &last].concat();
        assert_eq!(whole_end(&whole), whole.len());
        for cut in first.len() + 1..whole.len() {
            assert_eq!(whole_end(&whole[..cut]), first.len());
            assert!(is_torn(&whole[..cut], first.len()), "cut at {cut}");
        }
        for sector in first.len().div_ceil(SECTOR)..whole.len() / SECTOR {
            let mut torn = whole.clone();
            torn[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
            assert_eq!(whole_end(&torn), first.len());
            assert!(is_torn(&torn, first.len()), "sector {sector}");
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..500 {
            let mut damaged = whole.clone();
            let at = random.usize(..whole.len());
            damaged[at] ^= 1 << random.u8(..8);
            // The start's sequence number is in no checksum.
            let end = whole_end(&damaged);
            assert!(end == whole.len() || !is_torn(&damaged, end), "byte {at}");
        }
    }
}
