use super::*;
use crate::OpenOptions;
use crate::sync_gate::SyncGate;
use kiln_env::Executor;
use kiln_types::Code;
use std::sync::Arc;
use tokio::sync::Semaphore;

fn slot() -> OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a fresh semaphore")
}

fn file(folder: &tempfile::TempDir) -> DataFile {
    let options = OpenOptions { capacity: Some(1 << 20), create: true, ..OpenOptions::default() };
    DataFile::open(&folder.path().join("disk"), &options).expect("a file")
}

fn write(blocks: usize) -> (Operation, oneshot::Receiver<Result<()>>) {
    let (done, result) = oneshot::channel();
    let bytes = Buffer::zeroed(blocks * 4096).freeze();
    (Operation::new(Task::Write { bytes, done }, 8192, slot()), result)
}

#[test]
fn short_transfers_go_on_at_a_whole_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(&folder);
    let (operation, mut result) = write(4);
    let operation = operation.advance(Ok(4096 + 512), &file).expect("there is more");
    assert_eq!(operation.rest(), (4096, 8192 + 4096));
    let operation = operation.advance(Err(Errno::INTR), &file).expect("again");
    assert_eq!(operation.rest(), (4096, 8192 + 4096));
    assert!(operation.advance(Ok(3 * 4096), &file).is_none());
    assert_eq!(result.try_recv().expect("an answer"), Ok(()));
}

#[test]
fn errors_say_where_and_what_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(&folder);
    let cases = [
        (Err(Errno::NOSPC), Code::NoSpace),
        (Err(Errno::IO), Code::DiskFailed),
        (Ok(0), Code::DiskFailed),
        (Ok(512), Code::DiskFailed),
    ];
    for (outcome, code) in cases {
        let (operation, mut result) = write(2);
        assert!(operation.advance(outcome, &file).is_none());
        let error = result.try_recv().expect("an answer").expect_err("it failed");
        assert_eq!(error.code(), code);
        assert!(error.message().contains("offset 8192"), "{error}");
        assert!(error.message().contains(&*file.path().to_string_lossy()), "{error}");
    }
}

#[test]
fn the_system_may_not_ask_for_retries_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(&folder);
    let (operation, mut result) = write(1);
    let mut left = Some(operation);
    let mut tries = 0;
    while let Some(operation) = left {
        tries += 1;
        left = operation.advance(Err(Errno::AGAIN), &file);
    }
    assert_eq!(tries, RETRIES_MAX + 1);
    let error = result.try_recv().expect("an answer").expect_err("it failed");
    assert_eq!(error.code(), Code::DiskFailed);
}

#[test]
fn a_failed_sync_poisons_even_when_nobody_waits_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(&folder);
    let gate = SyncGate::new();
    let gate2 = Arc::clone(&gate);
    let turn = Executor::new(1).run(async move { gate2.turn().await });
    let turn = turn.expect("no failure yet").expect("the first");
    let (done, result) = oneshot::channel();
    drop(result);
    let operation = Operation::new(Task::Sync { turn, done }, 0, slot());
    assert!(operation.advance(Err(Errno::NOSPC), &file).is_none());
    let error = gate.check().expect_err("poisoned");
    assert_eq!(error.code(), Code::DiskFailed);
    assert!(error.message().contains("No space left"), "{error}");
}
