//! The shell of a [`Watcher`]: its messages as a stream that tonic sends.

use crate::watch::{Changes, Watcher};
use kiln_env::Env;
use kiln_rpc::v1;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

/// What a watching client gets.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<v1::Changes, Status>> + Send>>;

/// Sends what `watcher` says until its client is gone or the server stops. What the client does not
/// take yet stays in the ring.
pub(crate) fn messages(env: &Env, mut watcher: Watcher) -> Messages {
    let (sender, receiver) = mpsc::channel(1);
    let send = async move {
        while let Ok(place) = sender.reserve().await {
            let Some(changes) = watcher.next().await else { return };
            place.send(Ok(message(&changes)));
        }
    };
    env.spawn("watcher", send).detach();
    Box::pin(ReceiverStream::new(receiver))
}

fn message(changes: &Changes) -> v1::Changes {
    let inode = |(inode, content): (kiln_types::InodeId, bool)| v1::ChangedInode {
        inode: inode.0,
        content,
    };
    let name = |(parent, name): (kiln_types::InodeId, &bytes::Bytes)| v1::ChangedName {
        parent: parent.0,
        name: name.clone(),
    };
    v1::Changes {
        lost: changes.is_lost(),
        inodes: changes.inodes().map(inode).collect(),
        names: changes.names().map(name).collect(),
        unlocked: changes.unlocked_inodes().map(|inode| inode.0).collect(),
        appends: changes.appends().map(|inode| inode.0).collect(),
    }
}
