//! Lengths: truncation, and what writers report.
//!
//! A truncation that cuts something off commits the new length, a new epoch, a floor and a garbage
//! record in one transaction. Chunks behind the cut are below the floor from then on. The chunk
//! that the cut goes through is cut by its chain before the truncation is answered; until that is
//! done (`cut` in the inode) nobody is given the right to write under the new epoch. Whoever wants
//! it finishes the truncation first.
//!
//! A truncation takes two epochs: its own chunk operation has the one between the old and the new
//! epoch of the file. So a late repetition of it, by a server that stopped in between, is refused
//! by every chunk that was written since, as any request of an older epoch is.

use crate::access;
use crate::chunks::ChunkFile;
use crate::records::{Cut, FLOORS_MAX, File, Garbage, Inode};
use crate::store::garbage::Task;
use crate::store::open::Written;
use crate::store::{LENGTH_MAX, Outcome, Store, Who};
use crate::tx::Tx;
use kiln_types::{ClientId, Code, Error, InodeId, Result, TruncateEpoch};

impl Store {
    /// What storage is told of a file.
    pub(crate) fn chunk_file(&self, inode: InodeId, file: &File) -> ChunkFile {
        ChunkFile { tree: self.settings.tree, inode, layout: file.layout }
    }

    /// Lets storage cut what the file's last truncation has yet to cut, if anything.
    ///
    /// # Errors
    /// What storage or kv report.
    pub(crate) async fn finish_cut(&self, id: InodeId) -> Result<()> {
        let Some((cut, file)) = self.pending_cut(id).await? else { return Ok(()) };
        let floor = floor_of(&file, cut.index);
        let chunks = self.chunk_file(id, &file);
        let between = TruncateEpoch(file.epoch.0 - 1);
        self.chunks.truncate_chunk(&chunks, cut.index, cut.length, between, floor).await?;
        let (cut, epoch) = (&cut, file.epoch);
        self.transact("end of a truncation", &|tx| {
            Box::pin(async move {
                let Some(mut inode) = tx.find_inode(id).await? else { return Ok(()) };
                let file = inode.file_mut()?;
                if file.epoch == epoch && file.cut.as_ref() == Some(cut) {
                    file.cut = None;
                    tx.put_unseen(&inode);
                }
                Ok(())
            })
        })
        .await
    }

    async fn pending_cut(&self, id: InodeId) -> Result<Option<(Cut, File)>> {
        self.transact("truncation", &|tx| {
            Box::pin(async move {
                let Some(inode) = tx.find_inode(id).await? else { return Ok(None) };
                let Ok(file) = inode.file() else { return Ok(None) };
                Ok(file.cut.map(|cut| (cut, file.clone())))
            })
        })
        .await
    }

    /// Sets the length in `inode` (the caller puts it) and what hangs on it. `Some`: not now.
    ///
    /// What the client itself wrote it has reported before; what other writers have not yet
    /// reported is cut off like everything else behind the new length.
    pub(crate) async fn set_length(
        &self,
        tx: &mut Tx<'_, '_>,
        who: &Who,
        client: ClientId,
        inode: &mut Inode,
        length: u64,
    ) -> Result<Option<Outcome>> {
        check_length(length)?;
        let (id, mode) = (inode.id, access::mode_after_write(inode, &who.caller));
        let others = tx.has_other_writer(id, client).await?;
        let file = inode.file_mut()?;
        if file.cut.is_some() {
            return Ok(Some(Outcome::Cut(id)));
        }
        if length < file.length || others {
            self.cut_off(tx, id, file, length, others)?;
        }
        (file.length, file.dense_end) = (length, file.dense_end.min(length));
        tx.changes.content(id);
        (inode.mode, inode.mtime, inode.ctime) = (mode, tx.now, tx.now);
        Ok(None)
    }

    fn cut_off(
        &self,
        tx: &mut Tx<'_, '_>,
        id: InodeId,
        file: &mut File,
        length: u64,
        others: bool,
    ) -> Result<()> {
        let chunk_bytes = u64::from(file.layout.chunk_bytes);
        let first = file.layout.chunk_count(length);
        let mut end = if others { u64::MAX } else { file.layout.chunk_count(file.length) };
        file.epoch = file.epoch.next().next();
        while let Some((_, epoch)) = file.floors.pop_if(|(covered, _)| *covered >= first) {
            // The new record removes what that one would have, which may reach beyond this length.
            tx.kv.clear(&tx.keys.garbage(id, epoch));
            end = u64::MAX;
        }
        if file.floors.len() == FLOORS_MAX {
            let text = format!("{FLOORS_MAX} truncations of inode {id} wait for their clean-up");
            return Err(Error::new(Code::Busy, text).with_hint("try again in a minute"));
        }
        file.floors.push((first, file.epoch));
        let writable_until = tx.capability_end(tx.now);
        let garbage = Garbage { layout: file.layout, first, end, writable_until };
        tx.leave_garbage(Task { inode: id, epoch: file.epoch, garbage });
        let stays = (length % chunk_bytes) as u32;
        file.cut = (stays != 0).then_some(Cut { index: length / chunk_bytes, length: stays });
        Ok(())
    }
}

/// Takes in what a writer reports (the caller puts the inode). `Some`: not now.
pub(crate) fn take_written(
    inode: &mut Inode,
    who: &Who,
    written: &Written,
    now: kiln_types::Timestamp,
) -> Result<Option<Outcome>> {
    check_length(written.end)?;
    let id = inode.id;
    let mode = match written.keeps_set_ids {
        true => inode.mode,
        false => access::mode_after_write(inode, &who.caller),
    };
    let file = inode.file_mut()?;
    // What was written before a truncation makes the file neither longer nor denser.
    if written.epoch == file.epoch {
        if written.end > file.length {
            if file.cut.is_some() {
                return Ok(Some(Outcome::Cut(id)));
            }
            file.length = written.end;
        }
        file.dense_end = written.acknowledged.extend(file.dense_end).min(file.length);
    }
    (inode.mode, inode.mtime, inode.ctime) = (mode, written.mtime.unwrap_or(now), now);
    Ok(None)
}

/// The least epoch with which a chunk counts.
fn floor_of(file: &File, index: u64) -> TruncateEpoch {
    let below = |(first, _): &&(u64, TruncateEpoch)| *first <= index;
    file.floors.iter().rev().find(below).map_or(TruncateEpoch(0), |(_, epoch)| *epoch)
}

fn check_length(length: u64) -> Result<()> {
    if length <= LENGTH_MAX {
        return Ok(());
    }
    let text = format!("a file of {length} bytes, at most {LENGTH_MAX} allowed");
    Err(Error::new(Code::FileTooLarge, text))
}
