//! `mount.kiln`: what mount(8) calls for a line of /etc/fstab.
//!
//! `mount.kiln SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTION,..]`, where SPEC is `HOST:PORT[:/SUBTREE]` or a
//! cluster's directory on this machine, as `/var/lib/kiln[:/SUBTREE]`.

use super::{Args, How, Wanted, detach};
use crate::failure::{Failure, Outcome};
use crate::place::Place;
use clap::{Args as _, FromArgMatches};
use kiln_types::Error;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// The name under which this program is a helper.
const NAME: &str = "mount.kiln";

/// mount(8)'s exit codes.
const WRONG_USAGE: u8 = 1;
const FAILED: u8 = 32;

/// Whether this program was called as a helper of mount(8).
pub(crate) fn is_called() -> bool {
    let called = std::env::args_os().next().unwrap_or_default();
    Path::new(&called).file_name() == Some(OsStr::new(NAME))
}

/// Mounts what the arguments say.
pub(crate) fn run() -> ExitCode {
    let mount = || {
        let Some(line) = Line::parse(std::env::args_os().skip(1))? else { return Ok(()) };
        let (place, args) = line.meant()?;
        let wanted = Wanted::new(&place, &args, Some(line.spec))?;
        detach(&wanted, &args).map(drop)
    };
    match mount() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = failure.report();
            ExitCode::from(if failure.is_usage() { WRONG_USAGE } else { FAILED })
        }
    }
}

/// What mount(8) said.
struct Line {
    spec: String,
    dir: OsString,
    options: Vec<String>,
}

fn wrong(what: impl Into<String>) -> Failure {
    Failure::usage(Error::invalid(what).with_hint(
        "mount.kiln HOST:PORT:/SUBTREE DIR -o credential=FILE, or mount.kiln /CLUSTER/DIR DIR",
    ))
}

impl Line {
    /// `None` when nothing is to be done (-f).
    fn parse(arguments: impl Iterator<Item = OsString>) -> Outcome<Option<Self>> {
        let (mut places, mut options, mut fake) = (Vec::new(), Vec::new(), false);
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("-o") => {
                    let list = arguments.next().unwrap_or_default();
                    let list = list.to_str().ok_or_else(|| wrong("the options are no UTF-8"))?;
                    let given = list.split(',').filter(|option| !option.is_empty());
                    options.extend(given.map(String::from));
                }
                Some("-N" | "-t") => drop(arguments.next()),
                Some(flags) if flags.starts_with('-') && flags.len() > 1 => {
                    for flag in flags[1..].chars() {
                        match flag {
                            'f' => fake = true,
                            'r' => options.push("ro".into()),
                            's' | 'n' | 'v' | 'w' => {}
                            _ => return Err(wrong(format!("there is no option -{flag}"))),
                        }
                    }
                }
                _ => places.push(argument),
            }
        }
        let [spec, dir] = <[OsString; 2]>::try_from(places)
            .map_err(|places| wrong(format!("{} places instead of two", places.len())))?;
        let spec = spec.into_string().map_err(|_| wrong("what is to be mounted is no UTF-8"))?;
        Ok((!fake).then_some(Self { spec, dir, options }))
    }

    /// The cluster and the arguments of `kiln mount` that mean the same.
    fn meant(&self) -> Outcome<(Place, Args)> {
        let (cluster, subtree) = match self.spec.find(":/") {
            Some(at) => (&self.spec[..at], &self.spec[at + 1..]),
            None => (&self.spec[..], "/"),
        };
        let mut arguments = vec![OsString::from("mount"), "--subtree".into(), subtree.into()];
        let mut credential = None;
        for option in &self.options {
            if let Some(file) = option.strip_prefix("credential=") {
                credential = Some(file);
            } else {
                arguments.extend(in_our_words(option)?);
            }
        }
        let place = match (cluster.starts_with('/'), credential) {
            (true, None) => Place::of_dir(cluster.into()),
            (true, Some(_)) => {
                return Err(wrong("a cluster's directory needs no credential="));
            }
            (false, Some(file)) if cluster.contains(':') => {
                Place::elsewhere(cluster.into(), file.into())
            }
            (false, Some(_)) => return Err(wrong(format!("'{cluster}' is not HOST:PORT"))),
            (false, None) => {
                return Err(wrong(format!("the cluster at {cluster} needs credential=FILE")));
            }
        };
        let command = How::augment_args(clap::Command::new(NAME));
        let matches = command.try_get_matches_from(arguments);
        let how = matches.and_then(|matches| How::from_arg_matches(&matches)).map_err(|error| {
            let text = error.to_string();
            wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: "))
        })?;
        let path = (&self.dir).into();
        Ok((place, Args { path, foreground: false, background: false, how }))
    }
}

