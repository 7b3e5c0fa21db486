//! The `[broker]` table and its check.
//!
//! Parsed once at start; a [`CheckedBroker`] cannot be wrong in a way that the files and the table show. Each
//! error names the key, the file and the remedy, because the reader is an operator with a device in a field.

mod fallback;
mod headers;
mod no_proxy;
mod proxy;

use std::{collections::BTreeSet, fmt, path::PathBuf};

use rustls_pki_types::ServerName;
use serde::Deserialize;

pub(crate) use self::proxy::Proxy;
pub use self::{
    fallback::FallbackBroker,
    headers::Headers,
    proxy::{ProxyChoice, ProxySettings, ProxySettingsError},
};
use self::{fallback::Place, proxy::Environment};
use crate::{
    credentials::Credentials,
    limits::{PACKET_HEADROOM, SMALLEST_PACKET_LIMIT},
    path::{Route, Upgrade},
    tls::{TlsFileError, TlsFiles},
};

/// The largest payload the exchange ever makes: the smallest limit in the field is AWS IoT Core's 128 KB.
const LARGEST_FRAGMENT: usize = 120 * 1024;
/// Above this a queue of messages would no longer be small on a device.
const LARGEST_PACKET_LIMIT: usize = 1024 * 1024;
/// Every message in flight at the largest packet limit.
const LARGEST_IN_FLIGHT: usize = 20 * LARGEST_PACKET_LIMIT;
/// Nothing here sends faster, so that a larger limit would be none.
const MOST_MESSAGES_PER_SECOND: u32 = 100_000;
/// Below this one large message would outlast the patience for its answer.
const LEAST_BYTES_PER_SECOND: u32 = 1024;
/// MQTT 3.1.1 lets a server refuse more than 23 characters; brokers in the field take this many.
const LONGEST_CLIENT_ID: usize = 128;
/// RFC 7301 §3.1: a protocol name has a length of one byte.
const LONGEST_ALPN: usize = 255;
/// More brokers than this are one name with several addresses.
const MOST_FALLBACKS: usize = 8;

/// The TOML table `[broker]`, the same for agent and bridge. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    /// DNS name, IPv4 or IPv6 address (without brackets); must be in the broker's certificate.
    pub host: String,
    /// TCP port of the TLS listener; 8883, or 443 for a WebSocket.
    #[serde(default)]
    pub port: Option<u16>,
    /// What MQTT goes through.
    #[serde(default)]
    pub transport: Transport,
    /// Where the broker's WebSocket is; `/mqtt` unless set.
    #[serde(default)]
    pub websocket_path: Option<String>,
    /// Further headers of the WebSocket upgrade, such as a token.
    #[serde(default)]
    pub websocket_headers: Headers,
    /// Protocol names to offer in TLS (ALPN), best first: `x-amzn-mqtt-ca` for AWS IoT Core at port 443, `mqtt`
    /// where a port is shared. None is offered unless set.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// The HTTP proxy on the way.
    #[serde(default)]
    pub proxy: ProxyChoice,
    /// Brokers to go to, in order, when this one cannot be reached.
    #[serde(default)]
    pub fallback: Vec<FallbackBroker>,
    /// Failed attempts in a row, 1 to 100, after which the next broker is tried.
    #[serde(default = "default_fallback_after")]
    pub fallback_after_attempts: u16,
    /// Seconds at a fallback, 10 to 86400, after which the way to the first broker is looked at again; if it is
    /// open, the connection moves back. Each look costs about 4 kB.
    #[serde(default = "default_fallback_return")]
    pub fallback_return_seconds: u32,
    /// MQTT client id; agent and bridge each have a default of their own. Two clients with one id throw each
    /// other out of the broker for ever.
    #[serde(default)]
    pub client_id: Option<String>,
    /// PEM file with the CA certificates that may have issued the broker's certificate. No others are trusted.
    pub ca_file: PathBuf,
    /// PEM file with this client's certificate, then its intermediates.
    pub cert_file: PathBuf,
    /// PEM file with the private key of that certificate, readable by its owner alone.
    pub key_file: PathBuf,
    /// Seconds between looks at the three files, 1 to 86400. What changed is taken up; when the certificate or
    /// key did, the connection is made anew.
    #[serde(default = "default_file_check")]
    pub file_check_seconds: u32,
    /// Seconds between pings, 5 to 1160 (AWS IoT Core ends at 1200). Must be shorter than the patience of
    /// every NAT on the way, which forgets a silent flow without a word.
    #[serde(default = "default_keep_alive")]
    pub keep_alive_seconds: u16,
    /// Largest MQTT packet in bytes, sent or accepted, with its topic and headers.
    #[serde(default = "default_max_packet")]
    pub max_packet_bytes: usize,
    /// Bytes sent at QoS 1 and not yet acknowledged, 1024 to 20 MiB; one message is always sent. Azure Event Grid takes
    /// 64 KiB at a time.
    #[serde(default = "default_in_flight")]
    pub max_in_flight_bytes: usize,
    /// Messages sent in a second, up to 100000; 0 is no limit. AWS IoT Core takes 100 of a connection.
    #[serde(default)]
    pub max_messages_per_second: u32,
    /// Bytes sent in a second, 1024 or more; 0 is no limit. AWS IoT Core takes 512 KiB of a connection.
    #[serde(default)]
    pub max_bytes_per_second: u32,
    /// Whether the broker keeps presence and results for later subscribers. False for a broker that refuses to.
    #[serde(default = "default_retain")]
    pub retain: bool,
    /// Seconds for name, TCP, TLS and CONNACK together, 1 to 600. NB-IoT needs about ten.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout_seconds: u16,
    /// Seconds without any acknowledgement, while one is due, after which the connection is taken for dead, 5
    /// to 3600. Must exceed the largest packet over the slowest link: 120 KiB over NB-IoT take 45.
    #[serde(default = "default_ack_timeout")]
    pub ack_timeout_seconds: u16,
    /// Ceiling in seconds of the first wait before a reconnect, 1 to 3600; it doubles with each failure.
    #[serde(default = "default_first_wait")]
    pub reconnect_first_seconds: u16,
    /// Ceiling in seconds of all later waits, up to 3600. Each reconnect costs some 3 to 4 kB of traffic.
    #[serde(default = "default_longest_wait")]
    pub reconnect_longest_seconds: u16,
    /// Accept TLS 1.2 as well, for a broker that cannot do 1.3.
    #[serde(default)]
    pub allow_tls12: bool,
}

