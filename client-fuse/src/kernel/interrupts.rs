//! The requests under way, so that an interrupt finds the one that it is meant for.

use crate::filesystem::Interrupt;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Each by its number. As many as programs and the kernel wait for at once.
#[derive(Default)]
pub(super) struct UnderWay(Mutex<HashMap<u64, State>>);

enum State {
    /// Goes on whatever its program gets.
    Deaf,
    /// Wants to be told.
    Listens(oneshot::Sender<()>),
    /// Its program got a signal before it listened.
    Interrupted,
}

impl UnderWay {
    pub(super) fn begin(&self, unique: u64) {
        self.0.lock().insert(unique, State::Deaf);
    }

    pub(super) fn end(&self, unique: u64) {
        self.0.lock().remove(&unique);
    }

    /// Tells, from now on, when the program that waits for this request gets a signal.
    pub(super) fn listen(&self, unique: u64) -> Interrupt {
        let (sender, interrupt) = oneshot::channel();
        let before = self.0.lock().insert(unique, State::Listens(sender));
        if matches!(before, Some(State::Interrupted)) {
            self.interrupt(unique);
        }
        interrupt
    }

    /// A program got a signal. False when its request is not under way: it has been answered, or another
    /// thread is about to take it up.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        let mut requests = self.0.lock();
        let Some(state) = requests.get_mut(&unique) else { return false };
        if let State::Listens(sender) = std::mem::replace(state, State::Interrupted) {
            // Who no longer listens is about to answer.
            let _ = sender.send(());
        }
        true
    }

    /// Nobody waits any more.
    pub(super) fn interrupt_all(&self) {
        let all: Vec<_> = self.0.lock().keys().copied().collect();
        for unique in all {
            self.interrupt(unique);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_finds_its_request_whenever_it_comes() {
        let requests = UnderWay::default();
        assert!(!requests.interrupt(1), "not yet here");
        requests.begin(1);
        requests.begin(2);
        let mut second = requests.listen(2);
        assert!(requests.interrupt(1));
        let mut first = requests.listen(1);
        assert_eq!((first.try_recv(), second.try_recv().is_err()), (Ok(()), true));
        requests.interrupt_all();
        assert_eq!(second.try_recv(), Ok(()));
        requests.end(1);
        requests.end(2);
        assert!(!requests.interrupt(2), "answered");
        assert!(requests.0.lock().is_empty());
    }
}
