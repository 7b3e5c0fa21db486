//! Connections that are cut, brokers that restart.

use std::net::SocketAddr;

use keylime_mqtt_embedded_broker::{EmbeddedBroker, EmbeddedSettings};
use tokio_rustls::rustls::{HandshakeKind, version::TLS13};

use crate::{
    mosquitto::{Mosquitto, free_port},
    pki::Pki,
    reader::Client,
    relay::Relay,
    scripted::ScriptedBroker,
};

#[tokio::test]
async fn nothing_queued_is_lost_when_the_session_is_lost_again_and_again() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let mut reader = Client::connected(pki.client("reader", broker.port, ""), "reader", &["n"]).await;
    let sender = Client::connected(pki.client("sender", relay.port, ""), "sender", &[]).await;
    sender.publish_numbers("n", 400);
    // with 20 under way at any time, each cut hits a connection that owes something
    reader
        .numbers(400, |seen| {
            if seen % 100 == 50 {
                relay.cut();
            }
        })
        .await;
    assert!(
        sender.link.traffic().reconnects >= 3,
        "the connection was not cut often enough to show anything"
    );
}

#[tokio::test]
async fn what_is_published_before_the_broker_runs_is_sent_when_it_does() {
    let pki = Pki::new();
    let mut broker = Mosquitto::open(&pki);
    broker.kill();
    let mut sender = Client::start(pki.client("sender", broker.port, ""), "sender", &["n"]);
    sender.publish_numbers("n", 30);
    assert!(sender.loss().await.contains("broker.port"));
    broker.restart();
    sender.numbers(30, |_| ()).await;
}

#[tokio::test]
async fn subscriptions_return_after_the_broker_was_killed_and_restarted() {
    let pki = Pki::new();
    let mut broker = Mosquitto::open(&pki);
    // more than one SUBSCRIBE can carry
    let topics: Vec<String> = (0..11).map(|number| format!("t/{number}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut client = Client::connected(pki.client("client", broker.port, ""), "client", &topics).await;
    for _ in 0..2 {
        broker.kill();
        client.loss().await;
        broker.restart();
        client.is_connected().await;
        for topic in &topics {
            client.round_trip(topic).await;
        }
    }
}

pub(crate) fn embedded(pki: &Pki, port: u16) -> EmbeddedBroker {
    EmbeddedBroker::start(EmbeddedSettings {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        ca_file: pki.file("ca.pem"),
        cert_file: pki.file("broker.pem"),
        key_file: pki.file("broker.key"),
        max_payload: 1024,
    })
    .unwrap()
}

#[tokio::test]
async fn subscriptions_return_after_the_embedded_broker_restarted() {
    let pki = Pki::new();
    let broker = embedded(&pki, 0);
    let port = broker.port();
    let mut client = Client::connected(pki.client("client", broker.port(), ""), "client", &["t"]).await;
    client.round_trip("t").await;
    broker.stop();
    client.loss().await;
    let _broker = embedded(&pki, port);
    client.is_connected().await;
    client.round_trip("t").await;
}

#[tokio::test]
async fn a_closed_door_is_tried_a_few_times_not_thousands() {
    let pki = Pki::new();
    // nothing behind the relay: each connection is accepted and closed
    let relay = Relay::to(free_port());
    let mut client = Client::start(pki.client("client", relay.port, ""), "client", &[]);
    for attempt in 1..=4 {
        client.loss().await;
        assert_eq!(relay.accepted(), attempt, "an attempt was made without saying so");
    }
}

#[tokio::test]
async fn a_scripted_broker_that_acknowledges_out_of_order_and_vanishes_costs_nothing() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS13]).await;
    let settings = pki.client("client", broker.port, "keep_alive_seconds = 5");
    let client = Client::start(settings, "client", &[]);
    client.publish_numbers("n", 40);
    let mut session = broker.accept().await;
    let mut window = Vec::new();
    while window.len() < 20 {
        window.push(session.published().await.unwrap().packet_id);
    }
    // the next message gets the packet id of the first, still unacknowledged one: rumqttc's collision
    session.acknowledge(window[1]).await;
    session.acknowledge(window[3]).await;
    // a ping later it has tried, collided and waits
    session.pinged().await;
    drop(session);
    let mut session = broker.accept().await;
    let mut received = std::collections::BTreeSet::new();
    // all but the two that were acknowledged
    while received.len() < 38 {
        let message = session.published().await.expect("the client hung up before all was sent");
        session.acknowledge(message.packet_id).await;
        received.insert(u32::from_be_bytes(message.payload.try_into().unwrap()));
    }
    assert!(!received.contains(&1) && !received.contains(&3), "acknowledged messages were sent again");
}

#[tokio::test]
async fn a_reconnect_resumes_the_tls_session_with_a_scripted_broker() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS13]).await;
    let client = Client::start(pki.client("client", broker.port, ""), "client", &[]);
    client.publish("n", *b"x");
    let mut session = broker.accept().await;
    assert_eq!(session.handshake(), HandshakeKind::Full);
    // TLS tickets arrive with the first data the client reads
    let first = session.published().await.unwrap();
    session.acknowledge(first.packet_id).await;
    drop(session);
    assert_eq!(broker.accept().await.handshake(), HandshakeKind::Resumed);
}
