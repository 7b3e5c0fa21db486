//! Certificates, keys and CA files that change under a running client.

use std::fs;

use keylime_mqtt_broker_config::LinkEvent;
use tokio_rustls::rustls::version::TLS13;

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client, relay::Relay, scripted::ScriptedBroker};

#[tokio::test]
async fn a_changed_certificate_is_shown_on_a_new_connection_once_nothing_is_under_way() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS13]).await;
    let mut client =
        Client::start(pki.client("client", broker.port, "file_check_seconds = 1"), "client", &[]);
    client.publish("t", *b"x");
    let mut session = broker.accept().await;
    let first = session.client_certificate();
    let unanswered = session.published().await.unwrap();
    pki.issue("client", &[]);
    client.is_connected().await;
    // the acknowledgement that is due comes before the end of this connection
    session.acknowledge(unanswered.packet_id).await;
    session.said_goodbye().await;
    drop(session);
    let session = broker.accept().await;
    assert_ne!(session.client_certificate(), first);
    let LinkEvent::Disconnected { reason } = client.event().await else {
        panic!("something else came first")
    };
    assert!(reason.contains("certificate or key changed"), "{reason:?}");
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_client_connecting_with_what_it_has() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let relay = Relay::to(broker.port);
    let settings = pki.client("client", relay.port, "file_check_seconds = 1");
    let mut client = Client::connected(settings, "client", &["t"]).await;
    for (file, content) in [("client.pem", "not PEM"), ("client.key", ""), ("ca.pem", "")] {
        fs::write(pki.file(file), content).unwrap();
        relay.cut();
        client.loss().await;
        client.is_connected().await;
        client.round_trip("t").await;
    }
}

#[tokio::test]
async fn a_new_ca_file_ends_refusals_without_a_restart() {
    let (pki, new) = (Pki::new(), Pki::named("new CA"));
    // the broker moved to a new CA, and takes clients of both
    let both =
        fs::read_to_string(pki.file("ca.pem")).unwrap() + &fs::read_to_string(new.file("ca.pem")).unwrap();
    fs::write(new.file("ca.pem"), &both).unwrap();
    let broker = Mosquitto::open(&new);
    let mut client = Client::start(pki.client("client", broker.port, ""), "client", &["t"]);
    assert!(client.loss().await.contains("broker.ca_file"));
    fs::write(pki.file("ca.pem"), &both).unwrap();
    client.is_connected().await;
    client.round_trip("t").await;
}
