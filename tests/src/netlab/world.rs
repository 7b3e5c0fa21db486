//! A world whose broker is on the internet and whose devices are behind firewalls.

use super::internet::{BROKER, BROKER_PORT, Internet, WEBSOCKET_PORT};
use super::proxy::Proxy;
use super::shaper;
use super::site::{Site, SiteSettings};
use super::ways::Way;
use crate::broker::{Broker, Elsewhere};
use crate::device::{Device, DeviceSettings};
use crate::pki::Pki;
use crate::scratch::Scratch;
use crate::world::{World, WorldSettings};
use anyhow::Result;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::runtime::Runtime;

/// Everything but sites and devices. Drop devices first, then gateways, then sites, then this.
pub struct NetWorld {
    /// Keylime, bridge and observer on this machine, the broker on the internet
    pub world: World,
    /// The proxy
    pub proxy: Proxy,
    /// Beyond the firewalls
    pub internet: Internet,
    sites: AtomicU8,
    links: Runtime,
}

/// Why there can be no network lab on this machine, if so.
pub fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    for program in ["ip", "nft", "haproxy", "squid"] {
        let asked =
            Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
        if !asked.is_ok_and(|status| status.success()) {
            return Some(format!("{program} is missing: `make setup` installs it"));
        }
    }
    Internet::make().err().map(|error| format!("{error:#}"))
}

impl NetWorld {
    /// Starts everything and connects the observer.
    pub fn start(settings: &WorldSettings) -> Result<Self> {
        let scratch = Scratch::new()?;
        let pki = Pki::in_dir(&scratch.subdir("pki")?)?;
        let mut internet = Internet::make()?;
        let proxy = Proxy::start(&internet, BROKER, &scratch)?;
        let place = Elsewhere {
            name: "broker".to_owned(),
            launcher: internet.namespace().launcher(&[]),
            host: internet.address().to_owned(),
            port: BROKER_PORT,
            configuration: "gateway/cloud.conf",
            acl: "cloud.acl",
            replaced: Vec::new(),
            granted: String::new(),
            websocket_port: Some(WEBSOCKET_PORT),
        };
        let server = pki.issue("broker", &[BROKER, internet.address()])?;
        let broker = Broker::configure_elsewhere(place, &scratch, &pki, server)?;
        let mut world = World::around(broker, pki, scratch, settings)?;
        world.broker.power_on()?;
        internet.share_port(&world.scratch)?;
        world.connect_observer()?;
        world.keylime.start_both()?;
        world.bridge.start()?;
        Ok(Self { world, proxy, internet, sites: AtomicU8::new(0), links: shaper::runtime()? })
    }

    /// A new site.
    pub fn site(&self, settings: &SiteSettings) -> Result<Site> {
        let number = self.sites.fetch_add(1, Ordering::Relaxed);
        Site::make(&self.internet, number, settings, self.links.handle())
    }

    /// A device at this site, booted, its agent set for this way and not started.
    pub fn device(&self, site: &Site, name: &str, way: &Way, settings: DeviceSettings) -> Result<Device> {
        let variables = way.environment();
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let launcher = site.device().launcher(&variables);
        let mut device = self.world.device(name, DeviceSettings { launcher, ..settings })?;
        device.swtpm().listen_in(&site.device().path())?;
        let dir = self.world.scratch.subdir(&format!("device-{name}"))?;
        let mut set = Ok(());
        device.change_access(|access| set = way.set(access, &dir))?;
        set?;
        if device.id() != device.ek_hash() {
            self.world.admit(device.id(), device.ek_hash())?;
        }
        Ok(device)
    }
}
