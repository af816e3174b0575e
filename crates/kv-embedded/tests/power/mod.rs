//! The shim, and the disk that a power loss leaves.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: usize = 4096;

/// The compiled shim.
pub(crate) struct Shim {
    pub(crate) library: PathBuf,
}

impl Shim {
    /// Compiles the shim; `None`, said aloud, where there is no C compiler.
    pub(crate) fn build(directory: &Path) -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/powerloss.c");
        let library = directory.join("powerloss.so");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        match gcc.status() {
            Ok(status) => {
                assert!(status.success(), "gcc cannot compile the shim");
                Some(Self { library })
            }
            Err(error) => {
                println!("SKIPPED: power loss is not tested, gcc does not start: {error}");
                None
            }
        }
    }
}

/// What a power loss leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    /// Exactly what was synced.
    OnlySynced,
    /// Of each directory, its synced or its last entries; of each file, a mix of synced and last blocks.
    Mixed,
}

/// The entries of a directory: whether it is a directory, inode, name.
type Entries = Vec<(bool, u64, String)>;

struct Reconstruction<'a> {
    shadow: &'a Path,
    /// Where each inode is now.
    current: HashMap<u64, PathBuf>,
    left: Left,
    random: &'a mut fastrand::Rng,
}

/// Builds in `next` the disk that a power loss would have left of `root`.
pub(crate) fn reconstruct(
    shadow: &Path,
    root: &Path,
    next: &Path,
    left: Left,
    random: &mut fastrand::Rng,
) {
    let mut current = HashMap::new();
    index(root, &mut current);
    let mut work = Reconstruction { shadow, current, left, random };
    work.directory(fs::metadata(root).unwrap().ino(), next);
}

fn index(path: &Path, current: &mut HashMap<u64, PathBuf>) {
    current.insert(fs::metadata(path).unwrap().ino(), path.to_path_buf());
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            index(&entry.unwrap().path(), current);
        }
    }
}

impl Reconstruction<'_> {
    fn directory(&mut self, inode: u64, to: &Path) {
        fs::create_dir(to).unwrap();
        let entries = match self.takes_current() {
            true => self.current_entries(inode).unwrap_or_else(|| self.synced_entries(inode)),
            false => self.synced_entries(inode),
        };
        for (is_directory, inode, name) in entries {
            match is_directory {
                true => self.directory(inode, &to.join(name)),
                false => self.file(inode, &to.join(name)),
            }
        }
    }

    fn takes_current(&mut self) -> bool {
        matches!(self.left, Left::Mixed) && self.random.bool()
    }

    fn synced_entries(&self, inode: u64) -> Entries {
        let list = fs::read_to_string(self.shadow.join(format!("{inode}.dir")));
        let list = list.unwrap_or_default();
        let entry = |line: &str| {
            let mut parts = line.splitn(3, ' ');
            let is_directory = parts.next()? == "d";
            Some((is_directory, parts.next()?.parse().ok()?, parts.next()?.to_string()))
        };
        list.lines().map(|line| entry(line).unwrap()).collect()
    }

    fn current_entries(&self, inode: u64) -> Option<Entries> {
        let entries = fs::read_dir(self.current.get(&inode)?).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            (metadata.is_dir(), metadata.ino(), entry.file_name().into_string().unwrap())
        });
        Some(entries.collect())
    }

    fn file(&mut self, inode: u64, to: &Path) {
        let synced = self.shadow.join(format!("{inode}.data"));
        let synced = synced.exists().then(|| fs::File::open(synced).unwrap());
        let mixes = matches!(self.left, Left::Mixed);
        let last = self.current.get(&inode).filter(|_| mixes);
        let last = last.map(|path| fs::File::open(path).unwrap());
        let length = |file: &Option<fs::File>| {
            file.as_ref().map_or(0, |file| file.metadata().unwrap().len())
        };
        let end =
            if last.is_some() && self.random.bool() { length(&last) } else { length(&synced) };
        let file = fs::File::create(to).unwrap();
        file.set_len(end).unwrap();
        for at in (0..end).step_by(BLOCK) {
            let takes_last = last.is_some() && self.random.bool();
            let source = if takes_last { &last } else { &synced };
            let Some(source) = source else { continue };
            let mut block = [0; BLOCK];
            let size = usize::try_from(end - at).unwrap().min(BLOCK);
            let got = source.read_at(&mut block[..size], at).unwrap();
            if block[..got].iter().any(|byte| *byte != 0) {
                file.write_all_at(&block[..got], at).unwrap();
            }
        }
    }
}
