//! Which processes use a mount.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its program's name.
    pub name: String,
    /// What it has there: "working directory", "open file", ..
    pub how: &'static str,
}

/// The processes that use something at or below `path`, as far as this user may see. What a link of
/// /proc says is read and never followed, so that a mount that does not answer does not matter.
pub fn users(path: &Path) -> Vec<User> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut users: Vec<_> =
        pids.filter(|pid| *pid != own).filter_map(|pid| look(pid, path)).collect();
    users.sort_by_key(|user| user.pid);
    users
}

fn look(pid: u32, path: &Path) -> Option<User> {
    let process = Path::new("/proc").join(pid.to_string());
    let below = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(path));
    let open_file = || {
        let files = fs::read_dir(process.join("fd")).ok()?;
        files.flatten().any(|file| below(&file.path())).then_some("open file")
    };
    let links = [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")];
    let link = links.into_iter().find(|(name, _)| below(&process.join(name)));
    let how = link
        .map(|(_, how)| how)
        .or_else(open_file)
        .or_else(|| maps(&process, path).then_some("mapped file"))?;
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    Some(User { pid, name: name.trim().into(), how })
}

/// Lines of `RANGE RIGHTS OFFSET DEVICE INODE PATH`.
fn maps(process: &Path, path: &Path) -> bool {
    let text = fs::read(process.join("maps")).unwrap_or_default();
    text.split(|byte| *byte == b'\n').any(|line| {
        let at = line.iter().position(|byte| *byte == b'/');
        at.is_some_and(|at| Path::new(std::ffi::OsStr::from_bytes(&line[at..])).starts_with(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_found_by_its_directory_and_its_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(users(&path), []);
        fs::write(path.join("f"), "x").unwrap();
        let mut by_directory = Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let file = fs::File::open(path.join("f")).unwrap();
        let mut by_file = Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap();
        let found = users(&path);
        let of = |pid: u32| found.iter().find(|user| user.pid == pid).cloned().unwrap();
        let (first, second) = (of(by_directory.id()), of(by_file.id()));
        for child in [&mut by_directory, &mut by_file] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!((first.name.as_str(), first.how), ("sleep", "working directory"));
        assert_eq!(second.how, "open file");
    }
}
