//! `kiln trash`.

use crate::failure::{Failure, Outcome};
use crate::files::show;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::quota::name_of;
use crate::remote::{self, Remote};
use clap::{Args as ClapArgs, Subcommand};
use kiln_types::{Code, Context, Error, FileKind, InodeId, Result, Timestamp, Trash, TrashItem};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::time::Duration;

/// Keep what is removed for a while: restore it, or let it go for good
///
/// Without a command: how the trash is set, and how much is in it. While it is on, files, symlinks and directories that
/// lose their last name go there, whoever removes or replaces them ('kiln rm --now' passes by it), and go for good
/// when they are older than the time that is set. Until then they count for quotas and take space as before.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Action>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say for how long, or that nothing goes to the trash any more (root only)
    ///
    /// It counts for what is in the trash already, too. With 'off' that stays for as long as was said last.
    Keep {
        /// A time such as 12h or 7d, or off
        #[arg(value_name = "TIME|off", value_parser = parse_keep)]
        keep: Keep,
    },
    /// Show what is in the trash, the oldest first: what this user removed or owns
    List {
        /// Only what was removed from here or below
        #[arg(value_name = "KILN_PATH")]
        path: Option<OsString>,

        /// What all users removed (root only)
        #[arg(long)]
        all: bool,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put something back to where it was
    Restore {
        /// Numbers as 'kiln trash list' shows them
        #[arg(value_name = "ITEM", required = true)]
        items: Vec<u64>,

        /// Put it there: into that directory, or under that name
        #[arg(long, value_name = "KILN_PATH")]
        to: Option<OsString>,

        /// Also what was removed from a directory before it, as 'rm -r' on a mount does, and from those in it
        #[arg(short, long)]
        recursive: bool,

        /// With --recursive: of that only what was removed less than so long ago
        #[arg(
            long, value_name = "TIME", requires = "recursive",
            value_parser = kiln_config::parse_duration
        )]
        newer_than: Option<Duration>,
    },
    /// Let things go for good, now
    Empty {
        /// Numbers as 'kiln trash list' shows them
        #[arg(value_name = "ITEM")]
        items: Vec<u64>,

        /// Everything of this user (for root: of all users) that was removed so long ago
        #[arg(
            long, value_name = "TIME", conflicts_with = "items",
            value_parser = kiln_config::parse_duration
        )]
        older_than: Option<Duration>,

        /// Everything of this user (for root: of all users)
        #[arg(long, conflicts_with_all = ["items", "older_than"])]
        all: bool,
    },
}

/// How long; `None`: off.
#[derive(Clone, Copy, Debug)]
struct Keep(Option<Duration>);

fn parse_keep(text: &str) -> Result<Keep> {
    let time = || kiln_config::parse_duration(text).ok();
    let wrong = || Error::invalid(format!("'{text}' is neither off nor a time such as 12h or 7d"));
    Ok(Keep(if text == "off" { None } else { Some(time().ok_or_else(wrong)?) }))
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    remote::run(place, async |remote| {
        let (client, caller) = (&remote.client, &remote.caller);
        match &args.command {
            None => show_state(&client.trash(caller).await?, args.json)?,
            Some(Action::Keep { keep: Keep(keep) }) => client.set_trash(caller, *keep).await?,
            Some(Action::List { path, all, json }) => {
                list(remote, path.as_ref(), *all, *json).await?;
            }
            Some(Action::Restore { items, to, recursive, newer_than }) => {
                restore(remote, items, to.as_ref()).await?;
                if *recursive {
                    restore_below(remote, items, *newer_than).await?;
                }
            }
            Some(Action::Empty { items, older_than, all }) if items.is_empty() => {
                if older_than.is_none() && !all {
                    let hint = "kiln trash empty ITEM, --older-than TIME, or --all";
                    return Err(remote::usage("empty the trash of what?", hint));
                }
                empty(remote, older_than.unwrap_or_default()).await?;
            }
            Some(Action::Empty { items, .. }) => {
                for item in items.iter().copied().map(InodeId) {
                    client.empty_trash(caller, &[item]).await?;
                }
            }
        }
        Ok(())
    })
}

/// How the trash is set, in JSON.
#[derive(Serialize)]
struct State {
    on: bool,
    keep_seconds: f64,
    items: u64,
    /// In files; what is in directories is not counted.
    bytes: u64,
}

