//! What lies beyond the firewalls: the host of the broker, which all sites and this machine reach.
//!
//! Port 8883 is mosquitto's. Port 443 is shared, as it is where it is the only one that gets through: haproxy looks at
//! the protocol offered in TLS (ALPN) and passes the connection on, TLS unopened, to mosquitto for MQTT or to its
//! WebSocket listener.

use super::command::run;
use super::namespace::Namespace;
use super::proxy::{PROXY, PROXY_ADDRESS};
use crate::eventually::eventually;
use crate::process::Process;
use crate::scratch::{Scratch, read_log};
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use rand::Rng;
use std::fs;
use std::net::TcpStream;
use std::process::Command;

/// The broker's name, as long as such names are.
pub const BROKER: &str = "broker.example.org";
/// mosquitto's own port.
pub const BROKER_PORT: u16 = 8883;
/// The port that MQTT and WebSockets share.
pub const SHARED_PORT: u16 = 443;
/// mosquitto's listener for WebSockets, behind the shared port.
pub(super) const WEBSOCKET_PORT: u16 = 8443;
/// RFC 5737.
pub(super) const BROKER_V4: &str = "198.51.100.10";
/// RFC 3849.
pub(super) const BROKER_V6: &str = "2001:db8:ffff::10";
/// RFC 2544's range for benchmarks, 198.18.0.0/15, cut into nets of four addresses: the way from this machine.
const NETS: u16 = 0x7fff;
/// Attempts to find a net that no other run uses.
const DRAWS: usize = 20;

/// The namespace of the broker, and the router between sites.
#[derive(Debug)]
pub struct Internet {
    number: u16,
    balancer: Option<Process>,
    address: String,
    namespace: Namespace,
}

impl Internet {
    /// Makes it, with nothing in it.
    pub fn make() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "network namespaces need root: run this with sudo, or as root in a container with CAP_NET_ADMIN"
        );
        let mut last = String::new();
        for _ in 0..DRAWS {
            let number = rand::rng().random_range(0..NETS);
            match Namespace::add(&format!("kmnet-{number:04x}")) {
                Ok(namespace) => return Self::join(number, namespace),
                Err(error) => last = format!("{error:#}"),
            }
        }
        bail!("this machine allows no network namespaces: {last}")
    }

    fn join(number: u16, namespace: Namespace) -> Result<Self> {
        let [high, low] = (number << 2).to_be_bytes();
        let net = |host: u8| format!("198.{}.{high}.{}", 18 + (number >> 14 & 1), low + host);
        let (near, address) = (net(1), net(2));
        let outside = format!("kmn{number:04x}");
        run(&[
            "ip",
            "link",
            "add",
            &outside,
            "type",
            "veth",
            "peer",
            "name",
            "near",
            "netns",
            namespace.name(),
        ])?;
        run(&["ip", "address", "add", &format!("{near}/30"), "dev", &outside])?;
        run(&["ip", "link", "set", &outside, "up"])?;
        namespace.ip(&["address", "add", &format!("{address}/30"), "dev", "near"])?;
        namespace.ip(&["link", "set", "near", "up"])?;
        namespace.ip(&["address", "add", &format!("{BROKER_V4}/32"), "dev", "lo"])?;
        namespace.ip(&["-6", "address", "add", &format!("{BROKER_V6}/128"), "dev", "lo"])?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        namespace.knows(&[(BROKER_V4, BROKER), (PROXY_ADDRESS, PROXY)])?;
        Ok(Self { number, balancer: None, address, namespace })
    }

    /// Where this machine reaches the broker.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where the broker lives.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A name for a namespace of this lab.
    pub(super) fn name(&self, what: &str) -> String {
        format!("kmnet-{:04x}-{what}", self.number)
    }

    /// Opens the shared port, once mosquitto runs.
    pub(super) fn share_port(&mut self, scratch: &Scratch) -> Result<()> {
        let file = scratch.path().join("haproxy.cfg");
        fs::write(
            &file,
            format!(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
                 frontend shared\n bind :::{SHARED_PORT} v4v6\n tcp-request inspect-delay 60s\n \
                 tcp-request content accept if {{ req.ssl_hello_type 1 }}\n \
                 use_backend mqtt if {{ req.ssl_alpn mqtt x-amzn-mqtt-ca }}\n default_backend websocket\n\
                 backend mqtt\n server mosquitto 127.0.0.1:{BROKER_PORT}\n\
                 backend websocket\n server mosquitto 127.0.0.1:{WEBSOCKET_PORT}\n"
            ),
        )?;
        let launcher = self.namespace.launcher(&[]);
        let (program, arguments) = launcher.split_first().context("an empty launcher")?;
        let mut command = Command::new(program);
        command.args(arguments).args(["haproxy", "-db", "-f"]).arg(&file);
        let log = scratch.log("haproxy");
        let mut balancer = Process::spawn("haproxy", &mut command, &log)?;
        eventually("haproxy serves", &scratch.logs(), || {
            ensure!(balancer.is_running(), "haproxy ended: {}", read_log(&log));
            Ok(TcpStream::connect((self.address.as_str(), SHARED_PORT)).ok())
        })?;
        self.balancer = Some(balancer);
        Ok(())
    }
}
