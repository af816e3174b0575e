//! Which processes use a mount.

use super::point::ask;
use kiln_env::Env;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// So many processes may hang while they are looked at before the others are left out.
const HANGING_MAX: usize = 4;

/// The processes that use something at or below `path`, as far as this user may see. What a link of
/// /proc says is read and never followed, so that a mount that does not answer does not matter. But the
/// kernel shows nothing of a process while it starts a program from such a mount: it is passed over.
pub async fn users(path: &Path, env: &Env) -> Vec<User> {
    let search = Arc::new(Search::new(path));
    for _ in 0..HANGING_MAX {
        let searched = ask(env, "processes", {
            let search = Arc::clone(&search);
            move || search.go_on()
        });
        match searched.await {
            Ok(()) => break,
            Err(error) => tracing::debug!(%error, "a user of a mount may not be known"),
        }
    }
    search.found.lock().values().cloned().collect()
}

type Look = fn(&Path, &Path) -> Option<&'static str>;

/// A search that another thread takes up where one hangs.
struct Search {
    path: PathBuf,
    steps: Mutex<VecDeque<(u32, Look)>>,
    found: Mutex<BTreeMap<u32, User>>,
}

impl Search {
    fn new(path: &Path) -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pids: Vec<u32> = pids.filter(|pid| *pid != std::process::id()).collect();
        let looks: [Look; 3] = [by_link, by_open_file, by_map];
        let steps = looks.iter().flat_map(|look| pids.iter().map(|pid| (*pid, *look)));
        let (path, steps) = (path.into(), Mutex::new(steps.collect()));
        Self { path, steps, found: Mutex::default() }
    }

    fn go_on(&self) {
        loop {
            // Not locked while it is looked.
            let next = self.steps.lock().pop_front();
            let Some((pid, look)) = next else { return };
            let known = self.found.lock().contains_key(&pid);
            let process = Path::new("/proc").join(pid.to_string());
            let how = (!known).then(|| look(&process, &self.path)).flatten();
            if let Some(how) = how {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                let user = User { pid, name: name.trim().into(), how };
                self.found.lock().insert(pid, user);
            }
        }
    }
}

fn leads_below(link: &Path, path: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to.starts_with(path))
}

fn by_link(process: &Path, path: &Path) -> Option<&'static str> {
    let links = [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")];
    let link = links.into_iter().find(|(name, _)| leads_below(&process.join(name), path));
    link.map(|(_, how)| how)
}

fn by_open_file(process: &Path, path: &Path) -> Option<&'static str> {
    let mut files = fs::read_dir(process.join("fd")).ok()?.flatten();
    files.any(|file| leads_below(&file.path(), path)).then_some("open file")
}

/// Lines of `RANGE RIGHTS OFFSET DEVICE INODE PATH`.
fn by_map(process: &Path, path: &Path) -> Option<&'static str> {
    let text = fs::read(process.join("maps")).unwrap_or_default();
    let mapped = text.split(|byte| *byte == b'\n').any(|line| {
        let at = line.iter().position(|byte| *byte == b'/');
        at.is_some_and(|at| Path::new(OsStr::from_bytes(&line[at..])).starts_with(path))
    });
    mapped.then_some("mapped file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_found_by_its_directory_and_its_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let users = || runtime.block_on(users(&path, &Env::real()));
        assert_eq!(users(), []);
        fs::write(path.join("f"), "x").unwrap();
        let mut by_directory = Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let file = fs::File::open(path.join("f")).unwrap();
        let mut by_file = Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap();
        let found = users();
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
