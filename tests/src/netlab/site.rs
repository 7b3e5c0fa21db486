//! Where a device is: its namespace, the edge with firewall and NAT, and the link between the two.
//!
//! The firewall drops what comes in and lets out what its holes allow, nothing else. IPv4 is translated; a flow that
//! was silent for too long is forgotten, and what still comes of it is dropped without a word, as carriers do.

use super::command::run;
use super::internet::{BROKER, BROKER_V4, BROKER_V6, Internet};
use super::link::{Carried, LinkProfile};
use super::namespace::Namespace;
use super::proxy::{PROXY, PROXY_ADDRESS, ProxyPort};
use super::shaper::Shaper;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use tokio::runtime::Handle;

/// The gateway's name, where a site has one.
pub const GATEWAY: &str = "gateway.example.org";
const GATEWAY_ADDRESS: &str = "10.77.0.1";
const DEVICE_ADDRESS: &str = "10.77.0.2";

/// What the firewall lets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// To this port of any host
    Port(u16),
    /// To the proxy, at this port
    Proxy(ProxyPort),
    /// To the gateway on the edge itself
    Gateway,
}

/// What sites differ in.
#[derive(Clone, Debug)]
pub struct SiteSettings {
    /// What the firewall lets out; nothing else gets out
    pub holes: Vec<Hole>,
    /// IPv6 alone, instead of IPv4 alone
    pub ipv6: bool,
    /// The link between device and edge
    pub link: LinkProfile,
    /// Of that link
    pub mtu: u16,
    /// Seconds after which the edge forgets a silent TCP connection
    pub forgets_after: Option<u32>,
}

impl Default for SiteSettings {
    fn default() -> Self {
        Self { holes: Vec::new(), ipv6: false, link: LinkProfile::default(), mtu: 1500, forgets_after: None }
    }
}

/// A site. Dropping it ends the link and everything in its namespaces that has not ended before.
#[derive(Debug)]
pub struct Site {
    link: Shaper,
    device: Namespace,
    edge: Namespace,
    wan: String,
}

impl Site {
    /// Site `number` of this lab.
    pub(super) fn make(
        internet: &Internet,
        number: u8,
        settings: &SiteSettings,
        links: &Handle,
    ) -> Result<Self> {
        let device = Namespace::add(&internet.name(&format!("device{number}")))?;
        let edge = Namespace::add(&internet.name(&format!("edge{number}")))?;
        let link = Shaper::between((&device, "uplink"), (&edge, "lan"), number.into(), links)?;
        let mtu = settings.mtu.to_string();
        for (namespace, interface) in [(&device, "uplink"), (&edge, "lan")] {
            namespace.ip(&["link", "set", interface, "mtu", &mtu, "up"])?;
        }
        let port = format!("site{number}");
        let router = internet.namespace();
        run(&[
            "ip",
            "link",
            "add",
            "wan",
            "netns",
            edge.name(),
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            router.name(),
        ])?;
        router.ip(&["link", "set", &port, "up"])?;
        edge.ip(&["link", "set", "wan", "up"])?;
        let wan = if settings.ipv6 {
            address_ipv6(number, (&device, &edge, router), &port)?
        } else {
            address_ipv4(number, (&device, &edge, router), &port)?
        };
        if let Some(seconds) = settings.forgets_after {
            edge.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", &seconds.to_string())?;
        }
        // a flow it has forgotten is not taken up again in its middle
        edge.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        edge.run(&["nft", &firewall(settings)?])?;
        let site = Self { link, device, edge, wan };
        site.set_link(settings.link);
        Ok(site)
    }

    /// Where the device lives.
    pub fn device(&self) -> &Namespace {
        &self.device
    }

    /// Where firewall, NAT and gateway live.
    pub fn edge(&self) -> &Namespace {
        &self.edge
    }

    /// The link is like this from now on.
    pub fn set_link(&self, profile: LinkProfile) {
        self.link.set(profile);
    }

    /// What the link has carried: up, and down.
    pub fn carried(&self) -> (Carried, Carried) {
        self.link.carried()
    }

    /// Packets that the firewall let out to begin a connection, refused, and dropped on their way in.
    pub fn firewall(&self) -> Result<(u64, u64, u64)> {
        let count = |name: &str| -> Result<u64> {
            let said = self.edge.run(&["nft", "list", "counter", "inet", "site", name])?;
            let words: Vec<&str> = said.split_whitespace().collect();
            let packets = words.iter().skip_while(|word| **word != "packets").nth(1);
            packets.and_then(|number| number.parse().ok()).with_context(|| format!("no count in {said:?}"))
        };
        Ok((count("let_out")?, count("refused")?, count("dropped")?))
    }

