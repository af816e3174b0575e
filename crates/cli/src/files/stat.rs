//! `kiln stat`.

use super::show::{self, Shown};
use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote;
use kiln_types::{Attr, FileKind, Layout};
use serde::Serialize;
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files or directories
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,

    /// What a symlink leads to, not the symlink
    #[arg(short = 'L', long)]
    follow: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Details {
    #[serde(flatten)]
    shown: Shown,
    accessed: String,
    changed: String,
    created: String,
    truncate_epoch: u64,
    layout: Option<Layout>,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    remote::run(place, async |remote| {
        let mut json = Vec::new();
        let all = remote.look_all(&paths, args.follow).await;
        for (path, attr) in paths.iter().zip(all) {
            let attr = attr?;
            let target = match attr.kind {
                FileKind::Symlink => {
                    Some(remote.client.read_link(&remote.caller, attr.inode).await?)
                }
                _ => None,
            };
            let name = path.to_string();
            let details = details(name.as_bytes(), &attr, target.as_deref());
            if args.json {
                json.push(details);
            } else {
                output::print(&text(&details, &attr))?;
            }
        }
        if args.json {
            output::print_json(&json)?;
        }
        Ok(())
    })
}

fn details(name: &[u8], attr: &Attr, target: Option<&[u8]>) -> Details {
    Details {
        shown: Shown::new(name, attr, target),
        accessed: show::time(attr.atime, true),
        changed: show::time(attr.ctime, true),
        created: show::time(attr.btime, true),
        truncate_epoch: attr.epoch.0,
        layout: attr.layout,
    }
}

fn text(details: &Details, attr: &Attr) -> String {
    let shown = &details.shown;
    let arrow = shown.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
    // Of a directory, that of files yet to come.
    let layout = attr.layout.filter(|_| attr.kind == FileKind::File).map(|layout| {
        format!(
            "  Layout: chunks of {} over {} of chain table {} version {}\n",
            output::bytes(layout.chunk_bytes.into()),
            output::count(layout.stripe, "chain"),
            layout.table,
            layout.table_version
        )
    });
    format!(
        "  File: {}{arrow}\n  Size: {} bytes\n  Mode: {} ({})  Uid: {}  Gid: {}\n \
         Inode: {}  Links: {}\n{}Access: {}\nModify: {}\nChange: {}\n Birth: {}\n",
        shown.name,
        shown.length,
        shown.mode,
        show::mode(attr),
        shown.uid,
        shown.gid,
        shown.inode,
        shown.links,
        layout.unwrap_or_default(),
        details.accessed,
        shown.modified,
        details.changed,
        details.created,
    )
}