fn show_state(trash: &Trash, json: bool) -> Result<()> {
    let Trash { on, keep, usage } = *trash;
    if json {
        let (items, bytes) = (usage.inodes, usage.bytes);
        return output::print_json(&State { on, keep_seconds: keep.as_secs_f64(), items, bytes });
    }
    let time = kiln_config::format_duration(keep);
    let setting = match on {
        true => format!("What is removed stays in the trash for {time}."),
        false => "There is no trash: what is removed is gone at once.".to_owned(),
    };
    let content = match usage.inodes {
        0 => "The trash is empty.".to_owned(),
        items => {
            let items = if items == 1 { "1 item".to_owned() } else { format!("{items} items") };
            let stays = if on { String::new() } else { format!(", until they are {time} old") };
            let bytes = output::bytes(usage.bytes);
            format!("It has {items}{stays}: {bytes} in files, and what is in directories.")
        }
    };
    let is_bare = !on && usage.inodes == 0;
    output::print(&if is_bare { format!("{setting}\n") } else { format!("{setting}\n{content}\n") })
}

/// An item in JSON.
#[derive(Serialize)]
struct Shown {
    item: u64,
    kind: FileKind,
    removed: String,
    expires: String,
    /// Who removed it.
    by: u32,
    /// Whose it is.
    uid: u32,
    length: u64,
    name: String,
    /// Absent: the directory that it was in is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

impl Shown {
    fn of(item: &TrashItem) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            item: item.attr.inode.0,
            kind: item.attr.kind,
            removed: show::time(item.removed, true),
            expires: show::time(item.expires, true),
            by: item.by,
            uid: item.attr.uid,
            length: item.attr.length,
            name: text(&item.name),
            path: item.path().as_deref().map(text),
        }
    }
}

async fn list(remote: &Remote, below: Option<&OsString>, all: bool, json: bool) -> Outcome {
    let below = below.map(|path| KilnPath::parse(path)).transpose()?;
    let mut items = Vec::new();
    let mut listing = remote.client.trash_items(&remote.caller, all);
    while let Some(mut page) = listing.next().await? {
        items.append(&mut page);
    }
    find_paths(&mut items);
    items.retain(|item| below.as_ref().is_none_or(|below| is_below(item, below)));
    if json {
        output::print_json(&items.iter().map(Shown::of).collect::<Vec<_>>())?;
    } else {
        print_table(&items, remote.env.wall())?;
    }
    Ok(())
}

/// What was in a directory that is in the trash itself gets the path that it had there.
fn find_paths(items: &mut [TrashItem]) {
    let mut paths: HashMap<InodeId, Vec<u8>> = HashMap::new();
    // A directory goes after what was in it.
    for item in items.iter_mut().rev() {
        item.directory = item.directory.take().or_else(|| paths.get(&item.parent).cloned());
        if let (FileKind::Directory, Some(path)) = (item.attr.kind, item.path()) {
            paths.insert(item.attr.inode, path);
        }
    }
}

