//! Messages that are too large, out and in.

use std::{fs, process::Command, time::Duration};

use keylime_mqtt_broker_config::{PublishError, Qos};

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client, relay::Relay};

const LIMIT: usize = 16 * 1024;

fn limit() -> String {
    format!("max_packet_bytes = {LIMIT}")
}

#[tokio::test]
async fn an_oversize_publish_is_refused_before_queueing_and_others_still_pass() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let mut client = Client::connected(pki.client("client", broker.port, &limit()), "client", &["t"]).await;
    let largest = client.link.payload_limit("t");
    let refused = client.link.publish("t", vec![0; largest + 1], Qos::AtLeastOnce, false);
    assert_eq!(refused, Err(PublishError::TooLarge { size: LIMIT + 1, limit: LIMIT }));
    client.publish("t", vec![7; largest]);
    assert_eq!(client.message().await.1, vec![7; largest]);
    assert_eq!(client.link.traffic().reconnects, 0);
}

#[tokio::test]
async fn an_oversize_message_from_the_broker_is_dropped_and_the_connection_lives() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let large = "max_packet_bytes = 1000000";
    let mut sender = Client::connected(pki.client("sender", broker.port, large), "sender", &["t"]).await;
    // retained: it would come again on every connection
    sender.link.publish("t", vec![0; 900_000], Qos::AtLeastOnce, true).unwrap();
    sender.message().await;
    let mut client = Client::connected(pki.client("client", broker.port, &limit()), "client", &["t"]).await;
    sender.publish("t", *b"small");
    assert_eq!(client.message().await.1, b"small");
    let traffic = client.link.traffic();
    assert_eq!((traffic.messages_dropped, traffic.reconnects), (1, 0));
}

#[tokio::test]
async fn a_message_too_large_even_to_skip_is_said_so_and_not_fetched_again_at_once() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    retain_five_million_bytes(&pki, broker.port);
    let patient = pki.client("client", relay.port, "reconnect_longest_seconds = 3600");
    let mut client = Client::start(patient, "client", &["t"]);
    let reason = client.loss_after_connecting().await;
    assert!(reason.contains("retained") && reason.contains("50000"), "{reason}");
    // any other loss is followed by an attempt within reconnect_first_seconds, which is 1; here nothing can be
    // awaited, for nothing happens
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(relay.accepted(), 1);
}

/// Larger than a link of this crate publishes, so mosquitto's own client does it.
fn retain_five_million_bytes(pki: &Pki, port: u16) {
    pki.issue("sender", &[]);
    let payload = pki.file("payload");
    fs::write(&payload, vec![0; 5_000_000]).unwrap();
    let published = Command::new("mosquitto_pub")
        .args([
            "-h",
            "localhost",
            "-p",
            &port.to_string(),
            "-t",
            "t",
            "-r",
            "-q",
            "1",
            "--tls-version",
            "tlsv1.3",
        ])
        .arg("--cafile")
        .arg(pki.file("ca.pem"))
        .arg("--cert")
        .arg(pki.file("sender.pem"))
        .arg("--key")
        .arg(pki.file("sender.key"))
        .arg("-f")
        .arg(payload)
        .status()
        .expect("mosquitto_pub is not installed: apt-get install mosquitto-clients");
    assert!(published.success());
}