/// What MQTT goes through. There is no choice without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// MQTT in TLS.
    #[default]
    Tls,
    /// MQTT in a WebSocket in TLS.
    Websocket,
}

impl Transport {
    const fn default_port(self) -> u16 {
        match self {
            Self::Tls => 8883,
            Self::Websocket => 443,
        }
    }
}

const fn default_fallback_after() -> u16 {
    3
}
const fn default_fallback_return() -> u32 {
    1800
}
const fn default_file_check() -> u32 {
    60
}
const fn default_keep_alive() -> u16 {
    300
}
const fn default_max_packet() -> usize {
    LARGEST_FRAGMENT + PACKET_HEADROOM
}
const fn default_in_flight() -> usize {
    1024 * 1024
}
const fn default_retain() -> bool {
    true
}
const fn default_connect_timeout() -> u16 {
    30
}
const fn default_ack_timeout() -> u16 {
    120
}
const fn default_first_wait() -> u16 {
    2
}
const fn default_longest_wait() -> u16 {
    300
}

/// Why the `[broker]` table cannot be used. The operator's to mend; trying again helps nothing.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The host is not a name that TLS can verify.
    #[error(
        "broker.host = {host:?} is neither a DNS name nor an IP address: set it to a name or an address in the broker's certificate, an IPv6 address without brackets, and the port in broker.port"
    )]
    Host {
        /// As configured.
        host: String,
    },
    /// A number outside its range.
    #[error("broker.{key} = {value} is out of range: set it between {least} and {most}")]
    OutOfRange {
        /// Key in the `[broker]` table.
        key: &'static str,
        /// As configured.
        value: usize,
        /// Smallest allowed value.
        least: usize,
        /// Largest allowed value.
        most: usize,
    },
    /// A client id that some broker or log would stumble over.
    #[error("broker.client_id = {client_id:?}: use 1 to 128 of the characters A-Z a-z 0-9 _ . -")]
    ClientId {
        /// As configured.
        client_id: String,
    },
    /// What TLS cannot offer.
    #[error("broker.alpn holds {name:?}: use 1 to 255 printable characters without spaces")]
    Alpn {
        /// As configured.
        name: String,
    },
    /// A path that no request can ask for.
    #[error("broker.websocket_path = {path:?}: begin it with / and use printable characters without spaces")]
    WebsocketPath {
        /// As configured.
        path: String,
    },
    /// A header that cannot be sent, or that the upgrade sets itself.
    #[error("broker.websocket_headers: {name:?} cannot be set, or its value cannot be sent")]
    WebsocketHeader {
        /// As configured.
        name: String,
    },
    /// Settings of a transport that no broker uses.
    #[error(
        "broker.websocket_path and broker.websocket_headers do nothing with broker.transport = \"tls\": set it to \"websocket\", or remove them"
    )]
    UnusedWebsocket,
    /// One broker twice.
    #[error("broker.fallback: {address} is named twice; name each broker once")]
    FallbackTwice {
        /// `host:port`.
        address: String,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxySettingsError),
    /// One of the certificate or key files.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

/// Settings that were checked, with the certificates and the key read.
#[derive(Clone)]
pub struct CheckedBroker {
    pub(crate) settings: BrokerSettings,
    pub(crate) first: Broker,
    /// In the order in which they are tried.
    pub(crate) fallbacks: Vec<Broker>,
}

/// One broker: the way there, and what is shown on arrival.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) route: Route,
    pub(crate) credentials: Credentials,
}

impl BrokerSettings {
    /// Reads and parses the files and checks every value. The proxy may come from this process's environment.
    pub fn check(&self) -> Result<CheckedBroker, SettingsError> {
        // a value that is not Unicode cannot be a URL either
        self.check_with(&|name| std::env::var(name).ok())
    }

