//! One supervisor for each cluster directory: an advisory lock that ends with its holder.

use kiln_env::Env;
use kiln_types::{Code, Context, Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The right to run a cluster; dropping it gives it up.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that is just being started has a copy of the descriptor until it runs its program:
        // closing ours would not give the lock up.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.join("run").join("lock")
}

/// How often and how long apart taking the lock is tried: whoever only looks at it holds it for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);

impl Lock {
    /// Takes the lock of the cluster directory `dir`.
    ///
    /// # Errors
    /// `Busy` when a supervisor has it.
    pub(crate) async fn take(dir: &Path, env: &Env) -> Result<Self> {
        let path = lock_path(dir);
        let run = dir.join("run");
        fs::create_dir_all(&run).context(run.display())?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .context(path.display())?;
        for _ in 0..TRIES {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    file.set_len(0)
                        .and_then(|()| writeln!(file, "{}", std::process::id()))
                        .context(path.display())?;
                    return Ok(Self { file });
                }
                Err(Errno::WOULDBLOCK) => env.sleep(PAUSE).await,
                Err(error) => return Err(std::io::Error::from(error)).context(path.display()),
            }
        }
        let pid = Self::holder(dir)?.map_or_else(|| "unknown".into(), |pid| pid.to_string());
        Err(Error::new(
            Code::Busy,
            format!("the cluster in {} is already running (pid {pid})", dir.display()),
        )
        .with_hint("kiln status shows it, kiln down stops it"))
    }

    /// The process that runs the cluster in `dir`; `None` when none does.
    ///
    /// # Errors
    /// `Local` when the lock cannot be looked at.
    pub fn holder(dir: &Path) -> Result<Option<u32>> {
        let path = lock_path(dir);
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.context(path.display())?,
        };
        // Readers share, so that they never hold each other up.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => {
                let text = fs::read_to_string(&path).context(path.display())?;
                text.trim().parse().map(Some).map_err(|_| {
                    Error::new(
                        Code::Busy,
                        format!("the cluster in {} is just starting", dir.display()),
                    )
                    .with_hint("try again in a moment")
                })
            }
            Err(error) => Err(std::io::Error::from(error)).context(path.display()),
        }
    }
}