/// An option of a mount as options of `kiln mount`.
fn in_our_words(option: &str) -> Outcome<Vec<OsString>> {
    const WITH_VALUE: [(&str, &str); 7] = [
        ("io_timeout", "--io-timeout"),
        ("read_ahead", "--read-ahead"),
        ("write_back", "--write-back"),
        ("cache_for", "--cache-for"),
        ("metrics", "--metrics"),
        ("slow", "--slow"),
        ("log_file", "--log-file"),
    ];
    const FLAGS: [(&str, &str); 5] = [
        ("ro", "--read-only"),
        ("allow_other", "--allow-other"),
        ("suid", "--suid"),
        ("noexec", "--no-exec"),
        ("relaxed_reads", "--relaxed-reads"),
    ];
    /// What is so anyway, or meant for others.
    const NOTHING: [&str; 22] = [
        "rw",
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "nosuid",
        "exec",
        "dev",
        "nodev",
        "async",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "diratime",
        "nodiratime",
        "nouser",
        "silent",
        "loud",
        "nolazytime",
        "nostrictatime",
    ];
    if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
        return Ok(vec![flag.into()]);
    }
    if NOTHING.contains(&option) || option.starts_with("x-") || option.starts_with("comment=") {
        return Ok(Vec::new());
    }
    let known = option.split_once('=').and_then(|(name, value)| {
        let (_, flag) = WITH_VALUE.iter().find(|(known, _)| *known == name)?;
        Some(vec![flag.into(), value.into()])
    });
    known.ok_or_else(|| wrong(format!("the mount option '{option}' is not known")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn meant(line: &str) -> Result<(Place, Args), String> {
        let line = Line::parse(line.split(' ').map(OsString::from));
        let line = line.map_err(|failure| failure.error().message().to_string())?;
        let meant = line.ok_or("nothing to do")?.meant();
        meant.map_err(|failure| failure.error().message().to_string())
    }

    #[test]
    fn lines_of_fstab_mean_clusters_here_and_elsewhere() {
        let options = "rw,_netdev,x-systemd.automount,credential=/etc/c.toml,ro,io_timeout=hard";
        let (place, args) = meant(&format!("10.0.0.1:9000:/data /mnt -o {options}")).unwrap();
        assert_eq!(place, Place::elsewhere("10.0.0.1:9000".into(), "/etc/c.toml".into()));
        assert_eq!((args.path.as_path(), &args.how.subtree), (Path::new("/mnt"), &"/data".into()));
        assert!(args.how.read_only && args.how.io_timeout.0.is_none() && !args.how.suid);
        let (place, args) = meant("/var/lib/kiln /mnt -sn -o cache_for=5s,defaults").unwrap();
        assert_eq!(place, Place::of_dir("/var/lib/kiln".into()));
        assert_eq!(args.how.cache_for, Duration::from_secs(5));
        assert_eq!(meant("/c:/a/b /mnt").unwrap().1.how.subtree, "/a/b");
        assert_eq!(meant("/c /mnt -f").unwrap_err(), "nothing to do");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |line: &str| meant(line).unwrap_err();
        assert!(wrong("/c /mnt -o rw,compress=zstd").contains("'compress=zstd' is not known"));
        assert!(wrong("host:1:/ /mnt").contains("needs credential="));
        assert!(wrong("host /mnt -o credential=/c").contains("'host' is not HOST:PORT"));
        assert!(wrong("/c").contains("1 places instead of two"));
        assert!(wrong("/c /mnt -o io_timeout=soon").contains("'soon' is no duration"));
    }
}
