//! Messages that are too large, out and in.

use std::{fs, process::Command, time::Duration};

use keylime_mqtt_broker_config::{PublishError, Qos};

use tokio_rustls::rustls::version::TLS13;

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client, relay::Relay, scripted::ScriptedBroker};

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

/// A broker that takes packets up to this size and closes the connection over larger ones.
fn takes_up_to(pki: &Pki, bytes: usize) -> Mosquitto {
    Mosquitto::open_with(pki, &format!("max_packet_size {bytes}\n"))
}

#[tokio::test]
async fn what_the_broker_closed_two_connections_over_is_not_sent_again_and_smaller_ones_pass() {
    let pki = Pki::new();
    let broker = takes_up_to(&pki, 20_000);
    let mut client = Client::connected(pki.client("client", broker.port, ""), "client", &["t"]).await;
    let configured = client.link.payload_limit("t");
    client.publish("t", vec![1; 60_000]);
    client.publish("t", vec![2; 60_000]);
    client.publish("t", *b"small");
    // it waits behind the large ones until those are given up
    assert_eq!(client.message().await.1, b"small");
    let learned = client.link.payload_limit("t");
    assert!(learned < 31_000 && learned < configured, "{learned}");
    // the broker closed two connections, and a third carries all that follows
    assert_eq!(client.link.traffic().reconnects, 2);
    assert!(matches!(
        client.link.publish("t", vec![0; 60_000], Qos::AtLeastOnce, false),
        Err(PublishError::TooLarge { .. })
    ));
    client.publish("t", vec![3; 15_000]);
    assert_eq!(client.message().await.1, vec![3; 15_000]);
}

#[tokio::test]
async fn a_broker_that_takes_less_than_the_exchange_needs_is_told_what_to_take() {
    let pki = Pki::new();
    let broker = takes_up_to(&pki, 6000);
    let mut client = Client::connected(pki.client("client", broker.port, &limit()), "client", &["t"]).await;
    client.publish("t", vec![0; 8000]);
    let reasons = [client.loss().await, client.loss_after_connecting().await];
    assert!(!reasons[0].contains("9216"), "{reasons:?}");
    assert!(reasons[1].contains("raise its limit to 9216 bytes or more"), "{reasons:?}");
    // and it is gone: what follows passes
    client.publish("t", *b"small");
    assert_eq!(client.message().await.1, b"small");
}

#[tokio::test]
async fn scripted_no_more_bytes_are_unacknowledged_than_the_broker_takes() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS13]).await;
    let window = "keep_alive_seconds = 5\nmax_in_flight_bytes = 13000";
    let client = Client::start(pki.client("client", broker.port, window), "client", &[]);
    let mut session = broker.accept().await;
    // of this size the link itself would have three under way before it knows its speed
    for number in 0..4 {
        client.publish("t", vec![number; 6_000]);
    }
    let sent = session.published_until_pinged().await;
    assert_eq!(sent.iter().map(|published| published.payload[0]).collect::<Vec<_>>(), [0, 1]);
    session.acknowledge(sent[0].packet_id).await;
    assert_eq!(session.published().await.unwrap().payload[0], 2);
}

#[tokio::test]
async fn a_broker_without_retained_messages_serves_who_sends_none() {
    let pki = Pki::new();
    let broker = Mosquitto::open_with(&pki, "retain_available false\n");
    let mut client =
        Client::connected(pki.client("client", broker.port, "retain = false"), "client", &["t"]).await;
    client.link.publish("t", b"kept".to_vec(), Qos::AtLeastOnce, true).unwrap();
    assert_eq!(client.message().await.1, b"kept");
    assert_eq!(client.link.traffic().reconnects, 0);
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
