//! The checked-in code is what the .proto files give. `KILN_REGENERATE=1 cargo test -p kiln-rpc --test
//! generated` writes it anew.

use std::path::Path;

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = ["common.proto", "mgmtd.proto", "meta.proto"];
    let descriptors =
        protox::compile(protos, [root.join("proto")]).expect("the .proto files parse");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .compile_fds(descriptors)
        .expect("code is generated");
    let fresh = std::fs::read_to_string(out.path().join("kiln.v1.rs")).expect("one package");
    let kept = root.join("src/generated/kiln.v1.rs");
    if std::env::var_os("KILN_REGENERATE").is_some() {
        std::fs::write(&kept, &fresh).expect("the checked-in file is writable");
    }
    let current = std::fs::read_to_string(&kept).unwrap_or_default();
    assert!(fresh == current, "run: KILN_REGENERATE=1 cargo test -p kiln-rpc --test generated");
}
