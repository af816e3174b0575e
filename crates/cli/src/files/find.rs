//! `kiln find`.

use super::show::{self, Shown};
use crate::failure::Outcome;
use crate::output;
use crate::path::{KilnPath, matches};
use crate::place::Place;
use crate::remote::{self, Remote};
use clap::ValueEnum;
use kiln_types::{Attr, FileKind, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to begin [default: kiln:/]
    #[arg(value_name = "KILN_PATH")]
    paths: Vec<OsString>,

    /// Only names that match: '*' stands for any letters, '?' for one
    #[arg(long, value_name = "PATTERN")]
    name: Option<OsString>,

    /// Only this kind
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<Kind>,

    /// How far down; 0: only the paths themselves
    #[arg(long, value_name = "N")]
    max_depth: Option<u32>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,

    /// End each path with a zero byte instead of a newline
    #[arg(long, conflicts_with = "json")]
    print0: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Files
    F,
    /// Directories
    D,
    /// Symlinks
    L,
    /// Named pipes
    P,
    /// Sockets
    S,
    /// Character devices
    C,
    /// Block devices
    B,
}

impl Kind {
    fn is(self, kind: FileKind) -> bool {
        kind == match self {
            Self::F => FileKind::File,
            Self::D => FileKind::Directory,
            Self::L => FileKind::Symlink,
            Self::P => FileKind::Fifo,
            Self::S => FileKind::Socket,
            Self::C => FileKind::CharDevice,
            Self::B => FileKind::BlockDevice,
        }
    }
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let mut paths = Vec::new();
    for path in &args.paths {
        paths.push(KilnPath::parse(path)?);
    }
    if paths.is_empty() {
        paths.push(KilnPath::root());
    }
    remote::run(place, async |remote| {
        let all = remote.look_all(&paths, false).await;
        for (path, attr) in paths.into_iter().zip(all) {
            walk(remote, path, attr?, args).await?;
        }
        Ok(())
    })
}

async fn walk(remote: &Remote, top: KilnPath, attr: Attr, args: &Args) -> Result<()> {
    let mut found = vec![(top, attr, 0)];
    while let Some((path, attr, depth)) = found.pop() {
        show(&path, &attr, args)?;
        if attr.kind != FileKind::Directory || args.max_depth.is_some_and(|most| depth >= most) {
            continue;
        }
        let below = remote.client.list_dir(&remote.caller, attr.inode).await?;
        // The last one is looked at first.
        let below = below.into_iter().rev();
        found.extend(below.map(|entry| (path.join(&entry.name), entry.attr, depth + 1)));
    }
    Ok(())
}

fn show(path: &KilnPath, attr: &Attr, args: &Args) -> Result<()> {
    let name = path.split().map_or(b"/".as_slice(), |(_, name)| name).to_vec();
    let kind = args.kind.is_none_or(|kind| kind.is(attr.kind));
    let named = args.name.as_ref().is_none_or(|pattern| matches(pattern.as_bytes(), &name));
    if !kind || !named {
        return Ok(());
    }
    if args.json {
        let shown = Shown::new(path.shown().as_bytes(), attr, None);
        return output::print_json_line(&shown);
    }
    let shown = path.shown();
    let mut line = match args.print0 {
        true => shown.as_bytes().to_vec(),
        false => show::name(shown.as_bytes()),
    };
    line.push(if args.print0 { 0 } else { b'\n' });
    output::print_bytes(&line)
}