    /// As [`BrokerSettings::check`], with another environment.
    pub fn check_with(&self, environment: Environment<'_>) -> Result<CheckedBroker, SettingsError> {
        self.check_numbers()?;
        if let Some(client_id) = self.client_id.as_ref().filter(|id| !is_portable_client_id(id)) {
            return Err(SettingsError::ClientId { client_id: client_id.clone() });
        }
        let (first, fallbacks) = self.places();
        let any_websocket =
            fallbacks.iter().chain([&first]).any(|place| place.transport == Transport::Websocket);
        if !any_websocket && (self.websocket_path.is_some() || !self.websocket_headers.is_empty()) {
            return Err(SettingsError::UnusedWebsocket);
        }
        let first = first.check(self.allow_tls12, environment)?;
        let mut seen = BTreeSet::from([first.route.address()]);
        let mut checked = Vec::new();
        for place in &fallbacks {
            let broker = place.check(self.allow_tls12, environment)?;
            let address = broker.route.address();
            if !seen.insert(address.clone()) {
                return Err(SettingsError::FallbackTwice { address });
            }
            checked.push(broker);
        }
        Ok(CheckedBroker { settings: self.clone(), first, fallbacks: checked })
    }

    fn check_numbers(&self) -> Result<(), SettingsError> {
        let in_range = |key, value, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(SettingsError::OutOfRange { key, value, least, most })
            }
        };
        let wide = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let first_wait = usize::from(self.reconnect_first_seconds);
        in_range("keep_alive_seconds", self.keep_alive_seconds.into(), 5, 1160)?;
        in_range("max_packet_bytes", self.max_packet_bytes, SMALLEST_PACKET_LIMIT, LARGEST_PACKET_LIMIT)?;
        in_range("max_in_flight_bytes", self.max_in_flight_bytes, 1024, LARGEST_IN_FLIGHT)?;
        in_range(
            "max_messages_per_second",
            wide(self.max_messages_per_second),
            0,
            wide(MOST_MESSAGES_PER_SECOND),
        )?;
        if self.max_bytes_per_second != 0 {
            let (least, most) = (wide(LEAST_BYTES_PER_SECOND), wide(u32::MAX));
            in_range("max_bytes_per_second", wide(self.max_bytes_per_second), least, most)?;
        }
        in_range("connect_timeout_seconds", self.connect_timeout_seconds.into(), 1, 600)?;
        in_range("ack_timeout_seconds", self.ack_timeout_seconds.into(), 5, 3600)?;
        in_range("reconnect_first_seconds", first_wait, 1, 3600)?;
        in_range("reconnect_longest_seconds", self.reconnect_longest_seconds.into(), first_wait, 3600)?;
        in_range("fallback_after_attempts", self.fallback_after_attempts.into(), 1, 100)?;
        in_range("fallback_return_seconds", wide(self.fallback_return_seconds), 10, 86400)?;
        in_range("file_check_seconds", wide(self.file_check_seconds), 1, 86400)?;
        in_range("fallback (its length)", self.fallback.len(), 0, MOST_FALLBACKS)
    }
}

impl Place {
    fn check(&self, allow_tls12: bool, environment: Environment<'_>) -> Result<Broker, SettingsError> {
        let server_name = ServerName::try_from(self.host.clone())
            .map_err(|_| SettingsError::Host { host: self.host.clone() })?;
        if self.port == 0 {
            return Err(SettingsError::OutOfRange { key: "port", value: 0, least: 1, most: u16::MAX.into() });
        }
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let offered = |name: &&String| !(1..=LONGEST_ALPN).contains(&name.len()) || !printable(name);
        if let Some(name) = self.alpn.iter().find(offered) {
            return Err(SettingsError::Alpn { name: name.clone() });
        }
        if !self.websocket_path.starts_with('/') || !printable(&self.websocket_path) {
            return Err(SettingsError::WebsocketPath { path: self.websocket_path.clone() });
        }
        if let Some(name) = self.websocket_headers.unusable() {
            return Err(SettingsError::WebsocketHeader { name: name.to_owned() });
        }
        let websocket = (self.transport == Transport::Websocket)
            .then(|| Upgrade { path: self.websocket_path.clone(), headers: self.websocket_headers.clone() });
        let proxy = self.proxy.on_the_way_to(&self.host, self.port, environment)?;
        let files = TlsFiles {
            ca: self.ca_file.clone(),
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            allow_tls12,
            alpn: self.alpn.clone(),
        };
        let route = Route { host: self.host.clone(), port: self.port, server_name, websocket, proxy };
        Ok(Broker { route, credentials: Credentials::load(files)? })
    }
}

impl CheckedBroker {
    /// The client id the operator chose, if any.
    pub fn client_id(&self) -> Option<&str> {
        self.settings.client_id.as_deref()
    }

    /// `host:port` of the first broker, for log lines.
    pub fn address(&self) -> String {
        self.first.route.address()
    }
}

impl fmt::Debug for CheckedBroker {
    /// Without the TLS configuration, which holds the private key.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CheckedBroker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn is_portable_client_id(id: &str) -> bool {
    (1..=LONGEST_CLIENT_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}
