//! What the figures were measured on.

use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// The machine and its state when the run began.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The file system of the raw directory.
    pub disk: String,
    /// Processes that ran or waited in the last minute, when the run began.
    pub load: f64,
}

/// Where a path is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The mount point.
    pub point: PathBuf,
    /// The kind of file system: "ext4", "fuse.kiln".
    pub kind: String,
    /// The device, as "major:minor".
    pub device: String,
}

impl Machine {
    pub(crate) fn look(raw_dir: &Path) -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map(|(_, value)| value.trim().to_string()).unwrap_or_default()
        };
        let memory = field(&text("/proc/meminfo"), "MemTotal");
        let kib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        let load = text("/proc/loadavg");
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&text("/proc/cpuinfo"), "model name"),
            memory_bytes: kib << 10,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_string(),
            disk: mounted(raw_dir).map(|mount| mount.kind).unwrap_or_default(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// Where `path` is mounted; `None` where that cannot be seen.
pub fn mounted(path: &Path) -> Option<Mounted> {
    let path = fs::canonicalize(path).ok()?;
    innermost(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
}

/// Later lines are mounted over earlier ones.
fn innermost(mountinfo: &str, path: &Path) -> Option<Mounted> {
    let mount = |line: &str| {
        let (before, behind) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, point) = (before.next()?.to_string(), before.nth(1)?.replace("\\040", " "));
        Some(Mounted { point: point.into(), kind: behind.split(' ').next()?.to_string(), device })
    };
    let around = |mount: &Mounted| path.starts_with(&mount.point);
    let all = mountinfo.lines().filter_map(mount).filter(around);
    all.max_by_key(|mount| mount.point.as_os_str().len())
}

/// Drops what the kernel has cached of names, attributes and content. Whether it may.
pub(crate) fn drop_caches() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let text = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                    2 1 0:5 / /m\\040n rw shared:1 - fuse.kiln kiln rw\n";
        let kind = |path| innermost(text, Path::new(path)).map(|mount| mount.kind);
        assert_eq!(kind("/m n/x").as_deref(), Some("fuse.kiln"));
        assert_eq!(kind("/m").as_deref(), Some("ext4"));
    }
}
