//! Every folder with a broker's configuration has a page, an authorization file and a profile that is accepted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Format, Toml},
};
use keylime_mqtt_broker_config::BrokerSettings;
use serde::Deserialize;

use crate::pki::Pki;

/// What an operator puts into agent.toml or bridge.toml.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    broker: BrokerSettings,
}

/// Folder and authorization file; whether it was run.
const BROKERS: [(&str, &str, bool); 8] = [
    ("mosquitto", "acl", true),
    ("gateway", "cloud.acl", true),
    ("aws-iot-core", "device-policy.json", false),
    ("azure-event-grid", "authorization.json", false),
    ("emqx", "acl.conf", false),
    ("hivemq", "ese-permissions.sql", false),
    ("nanomq", "nanomq_acl.conf", false),
    ("rmqtt", "rmqtt-acl.toml", false),
];

fn file(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name)
}

#[test]
fn every_profile_is_accepted_once_its_certificates_are_there() {
    for (folder, _, _) in BROKERS {
        let pki = Pki::new();
        pki.issue("client", &[]);
        let profile = Figment::from(Toml::file_exact(file(folder, "profile.toml")));
        let Profile { mut broker } = profile.extract().unwrap_or_else(|error| panic!("{folder}: {error}"));
        (broker.ca_file, broker.cert_file, broker.key_file) =
            (pki.file("ca.pem"), pki.file("client.pem"), pki.file("client.key"));
        broker.check().unwrap_or_else(|error| panic!("{folder}: {error}"));
    }
}

#[test]
fn what_a_profile_offers_commented_out_is_accepted_too() {
    for (folder, _, _) in BROKERS {
        let text = fs::read_to_string(file(folder, "profile.toml")).unwrap();
        // a comment begins "# ", a setting that is left out "#"
        let with_all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n"
            })
            .collect();
        Toml::from_str::<Profile>(&with_all).unwrap_or_else(|error| panic!("{folder}: {error}"));
    }
}

#[test]
fn every_broker_has_its_page_and_its_authorization_and_says_when_it_was_not_run() {
    for (folder, authorization, was_run) in BROKERS {
        assert!(file(folder, authorization).is_file(), "{folder} has no {authorization}");
        // mosquitto's page is the crate's
        if folder != "mosquitto" {
            let page = fs::read_to_string(file(folder, "README.md")).unwrap();
            let says_so = page.lines().take(4).any(|line| line.starts_with("> Written from"));
            assert_eq!(says_so, !was_run, "{folder}/README.md");
        }
    }
    for policy in [
        "aws-iot-core/device-policy.json",
        "aws-iot-core/bridge-policy.json",
        "azure-event-grid/authorization.json",
    ] {
        let text = fs::read_to_string(file(".", policy)).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{policy}: {error}"));
    }
}
