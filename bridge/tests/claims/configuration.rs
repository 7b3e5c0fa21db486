//! Claims about the configuration: what is wrong is refused at start, with the key, the file and the remedy.

use crate::configured::Configured;
use keylime_mqtt_bridge::config::Config;
use keylime_mqtt_bridge::status_socket::{StatusError, StatusSocket, ask};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// Any certificate can be a CA file
fn good() -> Configured {
    let some = rcgen::generate_simple_self_signed(vec!["keylime".to_owned()]).unwrap();
    let configured =
        Configured::with("https://localhost:8881", &crate::fixtures::path("device-secure/ek_rootca.pem"));
    fs::write(configured.path("some.pem"), some.cert.pem()).unwrap();
    configured
}

#[test]
fn a_good_configuration_is_taken() {
    let checked = good().check(&[]).unwrap();
    assert_eq!(checked.config.verifier.sessions_per_minute, 50);
    assert_eq!(checked.broker.address(), "localhost:8883");
}

#[test]
fn every_key_of_the_example_is_known_and_every_default_is_as_it_says() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/bridge.toml.example");
    let text = fs::read_to_string(example).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // the commented-out keys as well
    let uncommented =
        |line: &str| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line).to_owned();
    let all = text.lines().map(uncommented).collect::<Vec<_>>().join("\n");
    let file = dir.path().join("all.toml");
    fs::write(&file, all).unwrap();
    let stated = Config::read(&file, &[]).unwrap();
    let defaults = good().check(&[]).unwrap().config;
    let shown = |config: &Config| {
        let (limits, cache) = (config.limits, config.cache.max_bytes);
        format!("{:?} {limits:?} {cache} {:?}", config.exchange, config.topics.prefix)
    };
    assert_eq!(shown(&stated), shown(&defaults));
    let (a, b) = (&stated.verifier, &defaults.verifier);
    assert_eq!(
        (a.timeout_seconds, a.connections, a.sessions_per_minute, a.replicas),
        (b.timeout_seconds, b.connections, b.sessions_per_minute, b.replicas)
    );
}

#[test]
fn each_mistake_is_named_by_its_key() {
    let cases = [
        ("verifier.colour=blue", "colour"),
        ("verifier.timeout_seconds=soon", "timeout_seconds"),
        ("verifier.timeout_seconds=1", "verifier.timeout_seconds"),
        ("verifier.url=http://localhost:8881", "[verifier] url"),
        ("verifier.url=https://localhost/path", "[verifier] url"),
        ("verifier.url=nonsense", "url"),
        ("verifier.ca_file=/nowhere.pem", "[verifier] ca_file /nowhere.pem"),
        ("verifier.sessions_per_minute=0", "sessions_per_minute"),
        ("registrar.url=http://localhost:8890", "[registrar] url"),
        ("registrar.danger_plaintext_registrar=true", "danger_plaintext_registrar"),
        ("topics.prefix=a/#", "[topics] prefix"),
        ("topics.via=no spaces", "[topics] via"),
        ("topics.share_group=bridges", "share_group"),
        ("admission.list_file=/nowhere", "list_file /nowhere"),
        ("admission.ek_ca_dir=/nowhere", "ek_ca_dir /nowhere"),
        ("broker.host=two words", "broker.host"),
        ("exchange.waiting_cap_seconds=1", "waiting_cap_seconds = 1: change one of them"),
        ("exchange.waiting_first_seconds=90", "waiting_first_seconds = 90 is more than"),
        ("ticket_key_file=/nowhere/keys", "its directory must exist"),
        ("limits.max_devices=0", "max_devices"),
        ("cache.max_bytes=1", "cache.max_bytes"),
        ("cache.path=/tmp", "path"),
        ("references=[\"/nowhere.ref\"]", "references: /nowhere.ref"),
        ("references=/nowhere.ref", "references"),
        ("no value", "--set no value"),
    ];
    for (mistake, named) in cases {
        let error = good().check(&[mistake]).map(drop).unwrap_err().to_string();
        assert!(error.contains(named), "{mistake}: {error}");
    }
}

#[test]
fn plain_http_to_the_registrar_is_a_setting_that_says_danger() {
    let plain = ["registrar.url=http://localhost:8890", "registrar.danger_plaintext_registrar=true"];
    good().check(&plain).unwrap();
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let configured = good();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-bridge"))
            .env("KEYLIME_MQTT_BRIDGE_VERIFIER__URL", "http://from-the-environment:1")
            .args(["--config", configured.file().to_str().unwrap(), "check-config"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (good, said) = run(&[]);
    assert!(!good && said.contains("from-the-environment"), "{said}");
    let (good, said) = run(&["--set", "verifier.url=https://from-the-flag:1"]);
    assert!(good, "{said}");
    // whatever is wrong, and wherever: the operator reads where to look
    for mistake in ["verifier.timeout_seconds=1", "verifier.colour=blue", "topics.prefix=a/#"] {
        let (good, said) = run(&["--set", mistake]);
        assert!(
            !good && said.contains(configured.file().to_str().unwrap()) && said.contains("--set"),
            "{said}"
        );
    }
}

#[test]
fn waiting_says_that_no_bridge_runs() {
    let error = ask(&good().path("status.sock")).unwrap_err().to_string();
    assert!(error.contains("status.sock") && error.contains("running"), "{error}");
}

#[tokio::test]
async fn the_status_socket_is_its_users_alone_and_a_second_bridge_does_not_take_it() {
    let configured = good();
    let path = configured.path("status.sock");
    // what a killed bridge leaves behind is no obstacle
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = StatusSocket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(StatusSocket::bind(&path), Err(StatusError::InUse { .. })));
    drop(socket);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(matches!(StatusSocket::bind(&path), Err(StatusError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}
