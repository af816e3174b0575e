//! Sets right what is wrong, each thing in a transaction of its own.

use super::judge::Repair;
use crate::records::{Body, Dentry, Directory, Garbage, Handle, Inode, Slot};
use crate::store::Store;
use crate::store::trash::TRASHED;
use crate::tx::Tx;
use kiln_types::{Error, FileKind, InodeId, LayoutWish, MODE_PERMISSIONS, Result, TruncateEpoch};

const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Carries out one repair. Whatever changed since it was found wrong is looked at by the next check.
pub(super) async fn repair(store: &Store, repair: &Repair) -> Result<()> {
    let found = match repair {
        Repair::Rescue(_) => Some(lost_and_found(store).await?),
        _ => None,
    };
    store.transact("repair", &|tx| Box::pin(carry_out(tx, repair, found))).await
}

async fn carry_out(tx: &mut Tx<'_, '_>, repair: &Repair, found: Option<InodeId>) -> Result<()> {
    match repair {
        Repair::None => {}
        Repair::Clear(key) => tx.kv.clear(key),
        Repair::SetNumber(key, number) => tx.kv.set(key, &number.to_le_bytes()),
        Repair::RemoveEntry(directory, cookie) => drop(remove(tx, *directory, *cookie).await?),
        Repair::PutAgain(directory, cookie) => put_again(tx, *directory, *cookie).await?,
        Repair::SetLinks(inode, links) => {
            let mut inode = tx.inode(*inode).await?;
            inode.links = *links;
            put(tx, &inode);
        }
        Repair::SetParent(inode, parent) => {
            let mut inode = tx.inode(*inode).await?;
            inode.parent = *parent;
            put(tx, &inode);
        }
        Repair::SetLength(inode, length) => {
            let mut inode = tx.inode(*inode).await?;
            inode.file_mut()?.length = *length;
            put(tx, &inode);
        }
        Repair::Rescue(inode) => {
            let directory = found.ok_or_else(|| Error::internal("no lost+found"))?;
            rescue(tx, *inode, directory).await?;
        }
        Repair::PutSession(by_inode, by_client) => {
            let handle: Option<Handle> = tx.get(by_client).await?;
            handle.iter().for_each(|handle| tx.put(by_inode, handle));
        }
        Repair::PutMark(key) => tx.kv.set(key, &[]),
        Repair::PutGarbage(inode, epoch) => put_garbage(tx, *inode, *epoch).await?,
    }
    Ok(())
}

/// Puts an inode past the ledger: sums are set right as a whole.
fn put(tx: &mut Tx<'_, '_>, inode: &Inode) {
    let key = tx.keys.inode(inode.id);
    tx.put(&key, inode);
}

async fn remove(tx: &mut Tx<'_, '_>, directory: InodeId, cookie: u64) -> Result<Option<Dentry>> {
    let key = tx.keys.slot(directory, cookie);
    let Some(slot) = tx.get::<Slot>(&key).await? else { return Ok(None) };
    tx.kv.clear(&key);
    if slot.more {
        tx.put(&key, &Slot { entry: None, more: true });
    }
    Ok(slot.entry)
}

/// Takes an entry out and puts it where its name is looked for, as what its inode is.
async fn put_again(tx: &mut Tx<'_, '_>, directory: InodeId, cookie: u64) -> Result<()> {
    let Some(entry) = remove(tx, directory, cookie).await? else { return Ok(()) };
    let Some(inode) = tx.find_inode(entry.inode).await? else { return Ok(()) };
    let entry = Dentry { kind: inode.kind(), ..entry };
    match tx.find(directory, &entry.name).await? {
        // Somebody else has the name.
        Some(_) => Ok(()),
        None => tx.insert(directory, entry).await,
    }
}

async fn rescue(tx: &mut Tx<'_, '_>, inode: InodeId, directory: InodeId) -> Result<()> {
    let mut inode = tx.inode(inode).await?;
    let name = format!("inode-{}", inode.id).into_bytes();
    if tx.find(directory, &name).await?.is_some() {
        return Ok(());
    }
    if inode.parent == TRASHED {
        let mark = tx.keys.item_of(inode.id);
        tx.kv.clear(&mark);
    }
    inode.parent = directory;
    if !inode.is_directory() {
        inode.links = 1;
    }
    put(tx, &inode);
    tx.insert(directory, Dentry { name, inode: inode.id, kind: inode.kind() }).await
}

async fn put_garbage(tx: &mut Tx<'_, '_>, inode: InodeId, epoch: TruncateEpoch) -> Result<()> {
    let inode = tx.inode(inode).await?;
    let Body::File(file) = &inode.body else { return Ok(()) };
    let Some((first, _)) = file.floors.iter().find(|(_, of)| *of == epoch) else { return Ok(()) };
    let writable_until = tx.capability_end(tx.now);
    let garbage = Garbage { layout: file.layout, first: *first, end: u64::MAX, writable_until };
    let key = tx.keys.garbage(inode.id, epoch);
    tx.put(&key, &garbage);
    Ok(())
}

/// The directory for what has no name; made when it is missing.
async fn lost_and_found(store: &Store) -> Result<InodeId> {
    let id = store.next_inode().await?;
    store
        .transact("lost+found", &|tx| {
            Box::pin(async move {
                if let Some(found) = tx.find(InodeId::ROOT, LOST_AND_FOUND).await?
                    && found.entry.kind == FileKind::Directory
                {
                    return Ok(found.entry.inode);
                }
                let root = tx.inode(InodeId::ROOT).await?;
                let now = tx.now;
                let directory = Directory { mtime_set: now, wish: LayoutWish::default() };
                let made = Inode {
                    id,
                    mode: 0o700 & MODE_PERMISSIONS,
                    parent: root.id,
                    links: 0,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: now,
                    body: Body::Directory(directory),
                    ..root
                };
                tx.make_inode(&made)?;
                tx.add_links(InodeId::ROOT, 1);
                tx.touch(InodeId::ROOT);
                let name = LOST_AND_FOUND.to_vec();
                let entry = Dentry { name, inode: id, kind: FileKind::Directory };
                tx.insert(InodeId::ROOT, entry).await?;
                Ok(id)
            })
        })
        .await
}
