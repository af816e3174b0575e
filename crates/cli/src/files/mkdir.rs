//! `kiln mkdir`.

use crate::failure::Outcome;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_types::{Code, Context, Error, FileKind, InodeId, Result};
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directories to make
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,

    /// Make missing parents too; a directory that is there is fine
    #[arg(short, long)]
    parents: bool,

    /// Permission bits in octal
    #[arg(short, long, default_value = "755", value_parser = octal)]
    mode: u32,
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("permission bits are octal digits, such as 755".into()),
    }
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    remote::run(place, async |remote| {
        for path in &paths {
            if args.parents {
                with_parents(remote, path, args.mode).await?;
            } else {
                one(remote, path, args.mode).await?;
            }
        }
        Ok(())
    })
}

async fn one(remote: &Remote, path: &KilnPath, mode: u32) -> Result<()> {
    let Some((parent, name)) = path.split() else {
        return Err(Error::new(Code::Exists, format!("{path}: it is there already")));
    };
    let parent = remote.look(&parent, true).await?.inode;
    remote.client.make_dir(&remote.caller, parent, name, mode).await.map(drop).context(path)
}

async fn with_parents(remote: &Remote, path: &KilnPath, mode: u32) -> Result<()> {
    let mut inode = InodeId::ROOT;
    let mut so_far = KilnPath::root();
    let names: Vec<_> = path.as_bytes().split(|byte| *byte == b'/').collect();
    let last = names.len() - 1;
    for (at, name) in names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        so_far = so_far.join(name);
        let bits = if at == last { mode } else { 0o755 };
        let made = remote.client.make_dir(&remote.caller, inode, name, bits).await;
        let attr = match made {
            Err(error) if error.code() == Code::Exists => remote.look(&so_far, true).await?,
            made => made.context(&so_far)?,
        };
        if attr.kind != FileKind::Directory {
            return Err(Error::new(Code::NotDirectory, format!("{so_far}: it is a file")));
        }
        inode = attr.inode;
    }
    Ok(())
}
