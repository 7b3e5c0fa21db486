//! The doctor names what is wrong on the server's side and what to do; Keylime by a script, the broker by its absence

use crate::configured::Configured;
use crate::scripted::{Play, Scripted, Seen, answer};
use keylime_mqtt_bridge::config::Config;
use keylime_mqtt_bridge::doctor::{PROGRAM, Wishes, examine};
use keylime_mqtt_broker_config::{Report, State, Step};
use std::fs;

const VERSIONS: &str = r#"{"code":200,"status":"Success","results":{"current_version":"2.6","supported_versions":["2.5","2.6"]}}"#;

/// Both services at one address, so each answers the next question
async fn keylime(registrar: Play, verifier: Play) -> Scripted {
    Scripted::start(vec![registrar, verifier]).await
}

/// Whether the configuration was right, and the steps
async fn examined(configured: &Configured, overrides: &[&str], wishes: &Wishes) -> (bool, Vec<Step>) {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let mut report = Report::new(PROGRAM, None);
    let config = Config::read(&configured.file(), &overrides).unwrap();
    let is_configured = examine(config, wishes, &mut report).await;
    (is_configured, report.steps().to_vec())
}

#[track_caller]
fn has(steps: &[Step], name: &str, state: State, words: &[&str]) {
    let step = steps.iter().find(|step| step.step == name).unwrap_or_else(|| panic!("{name}: {steps:#?}"));
    assert_eq!(step.state, state, "{step}");
    for word in words {
        assert!(step.to_string().contains(word), "{word:?} is not in {step}");
    }
}

#[tokio::test]
async fn keylime_in_push_mode_is_told_from_pull_mode_and_from_what_is_down() {
    let push = keylime(answer(200, VERSIONS), answer(410, "{}")).await;
    let (is_configured, steps) = examined(&Configured::at(&push), &[], &Wishes::default()).await;
    assert!(is_configured);
    has(&steps, "configuration", State::Ok, &[]);
    has(&steps, "ticket-keys", State::Ok, &["ticket.keys"]);
    has(&steps, "admission", State::Ok, &["ek-ca", "0 lines"]);
    has(&steps, "status", State::NotChecked, &["no bridge runs"]);
    has(&steps, "certificate", State::Ok, &["days"]);
    has(&steps, "registrar", State::Ok, &["2.6"]);
    has(&steps, "verifier", State::Ok, &["push mode"]);
    for conf in ["conf-mode", "conf-session-limit", "conf-session-lifetime", "conf-quote-interval"] {
        has(&steps, conf, State::NotChecked, &["--verifier-conf"]);
    }
    let seen: Vec<String> = push.seen().into_iter().map(|Seen { line, .. }| line).collect();
    assert_eq!(seen, ["GET /version HTTP/1.1"; 2], "Keylime is asked nothing else");

    let pull =
        keylime(answer(200, r#"{"results":{"supported_versions":["2.1"]}}"#), answer(200, VERSIONS)).await;
    let (_, steps) = examined(&Configured::at(&pull), &[], &Wishes::default()).await;
    has(&steps, "registrar", State::Failed, &["without API 2.6", "2.1", "7.14"]);
    has(&steps, "verifier", State::Failed, &["pull mode", "mode = push"]);

    let down = ["verifier.url=https://localhost:1", "registrar.url=https://localhost:1"];
    let (_, steps) = examined(&Configured::at(&pull), &down, &Wishes::default()).await;
    has(&steps, "registrar", State::Failed, &["cannot be connected to", "[registrar] url", "8891"]);
    has(&steps, "verifier", State::Failed, &["cannot be connected to", "[verifier] url"]);

    let mut strange = Configured::at(&push);
    let other = Scripted::start(vec![]).await;
    strange.text =
        strange.text.replace(&push.ca_file().display().to_string(), &other.ca_file().display().to_string());
    let (_, steps) = examined(&strange, &[], &Wishes::default()).await;
    has(&steps, "verifier", State::Failed, &["certificate that is not trusted", "ca_file"]);
}

#[tokio::test]
async fn a_wrong_configuration_is_named_and_the_verifiers_settings_are_looked_at_all_the_same() {
    let configured =
        Configured::with("https://localhost:1", &crate::fixtures::path("device-secure/ek_rootca.pem"));
    let conf = configured.path("verifier.conf");
    fs::write(&conf, "[verifier]\nmode = push\nquote_interval = 2\nsession_lifetime = 180\n").unwrap();
    fs::remove_file(configured.path("bridge.key")).unwrap();
    let wishes = Wishes { verifier_conf: Some(conf), devices: Some(10_000), ..Wishes::default() };
    let (is_configured, steps) = examined(&configured, &[], &wishes).await;
    assert!(!is_configured);
    has(&steps, "configuration", State::Failed, &["[broker]", "bridge.key"]);
    has(&steps, "verifier", State::NotChecked, &["configuration"]);
    has(&steps, "conf-mode", State::Ok, &[]);
    has(&steps, "conf-session-limit", State::Finding, &["10000 devices", "250.0 minutes"]);
    has(&steps, "conf-quote-interval", State::Finding, &["5000.0 attestations a second"]);
}

#[tokio::test]
async fn nobody_admitted_and_no_place_for_the_status_are_found() {
    let keylime = keylime(answer(200, VERSIONS), answer(410, "{}")).await;
    let mut configured = Configured::at(&keylime);
    let without = |line: &&str| !line.starts_with("ek_ca_dir");
    configured.text = configured.text.split_inclusive('\n').filter(without).collect();
    let (_, steps) =
        examined(&configured, &["status_socket=/nonexistent/status.sock"], &Wishes::default()).await;
    has(&steps, "admission", State::Finding, &["no device is let in", "show-identity"]);
    has(&steps, "status", State::Failed, &["/nonexistent", "status_socket"]);
    has(&steps, "tcp", State::Failed, &["localhost:8883"]);
    has(&steps, "tls", State::NotChecked, &["waits for tcp"]);
}
