//! An IoT gateway's mosquitto before the one in the cloud, with the configurations and the ACLs that are shipped.
//!
//! Each side has a CA of its own, as their page advises: what a site's CA issues opens nothing in the cloud.

use crate::broker::{Broker, Elsewhere};
use crate::device::{Device, DeviceSettings};
use crate::pki::Pki;
use crate::ports::Port;
use crate::scratch::Scratch;
use crate::world::{World, WorldSettings};
use anyhow::Result;
use std::path::Path;

/// Common name of the gateway's certificate, and its user in the shipped `cloud.acl`.
pub const GATEWAY: &str = "gateway-1";

/// Devices that the shipped `cloud.acl` lists behind the gateway.
pub const LISTED: [&str; 2] = ["device-a", "device-b"];

/// A world in the cloud, and a gateway that devices connect to.
pub struct Chain {
    /// Keylime, the bridge, the observer and the cloud's mosquitto
    pub world: World,
    /// The gateway's mosquitto
    pub gateway: Broker,
    /// The CA of the gateway's side
    pub site: Pki,
    _ports: [Port; 2],
}

impl Chain {
    /// Everything started.
    pub fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let ports = [Port::claim()?, Port::claim()?];
        let [cloud_port, gateway_port] = ports.each_ref().map(Port::number);
        let centre = Pki::in_dir(&scratch.subdir("pki")?)?;
        let site = Pki::in_dir(&scratch.subdir("site-pki")?)?;
        let cloud = mosquitto("cloud", cloud_port, "gateway/cloud.conf", "cloud.acl", Vec::new());
        let server = centre.issue("broker", &["localhost"])?;
        let cloud = Broker::configure_elsewhere(cloud, &scratch, &centre, server)?;

        let towards_cloud = centre.issue(GATEWAY, &[])?;
        let file = |name: &str| format!("/etc/mosquitto/keylime-mqtt/{name}");
        let is_at = |name: &str, path: &Path| (file(name), path.display().to_string());
        let replaced = vec![
            is_at("cloud-ca.pem", &centre.ca()),
            is_at("gateway.pem", &towards_cloud.certificate),
            is_at("gateway.key", &towards_cloud.key),
            ("address broker.example.org:8883".to_owned(), format!("address localhost:{cloud_port}")),
        ];
        let gateway = mosquitto("gateway", gateway_port, "gateway/gateway.conf", "gateway.acl", replaced);
        let server = site.issue("gateway-broker", &["localhost"])?;
        let mut gateway = Broker::configure_elsewhere(gateway, &scratch, &site, server)?;

        let mut world = World::around(cloud, centre, scratch, &WorldSettings::default())?;
        world.start_parts()?;
        gateway.power_on()?;
        Ok(Self { world, gateway, site, _ports: ports })
    }

    /// A new device behind the gateway; its agent is not started.
    pub fn device(&self, id: &str, settings: DeviceSettings) -> Result<Device> {
        let settings = DeviceSettings { id: Some(id.to_owned()), ..settings };
        let mut device = self.world.device(id, settings)?;
        let certificate = self.site.issue(id, &[])?;
        device.change_access(|access| {
            access.port = self.gateway.port();
            access.ca = self.site.ca();
            access.certificate = certificate;
        })?;
        Ok(device)
    }
}

/// On this machine, reached by `localhost`.
pub fn mosquitto(
    name: &str,
    port: u16,
    configuration: &'static str,
    acl: &'static str,
    replaced: Vec<(String, String)>,
) -> Elsewhere {
    Elsewhere {
        name: name.to_owned(),
        launcher: Vec::new(),
        host: "localhost".to_owned(),
        port,
        configuration,
        acl,
        replaced,
        granted: String::new(),
        websocket_port: None,
    }
}
