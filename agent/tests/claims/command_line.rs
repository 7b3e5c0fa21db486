//! What an operator sees: help, configuration errors, the identity to paste.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::bridge::Site;
use crate::swtpm::Swtpm;

fn agent(config: &Path, arguments: &[&str]) -> Output {
    agent_with(config, arguments, &[])
}

fn agent_with(config: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-agent"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Exit code 2, and a message with every one of the words.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn a_good_configuration_is_said_to_be_good() {
    let site = Site::new();
    let output = agent(&site.configure("swtpm:port=1", ""), &["check-config"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("the configuration is good"));
}

#[test]
fn a_wrong_configuration_is_refused_with_key_file_and_remedy() {
    let site = Site::new();
    for (lines, words) in [
        ("ima_logg = '/x'", &["agent.toml", "ima_logg", "ima_log"][..]),
        ("ima_log = '/nonexistent/ima'", &["ima_log", "/nonexistent/ima", "correct the path"]),
        ("uefi_log = '/dev/null'", &["uefi_log", "/dev/null", "UEFI event log"]),
        (
            "reference = '/nonexistent/fleet.ref'",
            &["reference", "/nonexistent/fleet.ref", "keylime-mqtt-bridge reference"],
        ),
        ("reference = '/dev/null'", &["reference", "/dev/null", "keylime-mqtt-bridge reference"]),
        ("topic_prefix = '#'", &["agent.toml", "topic_prefix", "keylime/v1"]),
        ("payload_bytes = 1", &["agent.toml", "payload_bytes", "between 8192 and"]),
    ] {
        let config = site.configure("swtpm:port=1", lines);
        for command in ["check-config", "run"] {
            assert_refused(&agent(&config, &[command]), words);
        }
    }
    assert_refused(
        &agent(&site.configure("tpm0", ""), &["check-config"]),
        &["tpm.tcti", "tpm0", "device:/dev/tpmrm0"],
    );
    assert_refused(&agent(Path::new("/nonexistent.toml"), &["run"]), &["/nonexistent.toml", "--config"]);
    let config = site.configure("swtpm:port=1", "");
    assert_refused(&agent(&config, &["check-config", "--log", "=="]), &["log", "RUST_LOG"]);
    fs::remove_file(site.path("agent.pem")).unwrap();
    assert_refused(&agent(&config, &["check-config"]), &["cert_file", "agent.pem"]);
}

#[test]
fn a_state_open_to_others_is_refused() {
    let site = Site::new();
    let config = site.configure("swtpm:port=1", "");
    fs::create_dir(site.path("state")).unwrap();
    fs::write(site.path("state/state.json"), "{}").unwrap();
    fs::set_permissions(site.path("state/state.json"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(&agent(&config, &["check-config"]), &["state_dir", "state.json", "chmod go="]);
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    let config = site.configure("nonsense", "");
    let tcti = swtpm.tcti();
    let environment =
        [("KEYLIME_MQTT_AGENT_TPM__TCTI", tcti.as_str()), ("KEYLIME_MQTT_AGENT_ID", "from-environment")];
    let output = agent_with(&config, &["show-identity"], &environment);
    assert!(said(&output).contains("-u from-environment "), "{}", said(&output));
    let output = agent_with(&config, &["show-identity", "--id", "from-flag"], &environment);
    assert!(said(&output).contains("-u from-flag "), "{}", said(&output));
    let wrong = [("KEYLIME_MQTT_AGENT_TPM__TCTL", "x")];
    assert_refused(&agent_with(&config, &["check-config"], &wrong), &["KEYLIME_MQTT_AGENT_", "tctl", "tcti"]);
}

#[test]
fn the_identity_is_printed_with_the_lines_to_paste() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    let config = site.configure(&swtpm.tcti(), "");
    let output = agent(&config, &["show-identity", "--id", "hash_ek"]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let hash = said.lines().find_map(|line| line.strip_prefix("EK hash:")).unwrap().trim().to_owned();
    assert_eq!(hash.len(), 64);
    for words in [
        "issued by CN=swtpm-localca".to_owned(),
        format!("  {hash} = {hash}\n"),
        format!("keylime_tenant -c add --push-model -u {hash} --tpm_policy"),
    ] {
        assert!(said.contains(&words), "{words:?} is not in: {said}");
    }
    // The AK made for it is the one the agent will use.
    let again = agent(&config, &["show-identity", "--id", "hash_ek"]);
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn a_tpm_without_certificate_is_said_to_have_none() {
    let (site, swtpm) = (Site::new(), Swtpm::bare());
    let output = agent(&site.configure(&swtpm.tcti(), ""), &["show-identity"]);
    let said = said(&output);
    assert!(said.contains("no EK certificate") && said.contains("admission list"), "{said}");
}

#[test]
fn ways_to_sleep_that_exclude_each_other_are_refused() {
    for arguments in [
        &["run", "--once", "--every", "60"][..],
        &["run", "--every", "0"],
        &["run", "--every", "60", "--sleep", "60"],
        &["run", "--deadline", "60"],
    ] {
        assert_refused(&agent(Path::new("/x"), arguments), &["--every"]);
    }
}

#[test]
fn the_help_names_commands_and_exit_codes() {
    let help = |arguments: &[&str]| said(&agent(Path::new("/x"), arguments));
    let top = help(&["--help"]);
    for word in ["run", "check-config", "show-identity", "--config", "KEYLIME_MQTT_AGENT_"] {
        assert!(top.contains(word), "{top}");
    }
    let run = help(&["run", "--help"]);
    for word in ["--once", "--every", "--deadline", "Exit codes", "Keylime says FAIL"] {
        assert!(run.contains(word), "{run}");
    }
}
