//! Connections that hang without an error.

use keylime_mqtt_broker_config::{PublishError, Qos};

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client, relay::Relay};

#[tokio::test]
async fn a_connection_that_takes_no_more_bytes_is_given_up_and_replaced() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let settings = pki.client("client", relay.port, "keep_alive_seconds = 5\nack_timeout_seconds = 600");
    let mut client = Client::connected(settings, "client", &["t"]).await;
    relay.stall();
    // unacknowledged by nature, so that only the silence of the hung poll can give it away
    while client.link.publish("flood", vec![0; 100_000], Qos::AtMostOnce, false)
        != Err(PublishError::QueueFull)
    {
        tokio::task::yield_now().await;
    }
    let reason = client.loss().await;
    assert!(reason.starts_with("no progress for 10 s"), "{reason}");
    client.is_connected().await;
    while client.link.publish("t", b"alive".to_vec(), Qos::AtLeastOnce, false) == Err(PublishError::QueueFull)
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.message().await.1, b"alive");
}

#[tokio::test]
async fn a_message_that_is_never_acknowledged_is_sent_again_on_a_new_connection() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let settings = pki.client("client", relay.port, "ack_timeout_seconds = 5");
    let mut client = Client::connected(settings, "client", &["t"]).await;
    client.round_trip("t").await;
    relay.swallow();
    client.publish("t", *b"into the black hole");
    let reason = client.loss().await;
    assert!(reason.contains("broker.ack_timeout_seconds"), "{reason}");
    // the acknowledgement of the message before may have been swallowed too: then it comes once more
    let before = client.messages_until(b"into the black hole").await;
    assert!(before.iter().all(|(_, payload)| payload == b"round trip"), "{before:?}");
}

#[tokio::test]
async fn an_idle_connection_into_a_black_hole_is_noticed_and_replaced() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let settings = pki.client("client", relay.port, "keep_alive_seconds = 5");
    let mut client = Client::connected(settings, "client", &["t"]).await;
    client.round_trip("t").await;
    relay.swallow();
    let reason = client.loss().await;
    assert!(reason.contains("hangs"), "{reason}");
    client.is_connected().await;
    client.round_trip("t").await;
}

#[tokio::test]
async fn messages_without_acknowledgement_do_not_hide_that_the_connection_is_dead() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let settings = pki.client("client", relay.port, "keep_alive_seconds = 5\nack_timeout_seconds = 600");
    let mut client = Client::connected(settings, "client", &["t"]).await;
    client.round_trip("t").await;
    relay.swallow();
    client.link.publish("t", b"lost".to_vec(), Qos::AtMostOnce, false).unwrap();
    let reason = client.loss().await;
    assert!(reason.contains("hangs"), "{reason}");
    // sent once: the next connection knows nothing of it
    client.round_trip("t").await;
}
