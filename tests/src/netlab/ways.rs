//! The ways through a firewall, each as an operator would set it.

use super::internet::{BROKER, BROKER_PORT, SHARED_PORT};
use super::proxy::{PASSWORD, PROXY, ProxyPort, USER};
use super::site::Hole;
use crate::device::BrokerAccess;
use anyhow::Result;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What MQTT goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TLS to port 8883
    Mqtts,
    /// TLS to port 443, told from others there by the protocol's name
    Alpn(&'static str),
    /// A WebSocket over TLS to port 443
    WebSocket,
}

/// Where the proxy's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// `[broker.proxy]`
    Configuration,
    /// `HTTPS_PROXY`
    Environment,
}

/// One way to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What MQTT goes in
    pub carrier: Carrier,
    /// Through the proxy
    pub proxy: Option<(Told, ProxyPort)>,
    /// `HTTPS_PROXY` names a proxy that is not there, and `NO_PROXY` the broker
    pub excepted: bool,
}

impl Way {
    /// Without a proxy.
    pub const fn straight(carrier: Carrier) -> Self {
        Self { carrier, proxy: None, excepted: false }
    }

    /// Through the proxy, which allows what it has to and asks for a password or not.
    pub fn proxied(carrier: Carrier, told: Told, asks: bool) -> Self {
        let port = ProxyPort { asks, allows_mqtt: carrier == Carrier::Mqtts };
        Self { carrier, proxy: Some((told, port)), excepted: false }
    }

    /// The port of the broker.
    pub fn port(&self) -> u16 {
        if self.carrier == Carrier::Mqtts { BROKER_PORT } else { SHARED_PORT }
    }

    /// All that the firewall has to let out.
    pub fn hole(&self) -> Hole {
        match self.proxy {
            Some((_, port)) => Hole::Proxy(port),
            None => Hole::Port(self.port()),
        }
    }

    /// Writes it into the `[broker]` table; a password goes into a file in `dir`.
    pub fn set(&self, access: &mut BrokerAccess, dir: &Path) -> Result<()> {
        BROKER.clone_into(&mut access.host);
        access.port = self.port();
        match self.carrier {
            Carrier::Mqtts => {}
            Carrier::Alpn(name) => writeln!(access.more, "alpn = [\"{name}\"]")?,
            Carrier::WebSocket => writeln!(access.more, "transport = \"websocket\"")?,
        }
        if let Some((Told::Configuration, port)) = self.proxy {
            write!(access.more, "\n[broker.proxy]\nurl = \"http://{PROXY}:{}\"\n", port.number())?;
            if port.asks {
                let file = dir.join("proxy-password");
                fs::write(&file, format!("{PASSWORD}\n"))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
                writeln!(access.more, "user = \"{USER}\"\npassword_file = \"{}\"", file.display())?;
            }
        }
        Ok(())
    }

    /// The agent's environment: what is said there of proxies is said here, whatever surrounds this process.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let (proxy, excepted) = match self.proxy {
            Some((Told::Environment, port)) => {
                let user = if port.asks { format!("{USER}:s3cret%20pass@") } else { String::new() };
                (format!("http://{user}{PROXY}:{}", port.number()), "localhost".to_owned())
            }
            _ if self.excepted => (format!("http://{PROXY}:1"), ".example.org".to_owned()),
            _ => (String::new(), String::new()),
        };
        let nothing = String::new();
        vec![
            ("HTTPS_PROXY", proxy),
            ("NO_PROXY", excepted),
            ("https_proxy", nothing.clone()),
            ("no_proxy", nothing.clone()),
            ("ALL_PROXY", nothing.clone()),
            ("all_proxy", nothing),
        ]
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.carrier {
            Carrier::Mqtts => out.write_str("8883")?,
            Carrier::Alpn(name) => write!(out, "443, ALPN {name}")?,
            Carrier::WebSocket => out.write_str("443, WebSocket")?,
        }
        match self.proxy {
            None if self.excepted => out.write_str(", NO_PROXY"),
            None => Ok(()),
            Some((told, port)) => {
                let basic = if port.asks { ", Basic" } else { "" };
                let from = if told == Told::Environment { ", from HTTPS_PROXY" } else { "" };
                write!(out, ", proxy{basic}{from}")
            }
        }
    }
}
