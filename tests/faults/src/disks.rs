//! The disks that can be hurt: one that fails on demand, one on a small file system, one that rots.

use crate::faulty::{self, STORE, Switch};
use crate::shell;
use kiln_types::{Context, Result};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The server whose disk hangs, is slow and fails.
pub(crate) const FAULTY: &str = "storage-1";
/// The server whose disk lies on a small file system.
pub(crate) const SMALL: &str = "storage-2";
/// The server whose disk rots. It is one: the same chunk must not rot everywhere.
pub(crate) const ROTTING: &str = "storage-3";

/// A store of 1 GiB and a little more.
const SMALL_BYTES: u64 = 1400 << 20;
const BLOCK: u64 = 4096;

pub(crate) struct Disks {
    pub(crate) switch: Arc<Switch>,
    faulty: PathBuf,
    small: PathBuf,
    rotting: PathBuf,
}

impl Disks {
    /// Makes the disks of the cluster in `dir`, before its servers start.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let disk = |server: &str| dir.join(server).join("disk-1");
        let switch = faulty::mount(&disk(FAULTY), &dir.join(FAULTY).join("beneath"))?;
        let (small, image) = (disk(SMALL), dir.join(SMALL).join("image"));
        fs::create_dir_all(&small).context(small.display())?;
        File::create(&image).and_then(|file| file.set_len(SMALL_BYTES)).context(image.display())?;
        shell::run("mkfs.ext4", &format!("-q -F -m 0 {}", image.display()))?;
        shell::run("mount", &format!("-o loop {} {}", image.display(), small.display()))?;
        Ok(Self { switch, faulty: disk(FAULTY), small, rotting: disk(ROTTING).join(STORE) })
    }

    fn foreign(&self) -> PathBuf {
        self.small.join("foreign")
    }

    /// Another program takes all that is free on the small file system.
    pub(crate) fn fill(&self) -> Result<()> {
        let path = self.foreign();
        let file = File::create(&path).context(path.display())?;
        let mut end = 0;
        for step in [64 << 20, 4 << 20, 256 << 10, BLOCK] {
            while rustix::fs::fallocate(&file, FallocateFlags::empty(), end, step).is_ok() {
                end += step;
            }
        }
        Ok(())
    }

    /// It gives that back.
    pub(crate) fn free(&self) -> Result<()> {
        let path = self.foreign();
        if path.exists() { fs::remove_file(&path).context(path.display()) } else { Ok(()) }
    }

    /// Changes bytes in `count` blocks that hold something, and says where.
    pub(crate) fn rot(&self, count: usize, random: &mut fastrand::Rng) -> Result<Vec<u64>> {
        let shown = self.rotting.display();
        let file = OpenOptions::new().read(true).write(true).open(&self.rotting).context(&shown)?;
        let length = file.metadata().context(&shown)?.len();
        let mut hit = Vec::new();
        while hit.len() < count {
            let from = random.u64(..length);
            let data = rustix::fs::seek(&file, SeekFrom::Data(from));
            let Ok(data) = data else { continue };
            let mut block = [0; BLOCK as usize];
            let at = data / BLOCK * BLOCK;
            file.read_exact_at(&mut block, at).context(&shown)?;
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let byte = at + random.u64(..BLOCK);
            file.write_all_at(&[random.u8(..)], byte).context(&shown)?;
            hit.push(byte);
        }
        file.sync_data().context(&shown)?;
        Ok(hit)
    }

    /// Takes the mounts away, which otherwise go with this process.
    pub(crate) fn unmount(&self) -> Result<()> {
        for mount in [&self.faulty, &self.small] {
            shell::run("umount", &format!("--lazy {}", mount.display()))?;
        }
        Ok(())
    }

    /// Nothing is wrong any more.
    pub(crate) fn recover(&self) -> Result<()> {
        self.switch.set(faulty::Trouble::None);
        self.free()
    }
}
