//! Every transport straight, through a proxy and through a proxy with a password; IPv4 and IPv6.

use keylime_mqtt_broker_config::CheckedBroker;

use crate::{
    mosquitto::Mosquitto,
    pki::Pki,
    reader::Client,
    squid::{PASSWORD, Squid, USER},
};

/// Something small and something of several frames and TLS records goes there and comes back.
async fn carries_messages(broker: CheckedBroker) {
    let mut client = Client::connected(broker, "client", &["t"]).await;
    client.round_trip("t").await;
    let large: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    client.publish("t", large.clone());
    assert_eq!(client.message().await.1, large, "another message came back");
}

const WEBSOCKET: &str = "transport = 'websocket'\n";
const ALPN: &str = "alpn = ['x-amzn-mqtt-ca', 'mqtt']\n";

#[tokio::test]
async fn tls_alpn_and_websocket_carry_messages_straight_through_a_proxy_and_with_a_password() {
    let pki = Pki::new();
    let broker = Mosquitto::with_websocket(&pki);
    for (port, transport) in [(broker.port, ""), (broker.port, ALPN), (broker.websocket_port, WEBSOCKET)] {
        let (open, closed) = (Squid::open(port), Squid::with_basic(port));
        for way in ["proxy = 'none'\n".into(), open.table(None), closed.table(Some(PASSWORD))] {
            carries_messages(pki.client("client", port, &format!("{transport}{way}"))).await;
        }
    }
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_taken_with_its_password_and_resolves_the_brokers_name() {
    let pki = Pki::new();
    pki.issue("broker", &["broker.test"]);
    let broker = Mosquitto::open(&pki);
    let squid = Squid::with_basic(broker.port);
    pki.issue("client", &[]);
    // a name that only the proxy knows: a way around it would not get there
    let settings = pki.settings("client", broker.port, "host = 'broker.test'");
    let url = format!("http://{USER}:s3cret%20pass@127.0.0.1:{}/", squid.port);
    for variable in ["HTTPS_PROXY", "https_proxy"] {
        let checked = settings.check_with(&|name| (name == variable).then(|| url.clone())).unwrap();
        assert!(!format!("{checked:?}").contains("s3cret"), "the password is in Debug output");
        carries_messages(checked).await;
    }
}

#[tokio::test]
async fn no_proxy_and_proxy_none_lead_straight_to_the_broker() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    pki.issue("client", &[]);
    // nothing listens there: to go through it would fail
    let dead = |name: &str| (name == "HTTPS_PROXY").then(|| "http://127.0.0.1:1".to_owned());
    let excepted = |name: &str| dead(name).or_else(|| (name == "no_proxy").then(|| "127.0.0.0/8".to_owned()));
    let settings = |more| pki.settings("client", broker.port, more);
    carries_messages(settings("proxy = 'none'").check_with(&dead).unwrap()).await;
    carries_messages(settings("proxy = 'environment'").check_with(&excepted).unwrap()).await;
    let through = pki.settings("client", broker.port, "host = 'broker.test'").check_with(&dead).unwrap();
    let reason = Client::start(through, "client", &[]).loss().await;
    assert!(reason.contains("HTTPS_PROXY") && reason.contains("127.0.0.1:1"), "{reason:?}");
}

#[tokio::test]
async fn an_ipv6_address_is_connected_to_and_verified_straight_through_a_proxy_and_as_a_websocket() {
    let pki = Pki::new();
    pki.issue("broker", &["::1"]);
    let broker = Mosquitto::with_websocket(&pki);
    let squid = Squid::open(broker.port);
    let host = "host = '::1'\n";
    carries_messages(pki.client("client", broker.port, &format!("{host}proxy = 'none'"))).await;
    carries_messages(pki.client("client", broker.port, &format!("{host}{}", squid.table(None)))).await;
    let websocket = format!("{host}{WEBSOCKET}proxy = 'none'");
    carries_messages(pki.client("client", broker.websocket_port, &websocket)).await;
    // the same address under a certificate for another
    pki.issue("broker", &["::2"]);
    let broker = Mosquitto::open(&pki);
    let reason = Client::start(pki.client("client", broker.port, host), "client", &[]).loss().await;
    assert!(reason.contains("another host name"), "{reason:?}");
}

#[tokio::test]
async fn the_shipped_acl_holds_for_websocket_clients_by_their_certificate() {
    let pki = Pki::new();
    let broker = Mosquitto::as_shipped_with_websocket(&pki);
    let device = pki.client("device-a", broker.websocket_port, WEBSOCKET);
    let bridge = pki.client("keylime-bridge", broker.port, "");
    let mut bridge = Client::connected(bridge, "keylime-bridge", &["keylime/v1/+/evidence"]).await;
    let device = Client::connected(device, "device-a", &[]).await;
    device.publish("keylime/v1/device-b/evidence", *b"forged");
    device.publish("keylime/v1/device-a/evidence", *b"own");
    let (topic, payload) = bridge.message().await;
    assert_eq!((topic.as_str(), payload.as_slice()), ("keylime/v1/device-a/evidence", &b"own"[..]));
}
