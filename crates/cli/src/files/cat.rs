//! `kiln cat`.

use crate::failure::Outcome;
use crate::output;
use crate::path::KilnPath;
use crate::place::Place;
use crate::remote::{self, Remote};
use kiln_client::{File, OpenMode};
use kiln_memory::Pool;
use kiln_types::{Context, Result};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files to print, one after the other
    #[arg(value_name = "KILN_PATH", required = true)]
    paths: Vec<OsString>,
}

/// Bytes of one read, and how many are under way.
const BLOCK: usize = 4 << 20;
const AHEAD: usize = 4;

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let paths = args.paths.iter().map(|path| KilnPath::parse(path));
    let paths = paths.collect::<Outcome<Vec<_>>>()?;
    remote::run(place, async |remote| {
        for path in &paths {
            let opened = remote.client.open_path(&remote.caller, path.as_bytes(), OpenMode::READ);
            print(remote, opened.await.context(path)?).await.context(path)?;
        }
        Ok(())
    })
}

async fn print(remote: &Remote, file: File) -> Result<()> {
    let (pool, file) = (Pool::new(AHEAD * BLOCK), Arc::new(file));
    let length = file.length();
    let mut reads = VecDeque::new();
    let mut offset = 0;
    while offset < length || !reads.is_empty() {
        while offset < length && reads.len() < AHEAD {
            let (file, buffer) = (Arc::clone(&file), pool.take(BLOCK));
            let read = async move { file.read_at(offset, buffer).await };
            reads.push_back(remote.env.spawn("read ahead", read));
            offset += BLOCK as u64;
        }
        if let Some(read) = reads.pop_front() {
            let block = read.join().await??;
            remote.env.blocking(move || output::print_bytes(&block)).await??;
        }
    }
    file.close().await.map(drop)
}
