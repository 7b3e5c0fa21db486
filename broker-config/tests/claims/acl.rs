//! The shipped mosquitto files: a certificate opens its own topics and no others.

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client};

const BRIDGE: &str = "keylime-bridge";
const RELYING_PARTY: &str = "keylime-relying-party";
/// Everything there is; mosquitto answers even forbidden filters with success and then delivers nothing.
const ALL: &[&str] = &["#"];

struct Site {
    pki: Pki,
    broker: Mosquitto,
}

impl Site {
    fn new() -> Self {
        let pki = Pki::new();
        let broker = Mosquitto::as_shipped(&pki);
        Self { pki, broker }
    }

    /// A client with a certificate of this name, listening to all it is allowed to hear.
    async fn client(&self, name: &str) -> Client {
        Client::connected(self.pki.client(name, self.broker.port, ""), name, ALL).await
    }
}

fn topics(messages: Vec<(String, Vec<u8>)>) -> Vec<String> {
    messages.into_iter().map(|(topic, _)| topic).collect()
}

#[tokio::test]
async fn a_device_writes_its_own_evidence_and_presence_and_nothing_else() {
    let site = Site::new();
    let mut bridge = site.client(BRIDGE).await;
    let mut relying_party = site.client(RELYING_PARTY).await;
    let mut other = site.client("dev-2").await;
    let device = site.client("dev-1").await;
    for topic in [
        "keylime/v1/dev-2/evidence",
        "keylime/v1/dev-2/evidence/b1",
        "keylime/v1/dev-2/presence",
        "keylime/v1/dev-2/challenge",
        "keylime/v1/dev-1/challenge",
        "keylime/v1/dev-1/result",
        "keylime/v1/dev-2/result",
        "keylime/v1/dev-1/evidence/b1/more",
        "keylime/v1/evidence",
        "keylime/v1-bridge/b1",
        "elsewhere",
    ] {
        device.publish(topic, *b"forbidden");
    }
    let own = ["keylime/v1/dev-1/presence", "keylime/v1/dev-1/evidence/b1", "keylime/v1/dev-1/evidence"];
    for topic in own {
        device.publish(topic, *b"allowed");
    }
    let mut heard = Vec::new();
    while heard.len() < own.len() {
        heard.push(bridge.message().await.0);
    }
    assert_eq!(heard, own);
    // these come after everything the device sent
    bridge.publish("keylime/v1/dev-2/challenge", *b"last");
    bridge.publish("keylime/v1/dev-2/result", *b"last");
    assert_eq!(topics(other.messages_until(b"last").await), [] as [String; 0]);
    assert_eq!(topics(relying_party.messages_until(b"last").await), [] as [String; 0]);
}

#[tokio::test]
async fn a_device_reads_its_own_challenge_and_the_bridges_status_and_nothing_else() {
    let site = Site::new();
    let bridge = site.client(BRIDGE).await;
    let mut device = site.client("dev-1").await;
    let other = site.client("dev-2").await;
    other.publish("keylime/v1/dev-2/evidence", *b"of another");
    other.publish("keylime/v1/dev-2/presence", *b"of another");
    for topic in ["keylime/v1/dev-2/challenge", "keylime/v1/dev-2/result", "keylime/v1/dev-1/result"] {
        bridge.publish(topic, *b"for another");
    }
    bridge.publish("keylime/v1-bridge/b1", *b"serving");
    assert_eq!(device.message().await, ("keylime/v1-bridge/b1".into(), b"serving".to_vec()));
    bridge.publish("keylime/v1/dev-1/challenge", *b"own");
    assert_eq!(device.message().await, ("keylime/v1/dev-1/challenge".into(), b"own".to_vec()));
}

#[tokio::test]
async fn neither_bridge_nor_relying_party_is_a_device_by_the_patterns() {
    let site = Site::new();
    let mut bridge = site.client(BRIDGE).await;
    let mut relying_party = site.client(RELYING_PARTY).await;
    let device = site.client("dev-1").await;
    for name in [BRIDGE, RELYING_PARTY] {
        for verb in ["evidence", "evidence/b1", "presence"] {
            bridge.publish(&format!("keylime/v1/{name}/{verb}"), *b"as a device");
            relying_party.publish(&format!("keylime/v1/{name}/{verb}"), *b"as a device");
        }
    }
    bridge.publish(&format!("keylime/v1/{BRIDGE}/challenge"), *b"to itself");
    bridge.publish(&format!("keylime/v1/{RELYING_PARTY}/challenge"), *b"to a relying party");
    bridge.publish("keylime/v1/dev-1/result", *b"last");
    assert_eq!(topics(relying_party.messages_until(b"last").await), [] as [String; 0]);
    // which waits for the broker's acknowledgements
    relying_party.link.shutdown().await;
    device.publish("keylime/v1/dev-1/evidence", *b"last");
    assert_eq!(topics(bridge.messages_until(b"last").await), [] as [String; 0]);
}

#[tokio::test]
async fn a_relying_party_reads_results_and_bridge_status_and_writes_nothing() {
    let site = Site::new();
    let bridge = site.client(BRIDGE).await;
    let mut relying_party = site.client(RELYING_PARTY).await;
    let mut device = site.client("dev-1").await;
    relying_party.publish("keylime/v1/dev-1/challenge", *b"forged");
    relying_party.publish("keylime/v1/dev-1/result", *b"forged");
    relying_party.publish("keylime/v1-bridge/b1", *b"forged");
    device.publish("keylime/v1/dev-1/evidence", *b"not for it");
    bridge.publish("keylime/v1-bridge/b1", *b"serving");
    bridge.publish("keylime/v1/dev-1/result", *b"pass");
    assert_eq!(relying_party.message().await, ("keylime/v1-bridge/b1".into(), b"serving".to_vec()));
    assert_eq!(relying_party.message().await, ("keylime/v1/dev-1/result".into(), b"pass".to_vec()));
    bridge.publish("keylime/v1/dev-1/challenge", *b"true");
    assert_eq!(device.message().await.1, b"serving");
    assert_eq!(device.message().await.1, b"true");
}

#[tokio::test]
async fn a_device_that_connects_with_the_client_id_of_another_throws_only_itself_out() {
    let site = Site::new();
    let bridge = site.client(BRIDGE).await;
    let mut victim = site.client("dev-1").await;
    let hostile = site.pki.client("dev-2", site.broker.port, "");
    let mut hostile = Client::connected(hostile, "dev-1", ALL).await;
    bridge.publish("keylime/v1/dev-1/challenge", *b"for the victim");
    assert_eq!(victim.message().await.1, b"for the victim");
    assert_eq!(victim.link.traffic().reconnects, 0);
    bridge.publish("keylime/v1/dev-2/challenge", *b"for dev-2");
    assert_eq!(hostile.message().await.1, b"for dev-2");
}
