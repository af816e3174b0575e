//! `kiln ls`.

use super::show::{self, Shown};
use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_client::Entry;
use kiln_types::{FileKind, Result};
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to list [default: kiln:/]
    #[arg(value_name = "KILN_PATH")]
    paths: Vec<OsString>,

    /// Mode, links, owner, group, size, time of the last change (UTC), name
    #[arg(short, long)]
    long: bool,

    /// Also names that begin with '.'
    #[arg(short, long)]
    all: bool,

    /// A directory itself, not what is in it
    #[arg(short, long)]
    directory: bool,

    /// Sizes with units
    #[arg(short = 'H', long)]
    human: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
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
        let mut json = Vec::new();
        for (at, path) in paths.iter().enumerate() {
            let (entries, is_directory) = entries(remote, path, args).await?;
            let targets = targets(remote, &entries, args).await?;
            if args.json {
                let shown = entries.iter().zip(&targets);
                json.extend(shown.map(|(e, t)| Shown::new(&e.name, &e.attr, t.as_deref())));
                continue;
            }
            if is_directory && paths.len() > 1 {
                let gap = if at == 0 { "" } else { "\n" };
                output::print(&format!("{gap}{path}:\n"))?;
            }
            output::print_bytes(&listing(&entries, &targets, args))?;
        }
        if args.json {
            output::print_json(&json)?;
        }
        Ok(())
    })
}

/// What to list, and whether it is the content of a directory.
async fn entries(remote: &Remote, path: &KilnPath, args: &Args) -> Result<(Vec<Entry>, bool)> {
    // As ls: a symlink on the command line is followed unless it is itself what is shown.
    let attr = match remote.look(path, !args.long && !args.directory).await {
        // One that leads nowhere is shown itself.
        Err(_) if !args.long => remote.look(path, false).await?,
        attr => attr?,
    };
    if attr.kind != FileKind::Directory || args.directory {
        let name = path.split().map_or(b"/".to_vec(), |(_, name)| name.to_vec());
        return Ok((vec![Entry { name, attr }], false));
    }
    let mut entries = remote.client.list_dir(&remote.caller, attr.inode).await?;
    entries.retain(|entry| args.all || !entry.name.starts_with(b"."));
    Ok((entries, true))
}

/// Where the symlinks lead, when that is shown.
async fn targets(remote: &Remote, entries: &[Entry], args: &Args) -> Result<Vec<Option<Vec<u8>>>> {
    let mut targets = Vec::new();
    for entry in entries {
        let shown = entry.attr.kind == FileKind::Symlink && (args.long || args.json);
        targets.push(match shown {
            true => Some(remote.client.read_link(&remote.caller, entry.attr.inode).await?),
            false => None,
        });
    }
    Ok(targets)
}

fn listing(entries: &[Entry], targets: &[Option<Vec<u8>>], args: &Args) -> Vec<u8> {
    let mut out = Vec::new();
    let size = |entry: &Entry| match args.human {
        true => output::bytes(entry.attr.length),
        false => entry.attr.length.to_string(),
    };
    let width = |text: fn(&Entry) -> String| entries.iter().map(|e| text(e).len()).max();
    let links = width(|entry| entry.attr.links.to_string()).unwrap_or(0);
    let uid = width(|entry| entry.attr.uid.to_string()).unwrap_or(0);
    let gid = width(|entry| entry.attr.gid.to_string()).unwrap_or(0);
    let bytes = entries.iter().map(|entry| size(entry).len()).max().unwrap_or(0);
    for (entry, target) in entries.iter().zip(targets) {
        if args.long {
            let attr = &entry.attr;
            let line = format!(
                "{} {:>links$} {:>uid$} {:>gid$} {:>bytes$} {} ",
                show::mode(attr),
                attr.links,
                attr.uid,
                attr.gid,
                size(entry),
                show::time(attr.mtime, false),
            );
            out.extend_from_slice(line.as_bytes());
        }
        out.extend(show::name(&entry.name));
        if let Some(target) = target {
            out.extend_from_slice(b" -> ");
            out.extend(show::name(target));
        }
        out.push(b'\n');
    }
    out
}
