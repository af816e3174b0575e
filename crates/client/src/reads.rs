//! The files that are open for reading: a metadata server that starts anew is told of them.

use crate::closing::Closing;
use crate::session::Right;
use kiln_rpc::v1;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Weak;

/// Files in one claim.
const CLAIMS: usize = 256;

/// The rights of open files by their sessions.
#[derive(Default)]
pub(crate) struct Reads {
    open: Mutex<HashMap<Vec<u8>, Weak<Right>>>,
}

impl Reads {
    pub(crate) fn add(&self, session: &[u8], right: Weak<Right>) {
        self.open.lock().insert(session.to_vec(), right);
    }

    pub(crate) fn remove(&self, session: &[u8]) {
        self.open.lock().remove(session);
    }

    /// All that is open, in the pages of calls.
    pub(crate) fn claims(&self) -> Vec<Vec<v1::Claim>> {
        let rights: Vec<_> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        rights.chunks(CLAIMS).map(|page| page.iter().map(|right| right.claim()).collect()).collect()
    }

    /// Ends again what was closed while it was claimed: the claim may have come behind the end.
    pub(crate) fn end_closed(&self, claims: &[v1::Claim], closing: &Closing) {
        for claim in claims {
            if !self.open.lock().contains_key(&claim.session[..]) {
                closing.end(claim.session.to_vec());
            }
        }
    }
}
