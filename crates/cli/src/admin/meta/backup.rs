//! `kiln admin meta backup`.

use super::Done;
use crate::failure::Outcome;
use crate::files::show;
use crate::output;
use crate::place::Place;
use crate::remote::{self, Remote};
use indicatif::{HumanCount, ProgressBar};
use kiln_kv::dump::{Head, Writer};
use kiln_meta_server::dump_head;
use kiln_rpc::v1;
use kiln_types::{Context, Error, Result, Timestamp};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

pub(super) fn run(place: &Place, dump: &Path, json: bool) -> Outcome {
    remote::run(place, async |remote| {
        let (pairs, begun) = copy(remote, dump).await.context("backup")?;
        match json {
            true => output::print_json(&Done { pairs })?,
            false => {
                let (pairs, dump) = (HumanCount(pairs), dump.display());
                let begun = show::time(begun, true);
                output::print(&format!("{pairs} pairs are in {dump}, as they were at {begun}\n"))?;
            }
        }
        Ok(())
    })
}

/// Writes all pairs beside `dump`, and puts the file there when it is whole.
async fn copy(remote: &Remote, dump: &Path) -> Result<(u64, Timestamp)> {
    let part = part_of(dump);
    let outcome = copy_to(remote, &part).await;
    if outcome.is_ok() {
        std::fs::rename(&part, dump).context(dump.display())?;
        let directory = dump.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        File::open(directory).and_then(|file| file.sync_all()).context(directory.display())?;
    } else {
        // It is of no use without the rest, which nobody has any more.
        let _ = std::fs::remove_file(&part);
    }
    outcome
}

fn part_of(dump: &Path) -> PathBuf {
    let mut name = dump.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

async fn copy_to(remote: &Remote, part: &Path) -> Result<(u64, Timestamp)> {
    let failed = |error| Error::local("write of the dump", &error);
    let bar = ProgressBar::new_spinner();
    let mut request = v1::BackupRequest::default();
    let mut page = remote.client.meta().backup(request.clone()).await?;
    let begun = Timestamp(page.begun);
    let id = page.id[..].try_into().map(u128::from_be_bytes);
    let id = id.map_err(|_| Error::corrupt("the id of a backup"))?;
    let file = BufWriter::new(File::create(part).context(part.display())?);
    let head = Head { id, begun, what: dump_head() };
    let mut writer = Writer::begin(file, &head).map_err(failed)?;
    let mut pairs = 0;
    while let Some(last) = page.pairs.last() {
        request = v1::BackupRequest { id: page.id.clone(), after: last.key.clone() };
        for pair in &page.pairs {
            writer.push(&pair.key, &pair.value).map_err(failed)?;
        }
        pairs += page.pairs.len() as u64;
        bar.set_message(format!("copied {}", HumanCount(pairs)));
        bar.tick();
        page = remote.client.meta().backup(request).await?;
    }
    let (pairs, file) = writer.end().map_err(failed)?;
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    bar.finish_and_clear();
    Ok((pairs, begun))
}
