//! What will be known.
#![allow(unsafe_code, reason = "callbacks are C's")]

use crate::codes::Code;
use parking_lot::{Condvar, Mutex};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// As C has it: `FDBKeyValue`, on 4-byte boundaries.
#[repr(C, packed(4))]
pub(crate) struct Pair {
    key: *const u8,
    key_length: c_int,
    value: *const u8,
    value_length: c_int,
}

/// The pairs of a page, and the same as C reads them.
pub(crate) struct Page {
    pub(crate) shown: Vec<Pair>,
    _pairs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) more: bool,
}

// SAFETY: what the pointers in `shown` point to belongs to `_pairs`, which nobody changes.
unsafe impl Send for Page {}

impl Page {
    pub(crate) fn new(pairs: Vec<(Vec<u8>, Vec<u8>)>, more: bool) -> Self {
        let shown = pairs.iter().map(|(key, value)| Pair {
            key: key.as_ptr(),
            key_length: key.len() as c_int,
            value: value.as_ptr(),
            value_length: value.len() as c_int,
        });
        Self { shown: shown.collect(), _pairs: pairs, more }
    }
}

pub(crate) enum Answer {
    Nothing,
    Number(i64),
    Value(Option<Vec<u8>>),
    Page(Page),
}

pub(crate) type Function = extern "C" fn(*mut Handle, *mut c_void);

/// `FDBFuture`.
pub(crate) type Handle = Arc<Future>;

struct Callback {
    function: Function,
    handle: *mut Handle,
    with: *mut c_void,
}

// SAFETY: who sets a callback allows any thread to call it.
unsafe impl Send for Callback {}

#[derive(Default)]
pub(crate) struct Future {
    state: Mutex<State>,
    is_ready: Condvar,
}

#[derive(Default)]
struct State {
    /// The first look at it finds it not ready, so that others have their turn.
    is_shy: bool,
    outcome: Option<Result<Answer, Code>>,
    callback: Option<Callback>,
}

impl Future {
    pub(crate) fn ready(outcome: Result<Answer, Code>) -> Arc<Self> {
        let future = Arc::<Self>::default();
        future.complete(outcome);
        future
    }

    /// One that says that it is not ready when it is asked for the first time.
    pub(crate) fn shy() -> Arc<Self> {
        let state = Mutex::new(State { is_shy: true, ..State::default() });
        Arc::new(Self { state, is_ready: Condvar::new() })
    }

    /// Makes it ready, unless it is.
    pub(crate) fn complete(&self, outcome: Result<Answer, Code>) {
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            return;
        }
        state.outcome = Some(outcome);
        let callback = state.callback.take();
        drop(state);
        self.is_ready.notify_all();
        if let Some(Callback { function, handle, with }) = callback {
            function(handle, with);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        let mut state = self.state.lock();
        !std::mem::take(&mut state.is_shy) && state.outcome.is_some()
    }

    pub(crate) fn wait(&self) {
        let mut state = self.state.lock();
        self.is_ready.wait_while(&mut state, |state| state.outcome.is_none());
    }

    /// Calls `function` when it is ready: now, if it is.
    pub(crate) fn call(&self, function: Function, handle: *mut Handle, with: *mut c_void) {
        let mut state = self.state.lock();
        if state.outcome.is_none() {
            state.callback = Some(Callback { function, handle, with });
            return;
        }
        drop(state);
        function(handle, with);
    }

    /// Shows the outcome, if there is one. It stays where it is for as long as the future.
    pub(crate) fn look<T>(&self, look: impl FnOnce(Option<&Result<Answer, Code>>) -> T) -> T {
        look(self.state.lock().outcome.as_ref())
    }
}
