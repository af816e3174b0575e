//! What is written: blocks that say who wrote them, and of which no part can be another's unnoticed.

/// Which block of what; no two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    /// The file, and the generation of its content.
    pub(crate) file: u32,
    pub(crate) generation: u32,
    pub(crate) block: u64,
}

/// What a reader found in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing was ever written.
    Zeros,
    /// All of this write.
    Whole { writer: u64, sequence: u64 },
    /// Neither: what is wrong.
    Wrong(String),
}

const WORD: usize = 8;
const MAGIC: u64 = 0x6b69_6c6e_666c_7473;
const HEAD: usize = 6;

/// The block `id` of `length` bytes as `writer` writes it for the `sequence`th time.
pub(crate) fn make(id: Id, writer: u64, sequence: u64, length: usize) -> Vec<u8> {
    (0..length / WORD).flat_map(|at| word(id, writer, sequence, at).to_le_bytes()).collect()
}

/// A head of six words that says everything, and then words that follow from it and their place.
fn word(id: Id, writer: u64, sequence: u64, at: usize) -> u64 {
    match at {
        0 => MAGIC,
        1 => u64::from(id.file),
        2 => u64::from(id.generation),
        3 => id.block,
        4 => writer,
        5 => sequence,
        at => {
            let named = id.block << 40 ^ u64::from(id.file) << 20 ^ u64::from(id.generation);
            mix(named ^ mix(sequence << 24 ^ writer << 16 ^ at as u64))
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Looks at what was read in the place of block `id`.
pub(crate) fn look(id: Id, bytes: &[u8]) -> Found {
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Zeros;
    }
    let words: Vec<_> = bytes
        .chunks_exact(WORD)
        .map(|word| word.try_into().map_or(0, u64::from_le_bytes))
        .collect();
    let [magic, file, generation, block, writer, sequence] = words[..HEAD] else {
        return Found::Wrong("too short".into());
    };
    if magic != MAGIC {
        return Found::Wrong(format!("foreign data that begins with {:02x?}", &bytes[..16]));
    }
    if (file, generation, block) != (id.file.into(), id.generation.into(), id.block) {
        return Found::Wrong(format!(
            "of another place: file {file} generation {generation} block {block}, written by {writer} \
             as {sequence}"
        ));
    }
    let differs = |at: &usize| words[*at] != word(id, writer, sequence, *at);
    match (0..words.len()).find(differs) {
        None => Found::Whole { writer, sequence },
        Some(at) => Found::Wrong(format!(
            "torn: begins as write {sequence} of writer {writer}, differs from byte {} on",
            at * WORD
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_a_foreign_and_an_old_block_are_told_apart() {
        let id = Id { file: 3, generation: 1, block: 9 };
        let (old, new) = (make(id, 7, 1, 4096), make(id, 7, 2, 4096));
        assert_eq!(look(id, &old), Found::Whole { writer: 7, sequence: 1 });
        assert_eq!(look(id, &[0; 4096]), Found::Zeros);
        let torn = [&new[..512], &old[512..]].concat();
        assert!(matches!(look(id, &torn), Found::Wrong(why) if why.contains("from byte 512")));
        let elsewhere = look(Id { block: 8, ..id }, &new);
        assert!(matches!(elsewhere, Found::Wrong(why) if why.contains("another place")));
        assert!(matches!(look(id, &[1; 4096]), Found::Wrong(why) if why.contains("foreign")));
    }
}
