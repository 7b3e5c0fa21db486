//! Several brokers: failover, return, and no attempt too many.

use keylime_mqtt_broker_config::LinkEvent;

use crate::{
    mosquitto::{Mosquitto, free_port},
    pki::Pki,
    reader::Client,
    relay::Relay,
};

fn fallback(port: u16) -> String {
    format!("[[fallback]]\nhost = 'localhost'\nport = {port}\n")
}

#[tokio::test]
async fn after_the_set_number_of_failures_the_next_broker_serves_and_what_was_queued_arrives_there() {
    let pki = Pki::new();
    let second = Mosquitto::open(&pki);
    let more = format!("fallback_after_attempts = 2\n{}", fallback(second.port));
    let mut client = Client::start(pki.client("client", free_port(), &more), "client", &["n"]);
    client.publish_numbers("n", 10);
    client.loss().await;
    client.loss().await;
    client.is_connected().await;
    client.numbers(10, |_| ()).await;
}

#[tokio::test]
async fn with_all_brokers_away_each_gets_its_turn_again_and_again() {
    let pki = Pki::new();
    // accepts and closes at once, and counts
    let (first, second, third) = (Relay::to(free_port()), Relay::to(free_port()), Relay::to(free_port()));
    let more = format!("fallback_after_attempts = 1\n{}{}", fallback(second.port), fallback(third.port));
    let mut client = Client::start(pki.client("client", first.port, &more), "client", &[]);
    for _ in 0..6 {
        client.loss().await;
    }
    assert_eq!((first.accepted(), second.accepted(), third.accepted()), (2, 2, 2));
}

#[tokio::test]
async fn the_connection_returns_to_the_first_broker_once_the_way_there_is_open() {
    let pki = Pki::new();
    let (mut first, second) = (Mosquitto::open(&pki), Mosquitto::open(&pki));
    let more =
        format!("fallback_after_attempts = 1\nfallback_return_seconds = 10\n{}", fallback(second.port));
    let settings = pki.client("client", first.port, &more);
    let mut client = Client::connected(settings, "client", &["t"]).await;
    first.kill();
    client.loss().await;
    client.is_connected().await;
    client.round_trip("t").await;
    // a broker that hears a message of the client is the one it is connected to
    first.restart();
    let mut witness = Client::connected(pki.client("witness", first.port, ""), "witness", &["w"]).await;
    let LinkEvent::Disconnected { reason } = client.event().await else {
        panic!("something else came first")
    };
    assert!(reason.contains("first broker is open again"), "{reason:?}");
    client.publish("w", *b"back");
    client.is_connected().await;
    assert_eq!(witness.message().await.1, b"back");
}

#[tokio::test]
async fn a_broker_named_twice_is_refused() {
    let pki = Pki::new();
    pki.issue("client", &[]);
    let settings = pki.settings("client", 8883, &fallback(8883));
    let said = settings.check().expect_err("this was accepted").to_string();
    assert!(said.contains("localhost:8883") && said.contains("broker.fallback"), "{said}");
}
