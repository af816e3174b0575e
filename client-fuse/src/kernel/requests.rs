//! Runs the answer to each request, and decides what a program sees of a failure.

use super::late;
use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;

/// The answers under way of one mount.
pub(super) struct Requests {
    env: Env,
    runtime: Handle,
    complaints: Mutex<Complaints>,
}

impl Requests {
    /// Answers are worked out in the runtime of the calling task.
    pub(super) fn new(env: Env) -> Self {
        Self { env, runtime: Handle::current(), complaints: Mutex::default() }
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// Works out an answer. It begins on the calling thread, which saves most cached answers and buffered
    /// writes the way to another one; what has to wait goes on in the runtime once there is something to go on
    /// with.
    pub(super) fn run(
        &self,
        what: &'static str,
        answer: impl Future<Output = ()> + Send + 'static,
    ) {
        let _inside = self.runtime.enter();
        let answer = Guarded { what, answer: Box::pin(answer) };
        late::run(self.env.clone(), self.runtime.clone(), what, answer);
    }

    /// What a program sees of a failure.
    pub(super) fn errno(&self, what: &str, error: &Error) -> Errno {
        let errno = visible_errno(error.code());
        if errno == EIO {
            self.complain(what, error);
        } else {
            tracing::debug!(request = what, %error, "refused");
        }
        Errno::from_raw_os_error(errno)
    }

    fn complain(&self, what: &str, error: &Error) {
        let Some(untold) = self.complaints.lock().may_speak(self.env.now()) else { return };
        let code = error.code().name();
        if untold > 0 {
            tracing::warn!(request = what, code, untold, "I/O error: {error}");
        } else {
            tracing::warn!(request = what, code, "I/O error: {error}");
        }
    }
}

const EIO: i32 = 5;

/// The errno of `code`, but for those that a program has no use for: it cannot go to another server, and
/// for ETIMEDOUT, EINTR or EAGAIN on a file it would do the wrong thing.
fn visible_errno(code: Code) -> i32 {
    match code {
        Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Overloaded
        | Code::ProtocolMismatch
        | Code::ChunkNotFound
        | Code::CapabilityRefused
        | Code::TransactionTooLarge => EIO,
        code => code.errno(),
    }
}

/// A future that ends when it panics. What it owned is dropped then; a reply answers EIO as it goes.
struct Guarded<F> {
    what: &'static str,
    answer: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.answer.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            tracing::error!(request = self.what, "panic: {}", words(&*panic));
            Poll::Ready(())
        })
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Lets a few failures into the log each second and counts the others: a lost cluster fails thousands.
#[derive(Default)]
struct Complaints {
    since: Option<Monotonic>,
    told: u32,
    untold: u64,
}

const TOLD_MAX: u32 = 5;
const SPAN: Duration = Duration::from_secs(1);

impl Complaints {
    /// How many were not told before this one; `None`: this one is not told either.
    fn may_speak(&mut self, now: Monotonic) -> Option<u64> {
        if self.since.is_none_or(|since| now.since(since) >= SPAN) {
            self.since = Some(now);
            self.told = 0;
        }
        if self.told >= TOLD_MAX {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_what_it_can_deal_with() {
        let cases = [
            (Code::NotFound, 2),
            (Code::NoSpace, 28),
            (Code::ReadOnly, 30),
            (Code::StaleHandle, 116),
            (Code::DeadlineExceeded, EIO),
            (Code::Overloaded, EIO),
            (Code::Unreachable, EIO),
        ];
        for (code, errno) in cases {
            assert_eq!(visible_errno(code), errno, "{code:?}");
        }
        let odd = [4, 11, 71, 110];
        let meant = [Code::Locked, Code::Interrupted];
        let mut others = Code::ALL.iter().filter(|code| !meant.contains(code));
        assert!(others.all(|code| !odd.contains(&visible_errno(*code))));
    }

    #[test]
    fn a_few_failures_are_told_each_second_and_the_others_counted() {
        let mut complaints = Complaints::default();
        let at = |milliseconds: u64| Monotonic(milliseconds * 1_000_000);
        let told = (0..100).filter_map(|_| complaints.may_speak(at(5))).count();
        assert_eq!(told, 5);
        assert_eq!(complaints.may_speak(at(900)), None);
        assert_eq!(complaints.may_speak(at(1006)), Some(96));
        assert_eq!(complaints.may_speak(at(1007)), Some(0));
    }
}
