//! A wrong `[broker]` table is refused with the key, the file and the remedy.

use std::{fs, os::unix::fs::PermissionsExt};

use keylime_mqtt_broker_config::BrokerSettings;

use crate::pki::{Pki, table};

fn client() -> (Pki, BrokerSettings) {
    let pki = Pki::new();
    pki.issue("client", &[]);
    let settings = pki.settings("client", 8883, "");
    (pki, settings)
}

/// What `check` says, or fails when it is content.
fn complaint(settings: &BrokerSettings, about: &[&str]) {
    let said = settings.check().expect_err("this was accepted").to_string();
    for word in about {
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    }
}

#[test]
fn a_table_with_the_files_alone_is_enough_and_takes_the_documented_defaults() {
    let (pki, _) = client();
    let dir = pki.dir.path().display();
    let toml = format!(
        "host = 'localhost'\nca_file = '{dir}/ca.pem'\ncert_file = '{dir}/client.pem'\nkey_file = '{dir}/client.key'"
    );
    let settings = table(&[&toml]).unwrap();
    let checked = settings.check().unwrap();
    assert_eq!(checked.address(), "localhost:8883");
    assert_eq!((settings.keep_alive_seconds, settings.allow_tls12), (300, false));
}

#[test]
fn an_unknown_or_missing_key_is_an_error_that_names_it() {
    let unknown = table(&["host = 'h'\nca_file = 'a'\ncert_file = 'b'\nkey_file = 'c'\nkeep_alive = 3"]);
    assert!(unknown.unwrap_err().to_string().contains("keep_alive"));
    let missing = table(&["host = 'h'\nca_file = 'a'\nkey_file = 'c'"]);
    assert!(missing.unwrap_err().to_string().contains("cert_file"));
}

#[test]
fn numbers_outside_their_range_are_refused_with_the_range() {
    for (key, value, bound) in [
        ("keep_alive_seconds", 4, "5"),
        ("keep_alive_seconds", 1161, "1160"),
        ("max_packet_bytes", 9000, "9216"),
        ("max_packet_bytes", 2_000_000, "1048576"),
        ("connect_timeout_seconds", 0, "600"),
        ("ack_timeout_seconds", 4, "3600"),
        ("reconnect_first_seconds", 0, "3600"),
        ("reconnect_longest_seconds", 0, "3600"),
        ("port", 0, "65535"),
    ] {
        let pki = Pki::new();
        pki.issue("client", &[]);
        let settings = pki.settings("client", 8883, &format!("{key} = {value}"));
        complaint(&settings, &[&format!("broker.{key} = {value}"), bound]);
    }
}

#[test]
fn a_host_or_client_id_that_cannot_work_is_refused() {
    let (_pki, mut settings) = client();
    for host in ["", "two words", "[::1]", "host:8883", "mqtts://host"] {
        settings.host = host.into();
        complaint(&settings, &["broker.host", "name"]);
    }
    let (_pki, mut settings) = client();
    for id in ["", "dev/1", "dev+", "#"] {
        settings.client_id = Some(id.into());
        complaint(&settings, &["broker.client_id", "characters"]);
    }
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    let (pki, settings) = client();
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(pki.file("client.key"), fs::Permissions::from_mode(mode)).unwrap();
        complaint(&settings, &["broker.key_file", "client.key", "chmod 600"]);
    }
}

