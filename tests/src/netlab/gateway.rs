//! An IoT gateway on the edge: a mosquitto for the site's devices that bridges to the one in the cloud.

use super::site::{GATEWAY, Site};
use crate::broker::{Broker, Elsewhere};
use crate::pki::Pki;
use crate::scratch::Scratch;
use anyhow::Result;

/// Common name of its certificate, and its user in the shipped `cloud.acl`.
const NAME: &str = "gateway-1";

/// The gateway's mosquitto, with the configuration and the ACL that are shipped.
#[derive(Debug)]
pub struct Gateway {
    broker: Broker,
}

impl Gateway {
    /// Starts it on the site's edge. The cloud knows it and devices called `device-a` and `device-b`.
    pub fn start(site: &Site, scratch: &Scratch, pki: &Pki) -> Result<Self> {
        let towards_devices = pki.issue("gateway-broker", &[GATEWAY])?;
        let towards_cloud = pki.issue(NAME, &[])?;
        let file = |name: &str| format!("/etc/mosquitto/keylime-mqtt/{name}");
        let place = Elsewhere {
            name: "gateway".to_owned(),
            launcher: site.edge().launcher(&[]),
            host: GATEWAY.to_owned(),
            port: 8883,
            configuration: "gateway/gateway.conf",
            acl: "gateway.acl",
            replaced: vec![
                (file("cloud-ca.pem"), pki.ca().display().to_string()),
                (file("gateway.pem"), towards_cloud.certificate.display().to_string()),
                (file("gateway.key"), towards_cloud.key.display().to_string()),
            ],
            granted: String::new(),
            websocket_port: None,
        };
        let mut broker = Broker::configure_elsewhere(place, scratch, pki, towards_devices)?;
        broker.power_on()?;
        Ok(Self { broker })
    }

    /// Switches it off.
    pub fn kill(&mut self) {
        self.broker.kill();
    }

    /// Switches it on again.
    pub fn power_on(&mut self) -> Result<()> {
        self.broker.power_on()
    }
}
