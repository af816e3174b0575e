//! Which cluster a command means, and how to name this program in what it says.

use crate::failure::{Failure, Outcome};
use clap::Args;
use etcetera::{AppStrategy, AppStrategyArgs, choose_app_strategy};
use kiln_types::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Which cluster: a directory on this machine, or an address and a credential.
#[derive(Clone, Debug, PartialEq, Eq, Args, Default)]
#[command(next_help_heading = "Which cluster")]
pub(crate) struct Place {
    /// The directory of a cluster on this machine, as 'kiln up' was given it [env: KILN_DIR]
    /// [default: kiln in your data directory, ~/.local/share/kiln]
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "cluster")]
    dir: Option<PathBuf>,

    /// A manager of a cluster elsewhere, or several with commas between them [env: KILN_CLUSTER]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    cluster: Option<String>,

    /// The file of the credential for --cluster, mode 0600 [env: KILN_CREDENTIAL]
    #[arg(long, global = true, value_name = "FILE")]
    credential: Option<PathBuf>,
}

/// The cluster that was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// One on this machine.
    Dir(PathBuf),
    /// One elsewhere: the manager's address and a credential file.
    Elsewhere(String, PathBuf),
}

impl Place {
    /// A cluster on this machine.
    pub(crate) fn of_dir(dir: PathBuf) -> Self {
        Self { dir: Some(dir), ..Self::default() }
    }

    /// A cluster elsewhere.
    pub(crate) fn elsewhere(cluster: String, credential: PathBuf) -> Self {
        Self { cluster: Some(cluster), credential: Some(credential), ..Self::default() }
    }

    /// The cluster that was meant: by a flag, else by the environment, else the default directory.
    pub(crate) fn meant(&self) -> Outcome<Meant> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        self.resolve(variable)
    }

    /// As [`Self::meant`], for what only makes sense on the cluster's own machine.
    pub(crate) fn local(&self) -> Outcome<PathBuf> {
        match self.meant()? {
            Meant::Dir(dir) => Ok(dir),
            Meant::Elsewhere(address, _) if self.dir.is_none() && self.cluster.is_none() => {
                Err(Failure::usage(
                    Error::invalid(format!(
                        "this command is for a cluster on this machine, and KILN_CLUSTER is {address}"
                    ))
                    .with_hint("name the directory with --dir, or unset KILN_CLUSTER"),
                ))
            }
            Meant::Elsewhere(..) => Err(Failure::usage(
                Error::invalid("this command is for a cluster on this machine, not for --cluster")
                    .with_hint("name the directory with --dir, or nothing for the default one"),
            )),
        }
    }

    fn resolve(&self, variable: impl Fn(&str) -> Option<OsString>) -> Outcome<Meant> {
        if let Some(dir) = &self.dir {
            return Ok(Meant::Dir(dir.clone()));
        }
        let text = |value: OsString| value.to_string_lossy().into_owned();
        let by_variable = || variable("KILN_CLUSTER").map(text);
        if let Some(cluster) = self.cluster.clone().or_else(by_variable) {
            let credential = self.credential.clone();
            let credential = credential.or_else(|| variable("KILN_CREDENTIAL").map(PathBuf::from));
            return match credential {
                Some(credential) => Ok(Meant::Elsewhere(cluster, credential)),
                None => Err(Failure::usage(
                    Error::invalid(format!("the cluster at {cluster} asks for a credential"))
                        .with_hint(
                            "name its file with --credential FILE or KILN_CREDENTIAL; \
                             'kiln up' makes one at DIR/credentials/admin.toml",
                        ),
                )),
            };
        }
        match variable("KILN_DIR") {
            Some(dir) => Ok(Meant::Dir(dir.into())),
            None => default_dir().map(Meant::Dir),
        }
    }

    /// The options that name the same cluster again, for a command line to paste; "" for the default.
    pub(crate) fn as_options(&self, dir: &Path) -> String {
        match (&self.dir, default_dir()) {
            (Some(_), Ok(default)) if default != dir => format!(" --dir {}", quoted(dir)),
            _ => String::new(),
        }
    }
}

fn default_dir() -> Outcome<PathBuf> {
    let app = AppStrategyArgs {
        top_level_domain: String::new(),
        author: String::new(),
        app_name: "kiln".into(),
    };
    choose_app_strategy(app).map(|strategy| strategy.data_dir()).map_err(|error| {
        Failure::usage(
            Error::invalid(format!("no data directory for this user: {error}"))
                .with_hint("name the cluster's directory with --dir or KILN_DIR"),
        )
    })
}

/// This program as it was invoked, so that what is printed can be pasted.
pub(crate) fn invoked_as() -> String {
    let invoked = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if invoked.components().count() > 1 && invoked.exists() {
        return quoted(&invoked);
    }
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(&invoked).is_file()));
    match (on_path, std::env::current_exe()) {
        (false, Ok(program)) => quoted(&program),
        _ => quoted(&invoked),
    }
}

/// A path as a shell reads it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(place: &Place, variables: &[(&str, &str)]) -> Result<Meant, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        place.resolve(variable).map_err(|failure| failure.error().to_string())
    }

    #[test]
    fn a_flag_beats_the_environment_and_it_beats_the_default() {
        let all = [("KILN_DIR", "/e"), ("KILN_CLUSTER", "h:1"), ("KILN_CREDENTIAL", "/c")];
        let none = Place::default();
        let by_dir = Place { dir: Some("/f".into()), ..Place::default() };
        let by_cluster = Place { cluster: Some("h:2".into()), ..Place::default() };
        assert_eq!(resolve(&by_dir, &all), Ok(Meant::Dir("/f".into())));
        assert_eq!(resolve(&none, &all), Ok(Meant::Elsewhere("h:1".into(), "/c".into())));
        assert_eq!(resolve(&none, &all[..1]), Ok(Meant::Dir("/e".into())));
        assert_eq!(resolve(&by_cluster, &all), Ok(Meant::Elsewhere("h:2".into(), "/c".into())));
        assert!(resolve(&by_cluster, &[]).unwrap_err().contains("--credential"));
        assert!(matches!(resolve(&none, &[]), Ok(Meant::Dir(dir)) if dir.ends_with("kiln")));
    }

    #[test]
    fn what_is_printed_can_be_pasted() {
        assert_eq!(quoted(Path::new("/a/b-1.c")), "/a/b-1.c");
        assert_eq!(quoted(Path::new("/my data/it's")), r"'/my data/it'\''s'");
        assert_eq!(quoted(Path::new("$HOME")), "'$HOME'");
    }
}