#[test]
fn a_file_that_is_absent_empty_or_something_else_is_refused_by_name() {
    for (key, file) in [("ca_file", "ca.pem"), ("cert_file", "client.pem"), ("key_file", "client.key")] {
        let (pki, settings) = client();
        fs::write(pki.file(file), "").unwrap();
        complaint(&settings, &[&format!("broker.{key}"), file, "holds no"]);
        fs::write(pki.file(file), "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
        complaint(&settings, &[&format!("broker.{key}"), file]);
        fs::remove_file(pki.file(file)).unwrap();
        complaint(&settings, &[&format!("broker.{key}"), file, "check the path"]);
    }
}

#[test]
fn a_ca_file_with_one_unusable_certificate_among_good_ones_is_refused() {
    let (pki, settings) = client();
    let mut file = fs::read_to_string(pki.file("ca.pem")).unwrap();
    file += "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(pki.file("ca.pem"), file).unwrap();
    complaint(&settings, &["broker.ca_file", "number 2"]);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (pki, mut settings) = client();
    pki.issue("other", &[]);
    settings.key_file = pki.file("other.key");
    complaint(&settings, &["broker.cert_file", "client.pem", "broker.key_file", "other.key"]);
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_without_showing_its_password() {
    let pki = Pki::new();
    pki.issue("client", &[]);
    let password = pki.file("password");
    fs::write(&password, "s3cret\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let with_file = format!("url = 'http://p:1'\nuser = 'u'\npassword_file = '{}'", password.display());
    for (proxy, about) in [
        ("url = 'https://u:s3cret@p:1'", &["broker.proxy.url", "TLS to the proxy"][..]),
        ("url = 'socks5://p:1'", &["broker.proxy.url", "not an HTTP proxy"]),
        ("url = 'http://u:s3cret@p:1'", &["broker.proxy.password_file"]),
        ("url = 'http://p:0'", &["broker.proxy.url", "http://host:port"]),
        ("url = 'http://p:1/path'", &["broker.proxy.url", "path"]),
        ("url = 'http://p:1'\nuser = 'u'", &["user", "password_file"]),
        (&with_file, &["broker.proxy.password_file", "chmod 600"]),
    ] {
        let settings = pki.settings("client", 443, &format!("[proxy]\n{proxy}"));
        complaint(&settings, about);
        assert!(!settings.check().unwrap_err().to_string().contains("s3cret"), "{proxy}");
    }
    let settings = pki.settings("client", 443, "host = 'broker.test'");
    let said = settings.check_with(&|_| Some("https://u:s3cret@p:1".to_owned())).unwrap_err().to_string();
    assert!(said.contains("HTTPS_PROXY") && !said.contains("s3cret"), "{said}");
}

#[test]
fn a_wrong_word_or_key_for_the_proxy_is_an_error_that_says_what_may_stand_there() {
    for (proxy, about) in [
        ("proxy = 'http://u:s3cret@p:1'", "environment"),
        ("proxy = 3", "environment"),
        ("[proxy]\nurl = 'http://p:1'\nport = 3", "port"),
        ("[proxy]\nuser = 'u'", "url"),
    ] {
        let said = table(&["host = 'h'\nca_file = 'a'\ncert_file = 'b'\nkey_file = 'c'", proxy]).unwrap_err();
        assert!(said.to_string().contains(about) && !said.to_string().contains("s3cret"), "{said}");
    }
}

#[test]
fn transport_settings_that_cannot_work_or_do_nothing_are_refused() {
    for (more, about) in [
        ("alpn = ['']", "broker.alpn"),
        ("alpn = ['two words']", "broker.alpn"),
        ("transport = 'websocket'\nwebsocket_path = 'mqtt'", "broker.websocket_path"),
        ("transport = 'websocket'\nwebsocket_path = '/a b'", "broker.websocket_path"),
        ("transport = 'websocket'\nwebsocket_headers = { Host = 'h' }", "broker.websocket_headers"),
        (
            "transport = 'websocket'\nwebsocket_headers = { Sec-WebSocket-Key = 'h' }",
            "broker.websocket_headers",
        ),
        ("transport = 'websocket'\nwebsocket_headers = { a = \"b\\nc\" }", "broker.websocket_headers"),
        ("websocket_path = '/mqtt'", "broker.transport"),
        ("fallback_after_attempts = 0", "broker.fallback_after_attempts"),
        ("fallback_return_seconds = 9", "broker.fallback_return_seconds"),
        ("file_check_seconds = 0", "broker.file_check_seconds"),
        ("[[fallback]]\nhost = 'two words'", "two words"),
    ] {
        let pki = Pki::new();
        pki.issue("client", &[]);
        complaint(&pki.settings("client", 8883, more), &[about]);
    }
}

#[test]
fn the_default_port_follows_the_transport() {
    let pki = Pki::new();
    pki.issue("client", &[]);
    let mut settings = pki.settings("client", 1, "transport = 'websocket'");
    settings.port = None;
    assert_eq!(settings.check().unwrap().address(), "localhost:443");
    settings.host = "2001:db8::7".into();
    assert_eq!(settings.check().unwrap().address(), "[2001:db8::7]:443");
}
