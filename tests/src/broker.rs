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

/// Common name of the certificate of what lies between two brokers; the ACL is told to let it do everything.
pub const LIAR: &str = "harness-liar";

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

/// A mosquitto that is not simply beside this process, and what of the shipped files it runs with.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// What it is called in logs, and its directory
    pub name: String,
    /// A command that starts it in its place, such as `ip netns exec …`
    pub launcher: Vec<String>,
    /// Where this side reaches it
    pub host: String,
    /// At which port
    pub port: u16,
    /// Its configuration, of those in broker-config
    pub configuration: &'static str,
    /// Its ACL, beside the configuration
    pub acl: &'static str,
    /// What else is replaced in the configuration
    pub replaced: Vec<(String, String)>,
    /// What the ACL holds besides
    pub granted: String,
    /// A port for WebSockets at the same address, with the same rules
    pub websocket_port: Option<u16>,
}

/// A broker with a port of its own.
#[derive(Debug)]
pub struct Broker {
    name: String,
    kind: BrokerKind,
    dir: PathBuf,
    logs: PathBuf,
    ca: PathBuf,
    server: Certificate,
    place: Place,
    address: &'static str,
    process: Option<Process>,
}

#[derive(Debug)]
enum Place {
    Here(Port),
    There(Box<Elsewhere>),
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
        Self::configure_as("broker", kind, scratch, pki)
    }

    /// The same under another name, for a second one in the same world.
    pub fn configure_as(name: &str, kind: BrokerKind, scratch: &Scratch, pki: &Pki) -> Result<Self> {
        let server = pki.issue(name, &["localhost", "127.0.0.1"])?;
        Ok(Self {
            name: name.to_owned(),
            kind,
            dir: scratch.subdir(name)?,
            logs: scratch.logs(),
            ca: pki.ca(),
            server,
            place: Place::Here(Port::claim()?),
            address: "127.0.0.1",
            process: None,
        })
    }

    /// Prepares a mosquitto in another place, which shows the certificate `server`, and starts nothing.
    pub fn configure_elsewhere(
        place: Elsewhere,
        scratch: &Scratch,
        pki: &Pki,
        server: Certificate,
    ) -> Result<Self> {
        Ok(Self {
            name: place.name.clone(),
            kind: BrokerKind::Mosquitto,
            dir: scratch.subdir(&place.name)?,
            logs: scratch.logs(),
            ca: pki.ca(),
            server,
            place: Place::There(Box::new(place)),
            address: "",
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
        match &self.place {
            Place::Here(port) => port.number(),
            Place::There(place) => place.port,
        }
    }

    /// Where this side reaches it, as its certificate has it.
    pub fn host(&self) -> &str {
        match &self.place {
            Place::Here(_) => "localhost",
            Place::There(place) => &place.host,
        }
    }

    /// Starts it on its port and returns when it serves.
    pub fn power_on(&mut self) -> Result<()> {
        let mut command = match self.kind {
            BrokerKind::Mosquitto => self.mosquitto()?,
            BrokerKind::Embedded => self.embedded()?,
        };
        let log = self.logs.join(format!("{}.log", self.name));
        let said_before = read_log(&log).len();
        let mut process = Process::spawn(&self.name, &mut command, &log)?;
        within(START_PATIENCE, "the broker serves", &self.logs, || {
            ensure!(process.is_running(), "the broker ended:\n{}", read_log(&log));
            Ok(match &self.place {
                Place::Here(port) => TcpStream::connect(("127.0.0.1", port.number())).is_ok(),
                Place::There(_) => {
                    read_log(&log).get(said_before..).is_some_and(|said| said.contains(" running\n"))
                }
            }
            .then_some(()))
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
        let shipped = repository().join("broker-config");
        let (configuration, acl) = match &self.place {
            Place::Here(_) => ("mosquitto/mosquitto.conf", "acl"),
            Place::There(place) => (place.configuration, place.acl),
        };
        let acl_file = shipped.join(configuration).with_file_name(acl);
        let dir = self.dir.display();
        let mut text = fs::read_to_string(shipped.join(configuration))?;
        let mut replace = vec![
            ("listener 8883".to_owned(), format!("listener {} {}", self.port(), self.address)),
            ("/etc/mosquitto/keylime-mqtt/ca.pem".to_owned(), self.ca.display().to_string()),
            (
                "/etc/mosquitto/keylime-mqtt/broker.pem".to_owned(),
                self.server.certificate.display().to_string(),
            ),
            ("/etc/mosquitto/keylime-mqtt/broker.key".to_owned(), self.server.key.display().to_string()),
            (format!("/etc/mosquitto/keylime-mqtt/{acl}"), format!("{dir}/acl")),
        ];
        if text.contains("persistence true") {
            replace.push(("/var/lib/mosquitto/".to_owned(), format!("{dir}/")));
        }
        if let Place::There(place) = &self.place {
            replace.extend(place.replaced.iter().cloned());
        }
        for (there, here) in replace {
            ensure!(text.contains(&there), "the shipped {configuration} has no {there:?}");
            text = text.replace(&there, &here);
        }
        let mut granted = format!("\nuser {OBSERVER}\ntopic read #\n\nuser {LIAR}\ntopic readwrite #\n");
        let mut command = Command::new("mosquitto");
        if let Place::There(place) = &self.place {
            text.push_str(&websocket_listener(&text, place.websocket_port));
            // among this is the line that says that it runs
            text.push_str("\nlog_type information\n");
            granted.push_str(&place.granted);
            if let Some((launcher, arguments)) = place.launcher.split_first() {
                command = Command::new(launcher);
                command.args(arguments).arg("mosquitto");
            }
        }
        // Started by root, mosquitto would become a user who may not read this directory.
        text.push_str("\nuser root\n");
        fs::write(self.dir.join("mosquitto.conf"), text)?;
        let shipped_acl = fs::read_to_string(acl_file)?;
        // a second bridge has the first one's rights, as the page on the broker says
        let block = shipped_acl.split("\n\n").find(|block| block.contains(&format!("user {BRIDGE}\n")));
        let second = block.map(|block| block.replace(BRIDGE, SECOND_BRIDGE)).unwrap_or_default();
        fs::write(self.dir.join("acl"), format!("{shipped_acl}\n{second}\n{granted}"))?;
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

/// The listener of `configuration` once more, for WebSockets.
fn websocket_listener(configuration: &str, port: Option<u16>) -> String {
    let Some(port) = port else { return String::new() };
    let of_a_listener = [
        "tls_version",
        "cafile",
        "certfile",
        "keyfile",
        "require_certificate",
        "use_identity_as_username",
        "use_username_as_clientid",
    ];
    let rules = configuration.lines().filter(|line| of_a_listener.iter().any(|key| line.starts_with(key)));
    rules.fold(format!("\nlistener {port}\nprotocol websockets\n"), |text, rule| text + rule + "\n")
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
