//! Whoever does not belong is refused with clear words, and nothing is lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The addresses on which the cluster's servers listen.
fn addresses(cluster: &TestCluster) -> Vec<String> {
    let status: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["status", "--json"])).unwrap();
    let text = status.to_string();
    let mut found: Vec<_> =
        text.split('"').filter(|word| word.starts_with("127.0.0.1:")).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn garbage_on_every_port_harms_nobody() {
    let cluster = TestCluster::start(1, 1);
    let local = tempfile::tempdir().unwrap();
    let file = local.path().join("kept");
    std::fs::write(&file, vec![7; 100_000]).unwrap();
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/kept"]);
    let addresses = addresses(&cluster);
    assert!(addresses.len() >= 3, "mgmtd, meta and storage: {addresses:?}");
    let mut random = fastrand::Rng::with_seed(5);
    for address in &addresses {
        for round in 0..20 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let bytes = match round % 4 {
                0 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                1 => vec![0; 100_000],
                2 => Vec::new(),
                _ => cluster::tree::bytes(&mut random, 5_000),
            };
            // The server may hang up before it has taken everything.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    assert_eq!(cluster.ok(&["cat", "kiln:/kept"]).len(), 100_000);
}

#[test]
fn a_wrong_or_revoked_credential_opens_nothing() {
    let cluster = TestCluster::start(1, 1);
    let other = TestCluster::start(1, 1);
    let manager = addresses_of_manager(&cluster);
    let local = tempfile::tempdir().unwrap();
    let with = |credential: &std::path::Path| {
        let place = ["--cluster", &manager, "--credential", credential.to_str().unwrap()];
        let mut command = cluster.command(["ls", "kiln:/"]);
        command.env_remove("KILN_DIR").args(place).output().unwrap()
    };
    let own = cluster.path().join("credentials/admin.toml");
    assert!(with(&own).status.success());

    let foreign = with(&other.path().join("credentials/admin.toml"));
    assert_eq!(foreign.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("cluster"), "{foreign:?}");

    let forged = local.path().join("forged.toml");
    let text = std::fs::read_to_string(&own).unwrap();
    let secret = text.lines().find(|line| line.starts_with("secret")).unwrap();
    std::fs::write(&forged, text.replace(secret, &format!("secret = \"{}\"", "5".repeat(64))))
        .unwrap();
    private(&forged);
    assert_eq!(with(&forged).status.code(), Some(1));

    let guest = local.path().join("guest.toml");
    cluster.ok(&["admin", "credential", "create", "guest", "--output", guest.to_str().unwrap()]);
    assert!(with(&guest).status.success());
    cluster.ok(&["admin", "credential", "revoke", "guest"]);
    let revoked = with(&guest);
    assert_eq!(revoked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&revoked.stderr).contains("revoked"), "{revoked:?}");
}

fn addresses_of_manager(cluster: &TestCluster) -> String {
    let status = cluster.ok(&["status", "--json"]);
    let at = status.find("mgmtd").expect("a manager");
    let rest = &status[at..];
    let from = rest.find("127.0.0.1:").expect("its address");
    rest[from..].chars().take_while(|c| !matches!(c, '"' | ',')).collect()
}

fn private(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