fn is_below(item: &TrashItem, below: &KilnPath) -> bool {
    let top = below.as_bytes().strip_suffix(b"/").unwrap_or(below.as_bytes());
    let rest = item.path().and_then(|path| path.strip_prefix(top).map(<[u8]>::to_vec));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn print_table(items: &[TrashItem], now: Timestamp) -> Result<()> {
    let mut users = HashMap::new();
    let mut row = |item: &TrashItem| {
        let by = users.entry(item.by).or_insert_with(|| name_of("passwd", item.by)).clone();
        let size = match item.attr.kind {
            FileKind::Directory => "directory".to_owned(),
            _ => output::bytes(item.attr.length),
        };
        let path = match item.path() {
            Some(path) => format!("kiln:{}", path.escape_ascii()),
            None => format!("{} (its directory is gone)", item.name.escape_ascii()),
        };
        let number = item.attr.inode.to_string();
        vec![number, show::time(item.removed, false), left(item, now), by, size, path]
    };
    let header = ["ITEM", "REMOVED", "GOES IN", "BY", "SIZE", "PATH"];
    let rows = items.iter().map(&mut row).collect();
    output::print(&output::table(&header, &[0, 4], rows))
}

/// The time until an item goes for good: two units of it.
fn left(item: &TrashItem, now: Timestamp) -> String {
    let left = u64::try_from(item.expires.0.saturating_sub(now.0)).unwrap_or(0);
    let left = humantime::format_duration(Duration::from_secs(left / 1_000_000_000)).to_string();
    left.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

async fn restore(remote: &Remote, items: &[u64], to: Option<&OsString>) -> Outcome {
    let to = to.map(|path| KilnPath::parse(path)).transpose()?;
    let target = match &to {
        Some(path) => Some(target(remote, path, items.len() > 1).await?),
        None => None,
    };
    let target = target.as_ref().map(|(directory, name)| (*directory, name.as_slice()));
    for item in items {
        let restored = remote.client.restore(&remote.caller, InodeId(*item), target).await;
        restored.context(format_args!("item {item}"))?;
    }
    Ok(())
}

/// Restores what was removed from directories that were restored, the newest first: of two things with one name the
/// older one stays in the trash.
async fn restore_below(remote: &Remote, items: &[u64], newer_than: Option<Duration>) -> Outcome {
    let (client, caller) = (&remote.client, &remote.caller);
    let age = newer_than.map_or(i64::MAX, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
    let since = Timestamp(remote.env.wall().0.saturating_sub(age));
    let mut all = Vec::new();
    let mut listing = client.trash_items(caller, caller.uid == 0);
    while let Some(page) = listing.next().await? {
        all.extend(page.into_iter().filter(|item| item.removed >= since));
    }
    let mut restored: HashSet<InodeId> = items.iter().copied().map(InodeId).collect();
    for item in all.iter().rev().filter(|item| item.attr.kind == FileKind::Directory) {
        put_back(remote, item, &mut restored).await?;
    }
    for item in all.iter().rev().filter(|item| item.attr.kind != FileKind::Directory) {
        put_back(remote, item, &mut restored).await?;
    }
    Ok(())
}

async fn put_back(
    remote: &Remote,
    item: &TrashItem,
    restored: &mut HashSet<InodeId>,
) -> Result<()> {
    let inode = item.attr.inode;
    if !restored.contains(&item.parent) {
        return Ok(());
    }
    match remote.client.restore(&remote.caller, inode, None).await {
        Err(error) if error.code() == Code::Exists => {
            let name = item.name.escape_ascii();
            output::tell(&format!("item {inode} stays in the trash: there is another '{name}'"));
        }
        done => {
            done.context(format_args!("item {inode}"))?;
            restored.insert(inode);
        }
    }
    Ok(())
}

/// The directory for an item, and its name there; empty: the one that it had.
async fn target(
    remote: &Remote,
    path: &KilnPath,
    several: bool,
) -> Result<(InodeId, Vec<u8>), Failure> {
    if let Some(directory) = remote.directory(path).await? {
        return Ok((directory, Vec::new()));
    }
    let named = path.split().filter(|_| !several && !path.slash);
    let Some((parent, name)) = named else {
        let text = format!("{path}: there is no such directory");
        return Err(Error::new(Code::NotDirectory, text).into());
    };
    Ok((remote.look(&parent, true).await?.inode, name.to_vec()))
}

/// Lets everything go that was removed before that long.
async fn empty(remote: &Remote, older_than: Duration) -> Result<()> {
    let (client, caller) = (&remote.client, &remote.caller);
    let age = i64::try_from(older_than.as_nanos()).unwrap_or(i64::MAX);
    let until = Timestamp(remote.env.wall().0.saturating_sub(age));
    let mut listing = client.trash_items(caller, caller.uid == 0);
    while let Some(page) = listing.next().await? {
        // Of one age after the other: later ones are younger.
        let is_end = !older_than.is_zero() && page.iter().any(|item| item.removed > until);
        let old = page.iter().filter(|item| older_than.is_zero() || item.removed <= until);
        let old: Vec<_> = old.map(|item| item.attr.inode).collect();
        match client.empty_trash(caller, &old).await {
            // They went by themselves meanwhile.
            Err(error) if error.code() == Code::NotFound => {}
            emptied => emptied?,
        }
        if is_end {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_time_or_off_is_how_long_the_trash_keeps() {
        assert_eq!(parse_keep("off").unwrap().0, None);
        assert_eq!(parse_keep("7d").unwrap().0, Some(Duration::from_secs(7 * 24 * 3600)));
        assert!(parse_keep("never").is_err());
    }

    #[test]
    fn items_are_shown_with_their_path_and_the_time_that_is_left() {
        let item = |directory: Option<&str>| TrashItem {
            attr: show::tests::attr(FileKind::File, 0o644),
            removed: Timestamp(0),
            expires: Timestamp(100_000_000_000_000),
            by: 0,
            name: b"x".to_vec(),
            parent: InodeId(7),
            directory: directory.map(|path| path.as_bytes().to_vec()),
        };
        let below = |path| KilnPath::parse(OsStr::new(path)).unwrap();
        for (top, expected) in [("kiln:/", true), ("kiln:/a", true), ("kiln:/a/b/x", true)] {
            assert_eq!(is_below(&item(Some("/a/b")), &below(top)), expected);
        }
        assert!(is_below(&item(Some("/")), &below("kiln:/x")));
        assert!(!is_below(&item(Some("/ab")), &below("kiln:/a")));
        assert!(!is_below(&item(None), &below("kiln:/")));
        assert_eq!(left(&item(None), Timestamp(0)), "1day 3h");
        assert_eq!(left(&item(None), Timestamp(i64::MAX)), "0s");
    }
}
