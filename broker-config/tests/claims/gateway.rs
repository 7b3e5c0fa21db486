//! The shipped gateway chain: two mosquittos, TLS on both legs, their ACLs.

use std::{fs, path::Path};

use crate::{
    mosquitto::{Mosquitto, free_port},
    pki::Pki,
    reader::Client,
};

struct Chain {
    gateway: Mosquitto,
    cloud: Mosquitto,
    /// Of the gateway and its devices.
    site: Pki,
    /// Of what connects to the cloud.
    centre: Pki,
}

impl Chain {
    fn start() -> Self {
        let (site, centre) = (Pki::named("site CA"), Pki::named("centre CA"));
        let shipped = |name: &str| fs::read_to_string(Path::new("gateway").join(name)).unwrap();
        let here = |pki: &Pki, conf: String, port: u16| {
            let dir = pki.dir.path().display().to_string();
            conf.replace("listener 8883", &format!("listener {port}"))
                .replace("/etc/mosquitto/keylime-mqtt", &dir)
                .replace("/var/lib/mosquitto/", &format!("{dir}/"))
        };
        let (inside, outside) = (free_port(), free_port());
        fs::write(centre.file("cloud.acl"), shipped("cloud.acl")).unwrap();
        let conf = here(&centre, shipped("cloud.conf"), outside);
        let cloud = Mosquitto::from_conf(&centre, outside, conf);

        centre.issue("gateway-1", &[]);
        for (from, to) in
            [("ca.pem", "cloud-ca.pem"), ("gateway-1.pem", "gateway.pem"), ("gateway-1.key", "gateway.key")]
        {
            fs::copy(centre.file(from), site.file(to)).unwrap();
        }
        fs::write(site.file("gateway.acl"), shipped("gateway.acl")).unwrap();
        let address = "address broker.example.org:8883";
        let conf = here(&site, shipped("gateway.conf"), inside);
        assert!(conf.contains(address), "the shipped gateway.conf has no {address:?} any more");
        let conf = conf.replace(address, &format!("address localhost:{outside}"));
        let gateway = Mosquitto::from_conf(&site, inside, conf);
        Self { gateway, cloud, site, centre }
    }

    async fn bridge(&self) -> Client {
        let bridge = self.centre.client("keylime-bridge", self.cloud.port, "");
        let topics = ["keylime/v1/+/evidence", "keylime/v1/+/evidence/+", "keylime/v1/+/presence"];
        Client::connected(bridge, "keylime-bridge", &topics).await
    }

    async fn device(&self, id: &str) -> Client {
        let broker = self.site.client(id, self.gateway.port, "");
        Client::connected(broker, id, &[&format!("keylime/v1/{id}/challenge"), "keylime/v1/+/challenge"])
            .await
    }

    /// Until one message went the whole way: the gateway connects to the cloud in its own time.
    async fn passes(device: &Client, bridge: &mut Client) {
        let mut tries = tokio::time::interval(std::time::Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = tries.tick() => device.publish("keylime/v1/device-a/evidence", *b"are you there"),
                (_, payload) = bridge.message() => {
                    assert_eq!(payload, b"are you there");
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn evidence_goes_up_and_challenges_come_down_to_the_device_they_are_for() {
    let chain = Chain::start();
    let (mut bridge, mut device, mut other) =
        (chain.bridge().await, chain.device("device-a").await, chain.device("device-b").await);
    Chain::passes(&device, &mut bridge).await;
    device.publish("keylime/v1/device-a/evidence/via-1", *b"to one bridge");
    device.publish("keylime/v1/device-a/presence", *b"here");
    device.publish("keylime/v1/device-a/evidence", *b"last");
    let seen = bridge.messages_until(b"last").await;
    for (topic, payload) in [("evidence/via-1", &b"to one bridge"[..]), ("presence", b"here")] {
        let expected = (format!("keylime/v1/device-a/{topic}"), payload.to_vec());
        assert!(seen.contains(&expected), "{expected:?} is not among {seen:?}");
    }
    bridge.publish("keylime/v1/device-b/challenge", *b"for b");
    bridge.publish("keylime/v1/device-a/challenge", *b"for a");
    assert_eq!(device.message().await, ("keylime/v1/device-a/challenge".to_owned(), b"for a".to_vec()));
    assert_eq!(other.message().await, ("keylime/v1/device-b/challenge".to_owned(), b"for b".to_vec()));
}

#[tokio::test]
async fn neither_a_device_nor_the_gateway_speaks_for_others() {
    let chain = Chain::start();
    let (mut bridge, device) = (chain.bridge().await, chain.device("device-a").await);
    Chain::passes(&device, &mut bridge).await;
    // a device behind the gateway that the cloud does not list
    let unlisted = chain.device("device-x").await;
    unlisted.publish("keylime/v1/device-x/evidence", *b"unlisted");
    // a listed device that speaks for another
    device.publish("keylime/v1/device-b/evidence", *b"forged");
    device.publish("keylime/v1/device-a/challenge", *b"forged");
    device.publish("keylime/v1/device-a/result", *b"forged");
    device.publish("keylime/v1/device-a/evidence", *b"last");
    let seen = bridge.messages_until(b"last").await;
    assert!(seen.iter().all(|(_, payload)| payload == b"are you there"), "{seen:?}");
    // what the gateway itself could send with its own certificate
    let gateway = Client::start(chain.centre.client("gateway-1", chain.cloud.port, ""), "gateway-1", &[]);
    gateway.publish("keylime/v1/device-x/evidence", *b"forged");
    gateway.publish("keylime/v1/gateway-1/evidence", *b"forged");
    gateway.publish("keylime/v1/device-a/result", *b"forged");
    gateway.publish("keylime/v1/device-b/evidence", *b"last of the gateway");
    let seen = bridge.messages_until(b"last of the gateway").await;
    assert!(seen.iter().all(|(_, payload)| payload != b"forged" && payload != b"unlisted"), "{seen:?}");
}

#[tokio::test]
async fn a_cloud_that_restarts_is_found_again_by_the_gateway() {
    let mut chain = Chain::start();
    let (mut bridge, device) = (chain.bridge().await, chain.device("device-a").await);
    Chain::passes(&device, &mut bridge).await;
    chain.cloud.kill();
    bridge.loss().await;
    chain.cloud.restart();
    bridge.is_connected().await;
    Chain::passes(&device, &mut bridge).await;
}
