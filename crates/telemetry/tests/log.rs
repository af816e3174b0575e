//! The log as a process has it; one test, because a process has one log.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::Executor;
use kiln_telemetry::{LogFormat, LogOptions, Phase, REQUESTS, about, init, phase};
use kiln_types::{Code, Error, InodeId};
use std::time::Duration;

#[test]
fn json_lines_carry_their_request_and_slow_requests_tell_where_their_time_went() {
    let path = std::env::temp_dir().join(format!("kiln-log-{}", std::process::id()));
    let options = LogOptions {
        level: kiln_telemetry::Level::DEBUG,
        format: LogFormat::Json,
        file: Some(path.clone()),
        slow: Duration::from_secs(1),
    };
    init(&options).unwrap();
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let quick = REQUESTS.measure(&env, "create", "admin at 1.2.3.4:5", async {
            tracing::info!(target: "kiln_meta_server", inode = 7, "created");
            tracing::trace!(target: "kiln_meta_server", "too fine");
            tracing::info!(target: "h2", "not ours");
            Ok(())
        });
        quick.await.unwrap();
        let slow = REQUESTS.measure(&env, "write", "ada", async {
            about(|about| (about.inode, about.bytes) = (Some(InodeId(5)), Some(4096)));
            phase(&env, Phase::Forward, env.sleep(Duration::from_secs(3))).await;
            env.sleep(Duration::from_secs(1)).await;
            Err::<(), _>(Error::new(Code::NotServing, "gone"))
        });
        slow.await.unwrap_err();
    });
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let [created, slow] = text.lines().collect::<Vec<_>>()[..] else { panic!("two lines: {text}") };
    for part in ["created", "\"inode\":7", "create", "admin at 1.2.3.4:5"] {
        assert!(created.contains(part), "{part} in {created}");
    }
    let parts = [
        "WARN",
        "\"operation\":\"write\"",
        "\"peer\":\"ada\"",
        "\"about\":\"inode 5, 4096 bytes\"",
        "\"took\":\"4.0s\"",
        "\"spent\":\"forward 3.0s, other 1.0s\"",
        "\"result\":\"NotServing\"",
    ];
    for part in parts {
        assert!(slow.contains(part), "{part} in {slow}");
    }
    assert_eq!(init(&options).unwrap_err().code(), Code::Internal);

    let nowhere = LogOptions { file: Some("/nowhere/kiln.log".into()), ..options };
    let error = init(&nowhere).unwrap_err();
    assert!(error.message().contains("/nowhere/kiln.log"), "{error}");
}
