//! The brokers: mosquitto with the configuration and the ACL that this project ships, and the embedded rumqttd.
//!
//! Each keeps its port over a restart. mosquitto also keeps its retained messages; rumqttd forgets everything.

use crate::binaries;
use crate::eventually::within;
use crate::keylime::repository;
use crate::pki::{Certificate, Pki};
use crate::ports::Port;
use crate::process::Process;
use crate::scratch::{Scratch, read_log};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A broker opens its port within a second.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// mosquitto writes its retained messages first.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Common name of the observer's certificate; the ACL is told to let it read everything.
pub const OBSERVER: &str = "harness-observer";

/// Common name of the bridge's certificate in the shipped ACL.
pub const BRIDGE: &str = "keylime-bridge";

/// Common name of a second bridge's certificate; the ACL is told of it as it says: its block copied.
pub const SECOND_BRIDGE: &str = "keylime-bridge-2";

/// Common name of a relying party's certificate in the shipped ACL.
pub const RELYING_PARTY: &str = "keylime-relying-party";

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// mosquitto: TLS with client certificates and per-device ACLs
    Mosquitto,
    /// rumqttd: TLS with client certificates and no ACL
    Embedded,
}

/// A broker with a port of its own.
#[derive(Debug)]
pub struct Broker {
    kind: BrokerKind,
    dir: PathBuf,
    logs: PathBuf,
    ca: PathBuf,
    server: Certificate,
    port: Port,
    address: &'static str,
    process: Option<Process>,
}

impl Broker {
    /// Starts it with certificates of `pki`, for `localhost`.
    pub fn start(kind: BrokerKind, scratch: &Scratch, pki: &Pki) -> Result<Self> {
        let mut broker = Self::configure(kind, scratch, pki)?;
        broker.power_on()?;
        Ok(broker)
    }

    /// Prepares everything and starts nothing.
    pub fn configure(kind: BrokerKind, scratch: &Scratch, pki: &Pki) -> Result<Self> {
        let server = pki.issue("broker", &["localhost", "127.0.0.1"])?;
        Ok(Self {
            kind,
            dir: scratch.subdir("broker")?,
            logs: scratch.logs(),
            ca: pki.ca(),
            server,
            port: Port::claim()?,
            address: "127.0.0.1",
            process: None,
        })
    }

    /// Shows another certificate from the next start on.
    pub fn present(&mut self, server: Certificate) {
        self.server = server;
    }

    /// Listens on every address of this machine from the next start on (mosquitto): for devices that are elsewhere.
    pub fn serve_everywhere(&mut self) {
        self.address = "0.0.0.0";
    }

    /// The port of its TLS listener.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Starts it on its port and returns when it serves.
    pub fn power_on(&mut self) -> Result<()> {
        let mut command = match self.kind {
            BrokerKind::Mosquitto => self.mosquitto()?,
            BrokerKind::Embedded => self.embedded()?,
        };
        let log = self.logs.join("broker.log");
        let mut process = Process::spawn("broker", &mut command, &log)?;
        let port = self.port();
        within(START_PATIENCE, "the broker serves", &self.logs, || {
            ensure!(process.is_running(), "the broker ended:\n{}", read_log(&log));
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops it as its service manager would.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("no broker runs")?.terminate(STOP_GRACE).map(drop)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process, to freeze it.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("no broker runs")
    }

    /// What is shipped, with this broker's port and directories put in, and an observer in the ACL.
    fn mosquitto(&self) -> Result<Command> {
        let shipped = repository().join("broker-config/mosquitto");
        let dir = self.dir.display();
        let mut configuration = fs::read_to_string(shipped.join("mosquitto.conf"))?;
        for (there, here) in [
            ("listener 8883", format!("listener {} {}", self.port(), self.address)),
            ("/etc/mosquitto/keylime-mqtt/ca.pem", self.ca.display().to_string()),
            ("/etc/mosquitto/keylime-mqtt/broker.pem", self.server.certificate.display().to_string()),
            ("/etc/mosquitto/keylime-mqtt/broker.key", self.server.key.display().to_string()),
            ("/etc/mosquitto/keylime-mqtt/acl", format!("{dir}/acl")),
            ("/var/lib/mosquitto/", format!("{dir}/")),
        ] {
            ensure!(configuration.contains(there), "the shipped mosquitto.conf has no {there:?}");
            configuration = configuration.replace(there, &here);
        }
        // Started by root, mosquitto would become a user who may not read this directory.
        configuration.push_str("\nuser root\n");
        fs::write(self.dir.join("mosquitto.conf"), configuration)?;
        let acl = fs::read_to_string(shipped.join("acl"))?;
        let block = acl.split("\n\n").find(|block| block.contains(&format!("user {BRIDGE}\n")));
        let second =
            block.context("the shipped ACL has no block for the bridge")?.replace(BRIDGE, SECOND_BRIDGE);
        let observer = format!("user {OBSERVER}\ntopic read #\n");
        fs::write(self.dir.join("acl"), format!("{acl}\n{second}\n\n{observer}"))?;
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(self.dir.join("mosquitto.conf"));
        Ok(command)
    }

    fn embedded(&self) -> Result<Command> {
        let mut command = Command::new(binaries::path("keylime-mqtt-demo-broker")?);
        command
            .args(["--port", &self.port().to_string(), "--ca"])
            .arg(&self.ca)
            .arg("--cert")
            .arg(&self.server.certificate)
            .arg("--key")
            .arg(&self.server.key);
        Ok(command)
    }
}

/// Runs scenarios, functions that take a [`BrokerKind`], once on each broker.
#[macro_export]
macro_rules! on_each_broker {
    ($($scenario:ident),+ $(,)?) => {
        mod on_mosquitto {
            $(#[test] fn $scenario() -> anyhow::Result<()> {
                super::$scenario($crate::broker::BrokerKind::Mosquitto)
            })+
        }
        mod on_rumqttd {
            $(#[test] fn $scenario() -> anyhow::Result<()> {
                super::$scenario($crate::broker::BrokerKind::Embedded)
            })+
        }
    };
}