    /// Whether the device gets a TCP connection to the broker's host at this port.
    pub fn reaches(&self, port: u16) -> bool {
        let connect = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{BROKER}/{port}'");
        self.device.run(&["sh", "-c", &connect]).is_ok()
    }

    /// Whether somebody on the internet gets a TCP connection to this site, at the port of a gateway or of ssh.
    pub fn is_reached_by(&self, internet: &Internet) -> bool {
        [8883, 22].iter().any(|port| {
            let connect = format!("timeout 1 bash -c 'exec 3<>/dev/tcp/{}/{port}'", self.wan);
            internet.namespace().run(&["sh", "-c", &connect]).is_ok()
        })
    }
}

fn address_ipv4(
    number: u8,
    (device, edge, router): (&Namespace, &Namespace, &Namespace),
    port: &str,
) -> Result<String> {
    let net = |host: u8| format!("203.0.113.{}", number * 4 + host);
    let (theirs, ours) = (net(1), net(2));
    router.ip(&["address", "add", &format!("{theirs}/30"), "dev", port])?;
    edge.ip(&["address", "add", &format!("{ours}/30"), "dev", "wan"])?;
    edge.ip(&["route", "add", "default", "via", &theirs])?;
    edge.ip(&["address", "add", &format!("{GATEWAY_ADDRESS}/30"), "dev", "lan"])?;
    edge.sysctl("net/ipv4/ip_forward", "1")?;
    device.ip(&["address", "add", &format!("{DEVICE_ADDRESS}/30"), "dev", "uplink"])?;
    device.ip(&["route", "add", "default", "via", GATEWAY_ADDRESS])?;
    let names = [(BROKER_V4, BROKER), (PROXY_ADDRESS, PROXY), (GATEWAY_ADDRESS, GATEWAY)];
    device.knows(&names)?;
    edge.knows(&names)?;
    Ok(ours)
}

fn address_ipv6(
    number: u8,
    (device, edge, router): (&Namespace, &Namespace, &Namespace),
    port: &str,
) -> Result<String> {
    let net = |part: u8, host: u8| format!("2001:db8:{number:x}:{part}::{host}");
    let add = |namespace: &Namespace, address: &str, interface: &str| {
        namespace.ip(&["-6", "address", "add", &format!("{address}/64"), "dev", interface, "nodad"])
    };
    let (theirs, ours, lan, own) = (net(1, 1), net(1, 2), net(2, 1), net(2, 2));
    add(router, &theirs, port)?;
    add(edge, &ours, "wan")?;
    add(edge, &lan, "lan")?;
    add(device, &own, "uplink")?;
    router.ip(&["-6", "route", "add", &format!("2001:db8:{number:x}:2::/64"), "via", &ours])?;
    edge.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    edge.ip(&["-6", "route", "add", "default", "via", &theirs])?;
    device.ip(&["-6", "route", "add", "default", "via", &lan])?;
    device.knows(&[(BROKER_V6, BROKER)])?;
    Ok(ours)
}

fn firewall(settings: &SiteSettings) -> Result<String> {
    let mut out = String::new();
    let mut gateway = String::new();
    for hole in &settings.holes {
        let (rules, allowed) = match hole {
            Hole::Port(port) => (&mut out, format!("tcp dport {port}")),
            Hole::Proxy(port) => (&mut out, format!("ip daddr {PROXY_ADDRESS} tcp dport {}", port.number())),
            Hole::Gateway => (&mut gateway, "tcp dport 8883 ct state new".to_owned()),
        };
        writeln!(rules, "iifname \"lan\" {allowed} counter name let_out accept")?;
    }
    Ok(format!(
        "table inet site {{
  counter let_out {{ }}
  counter refused {{ }}
  counter dropped {{ }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid counter name refused drop
    ct state established,related accept
    {out}
    iifname \"lan\" counter name refused drop
    counter name dropped drop
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert }} accept
    {gateway}
    iifname \"lan\" counter name refused drop
    counter name dropped drop
  }}
  chain translated {{
    type nat hook postrouting priority 100; policy accept;
    meta nfproto ipv4 oifname \"wan\" masquerade
  }}
}}"
    ))
}
