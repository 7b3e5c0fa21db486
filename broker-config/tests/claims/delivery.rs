//! Queues, ends and wills.

use keylime_mqtt_broker_config::{LinkEvent, PublishError, Qos, Will};

use crate::{
    mosquitto::{Mosquitto, free_port},
    pki::Pki,
    reader::{Client, within_patience},
    relay::Relay,
};

fn will() -> Will {
    Will { topic: "presence".into(), payload: b"gone".to_vec(), qos: Qos::AtLeastOnce, retain: false }
}

#[tokio::test]
async fn shutdown_sends_what_is_queued_and_leaves_no_will() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let mut reader =
        Client::connected(pki.client("reader", broker.port, ""), "reader", &["n", "presence"]).await;
    let mut sender =
        Client::start_with_will(pki.client("sender", broker.port, ""), "sender", &[], Some(will()));
    sender.is_connected().await;
    sender.publish_numbers("n", 200);
    let link = sender.link.clone();
    link.shutdown().await;
    assert_eq!(sender.link.publish("n", vec![], Qos::AtMostOnce, false), Err(PublishError::Stopped));
    assert_eq!(sender.incoming.next().await, None);
    reader.numbers(200, |_| ()).await;
    // a will would have been published before this
    reader.round_trip("n").await;
}

#[tokio::test]
async fn messages_without_acknowledgement_are_all_sent_before_the_end() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let mut reader = Client::connected(pki.client("reader", broker.port, ""), "reader", &["t"]).await;
    // queued before there is a connection
    let mut sender = Client::start(pki.client("sender", broker.port, ""), "sender", &[]);
    let sent: Vec<Vec<u8>> = (0..20_u8).map(|number| vec![number; 100]).collect();
    for payload in &sent {
        sender.link.publish("t", payload.clone(), Qos::AtMostOnce, false).unwrap();
    }
    sender.is_connected().await;
    sender.link.clone().shutdown().await;
    for payload in sent {
        assert_eq!(reader.message().await.1, payload);
    }
}

#[tokio::test]
async fn a_connection_that_vanishes_leaves_its_will() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let mut reader = Client::connected(pki.client("reader", broker.port, ""), "reader", &["presence"]).await;
    let mut sender =
        Client::start_with_will(pki.client("sender", relay.port, ""), "sender", &[], Some(will()));
    sender.is_connected().await;
    relay.cut();
    assert_eq!(reader.message().await, ("presence".into(), b"gone".to_vec()));
}

#[tokio::test]
async fn a_retained_message_reaches_who_subscribes_later_and_says_so() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let mut sender = Client::connected(pki.client("sender", broker.port, ""), "sender", &["t"]).await;
    sender.link.publish("t", b"kept".to_vec(), Qos::AtLeastOnce, true).unwrap();
    assert_eq!(sender.message().await.1, b"kept");
    let mut reader = Client::connected(pki.client("reader", broker.port, ""), "reader", &["t"]).await;
    let kept = LinkEvent::Message { topic: "t".into(), payload: b"kept".to_vec(), retain: true };
    assert_eq!(reader.event().await, kept);
}

#[tokio::test]
async fn the_queue_to_an_absent_broker_is_bounded_in_messages_and_in_bytes() {
    let pki = Pki::new();
    let fill = |payload: usize| {
        let client = Client::start(pki.client("client", free_port(), ""), "client", &[]);
        let mut queued = 0;
        loop {
            match client.link.publish("t", vec![0; payload], Qos::AtLeastOnce, false) {
                Ok(()) => queued += 1,
                Err(PublishError::QueueFull) => return queued,
                Err(other) => panic!("{other}"),
            }
            assert!(queued <= 4096, "no bound");
        }
    };
    assert_eq!(fill(0), 4096);
    let large = fill(100_000);
    assert!((70..84).contains(&large), "{large} messages of 100 kB in 8 MiB");
}

#[tokio::test]
async fn a_reader_that_falls_behind_loses_messages_but_not_the_connection() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let mut reader = Client::connected(pki.client("reader", broker.port, ""), "reader", &["t"]).await;
    let sender = Client::connected(pki.client("sender", broker.port, ""), "sender", &[]).await;
    // 20 MB for an inbox of 16 MiB
    for _ in 0..200 {
        while sender.link.publish("t", vec![0; 100_000], Qos::AtLeastOnce, false)
            == Err(PublishError::QueueFull)
        {
            tokio::task::yield_now().await;
        }
    }
    within_patience(async {
        while reader.link.traffic().messages_received < 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    sender.publish("t", *b"dropped as well");
    sender.link.shutdown().await;
    reader.publish("t", *b"last");
    let mut read = 0;
    let dropped = loop {
        let (_, payload) = reader.message().await;
        read += 1;
        let dropped = reader.link.traffic().messages_dropped;
        if payload == b"last" || read + dropped == 202 {
            break dropped;
        }
    };
    assert!((20..60).contains(&dropped), "{dropped} of 202 were dropped");
    assert_eq!(reader.link.traffic().reconnects, 0);
    reader.round_trip("t").await;
}

#[tokio::test]
async fn a_topic_that_no_broker_takes_is_refused_before_queueing() {
    let pki = Pki::new();
    let client = Client::start(pki.client("client", free_port(), ""), "client", &[]);
    for topic in ["", "a/+", "a/#", "nul\0"] {
        assert_eq!(client.link.publish(topic, vec![], Qos::AtLeastOnce, false), Err(PublishError::BadTopic));
    }
}
