//! `kiln layout`.

use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_client::SetAttr;
use kiln_types::{Attr, Context, Error, FileKind, LayoutWish, Result};
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directories; of files, their layout is shown
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,

    /// Bytes of a chunk of new files: a power of two from 64KiB to 64MiB
    #[arg(long, value_name = "SIZE", value_parser = kiln_config::parse_size)]
    chunk_size: Option<u64>,

    /// Over how many chains the chunks of new files go round
    #[arg(long, value_name = "CHAINS")]
    stripe: Option<u32>,

    /// Go by the cluster's configuration again
    #[arg(long, conflicts_with_all = ["chunk_size", "stripe"])]
    default: bool,
}

impl Args {
    /// What is to be set, if anything.
    fn wish(&self) -> Result<Option<LayoutWish>> {
        let size = self.chunk_size.unwrap_or(0);
        let chunk_bytes =
            u32::try_from(size).map_err(|_| Error::invalid("a chunk has at most 64 MiB"))?;
        let wish = LayoutWish { chunk_bytes, stripe: self.stripe.unwrap_or(0) };
        wish.validate()?;
        let any = self.chunk_size.is_some() || self.stripe.is_some() || self.default;
        Ok(any.then_some(wish))
    }
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    let wish = args.wish()?;
    remote::run(place, async |remote| {
        for path in &paths {
            let attr = one(remote, path, wish).await?;
            output::print(&format!("{path}: {}\n", text(&attr)))?;
        }
        Ok(())
    })
}

async fn one(remote: &Remote, path: &KilnPath, wish: Option<LayoutWish>) -> Result<Attr> {
    let attr = remote.look(path, true).await?;
    let Some(wish) = wish else { return Ok(attr) };
    let change = SetAttr { layout: Some(wish), ..SetAttr::default() };
    remote.client.set_attr(&remote.caller, attr.inode, change).await.context(path)
}

fn text(attr: &Attr) -> String {
    let Some(layout) = attr.layout else {
        return match attr.kind {
            FileKind::Directory => "new files as the cluster's configuration says".into(),
            _ => "no content".into(),
        };
    };
    let chunks = format!("chunks of {}", output::bytes(layout.chunk_bytes.into()));
    match attr.kind {
        FileKind::Directory => {
            format!("new files in {chunks} over up to {}", output::count(layout.stripe, "chain"))
        }
        _ => format!("{chunks} over {}", output::count(layout.stripe, "chain")),
    }
}
