//! The log as a process has it; one test, because a process has one log.

use kiln_telemetry::{LogFormat, LogOptions, init, request_span};
use kiln_types::{Code, RequestId};

#[test]
fn a_json_line_carries_the_request_and_a_second_log_is_refused() {
    let path = std::env::temp_dir().join(format!("kiln-log-{}", std::process::id()));
    let options = LogOptions {
        level: kiln_telemetry::Level::DEBUG,
        format: LogFormat::Json,
        file: Some(path.clone()),
    };
    init(&options).unwrap();
    request_span("meta.create", RequestId(0xabc), "admin").in_scope(|| {
        tracing::info!(target: "kiln_meta_server", inode = 7, "created");
        tracing::trace!(target: "kiln_meta_server", "too fine");
        tracing::info!(target: "h2", "not ours");
    });
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in
        ["created", "\"inode\":7", "meta.create", "00000000000000000000000000000abc", "admin"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(init(&options).unwrap_err().code(), Code::Internal);

    let nowhere = LogOptions { file: Some("/nowhere/kiln.log".into()), ..options };
    let error = init(&nowhere).unwrap_err();
    assert!(error.message().contains("/nowhere/kiln.log"), "{error}");
}
