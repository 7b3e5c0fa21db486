//! The demo broker as a process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, also in its helpers, which clippy does not see as tests"
)]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

fn issue(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(dir.join("broker.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("broker.key"), key.serialize_pem()).unwrap();
}

fn spawn(dir: &Path, port: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-demo-broker"))
        .args(["--port", port, "--ca"])
        .arg(dir.join("ca.pem"))
        .arg("--cert")
        .arg(dir.join("broker.pem"))
        .arg("--key")
        .arg(dir.join("broker.key"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The port it says it listens on.
fn port(broker: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(broker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().strip_prefix("listening on port ").expect("the port").to_owned()
}

#[test]
fn it_warns_listens_and_can_be_killed_and_started_again_on_its_port() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let mut broker = spawn(dir.path(), "0");
    let taken = port(&mut broker);
    TcpStream::connect(format!("127.0.0.1:{taken}")).unwrap();
    broker.kill().unwrap();
    let said = String::from_utf8(broker.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("WARN") && said.contains("for demo and tests only"), "{said}");
    let mut again = spawn(dir.path(), &taken);
    assert_eq!(port(&mut again), taken);
    again.kill().unwrap();
    again.wait().unwrap();
}

#[test]
fn it_refuses_a_ca_file_of_which_rumqttd_would_use_only_a_part() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let ca = fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    fs::write(dir.path().join("ca.pem"), format!("{ca}{ca}")).unwrap();
    let output = spawn(dir.path(), "0").wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("ca.pem holds 2 CA certificates"), "{said}");
}

#[test]
fn it_says_which_address_it_could_not_have() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = other.local_addr().unwrap();
    let output = spawn(dir.path(), &taken.port().to_string()).wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(&taken.to_string()), "{said}");
}
