//! The `[broker]` table and its check.
//!
//! Parsed once at start; a [`CheckedBroker`] cannot be wrong in a way that the files and the table show. Each
//! error names the key, the file and the remedy, because the reader is an operator with a device in a field.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;

use crate::tls::{self, TlsFileError};

/// The largest payload the exchange ever makes: the smallest limit in the field is AWS IoT Core's 128 KB.
const LARGEST_FRAGMENT: usize = 120 * 1024;
/// Room for the fixed header, a topic of at most 256 bytes and the packet id.
const PACKET_HEADROOM: usize = 1024;
/// `Enrol` and `Ready` never fragment and take up to 8 KiB.
const SMALLEST_PACKET_LIMIT: usize = 8 * 1024 + PACKET_HEADROOM;
/// Above this a queue of messages would no longer be small on a device.
const LARGEST_PACKET_LIMIT: usize = 1024 * 1024;
/// MQTT 3.1.1 lets a server refuse more than 23 characters; brokers in the field take this many.
const LONGEST_CLIENT_ID: usize = 128;

/// The TOML table `[broker]`, the same for agent and bridge. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    /// DNS name or IPv4 address; must be a name in the broker's certificate.
    pub host: String,
    /// TCP port of the TLS listener.
    #[serde(default = "default_port")]
    pub port: u16,
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
    /// Seconds between pings, 5 to 1160 (AWS IoT Core ends at 1200). Must be shorter than the patience of
    /// every NAT on the way, which forgets a silent flow without a word.
    #[serde(default = "default_keep_alive")]
    pub keep_alive_seconds: u16,
    /// Largest MQTT packet in bytes, sent or accepted, with its topic and headers.
    #[serde(default = "default_max_packet")]
    pub max_packet_bytes: usize,
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

const fn default_port() -> u16 {
    8883
}
const fn default_keep_alive() -> u16 {
    300
}
const fn default_max_packet() -> usize {
    LARGEST_FRAGMENT + PACKET_HEADROOM
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
        "broker.host = {host:?} is neither a DNS name nor an IPv4 address: set it to a name in the broker's certificate"
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
    /// One of the certificate or key files.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

/// Settings that were checked, with the certificates and the key read.
#[derive(Clone)]
pub struct CheckedBroker {
    pub(crate) settings: BrokerSettings,
    /// One for all connections, so that TLS sessions resume.
    pub(crate) tls: Arc<ClientConfig>,
}

impl BrokerSettings {
    /// Reads and parses the files and checks every value.
    pub fn check(&self) -> Result<CheckedBroker, SettingsError> {
        check_host(&self.host)?;
        let in_range = |key, value, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(SettingsError::OutOfRange { key, value, least, most })
            }
        };
        let first_wait = usize::from(self.reconnect_first_seconds);
        in_range("port", self.port.into(), 1, usize::from(u16::MAX))?;
        in_range("keep_alive_seconds", self.keep_alive_seconds.into(), 5, 1160)?;
        in_range("max_packet_bytes", self.max_packet_bytes, SMALLEST_PACKET_LIMIT, LARGEST_PACKET_LIMIT)?;
        in_range("connect_timeout_seconds", self.connect_timeout_seconds.into(), 1, 600)?;
        in_range("ack_timeout_seconds", self.ack_timeout_seconds.into(), 5, 3600)?;
        in_range("reconnect_first_seconds", first_wait, 1, 3600)?;
        in_range("reconnect_longest_seconds", self.reconnect_longest_seconds.into(), first_wait, 3600)?;
        if let Some(client_id) = self.client_id.as_ref().filter(|id| !is_portable_client_id(id)) {
            return Err(SettingsError::ClientId { client_id: client_id.clone() });
        }
        let tls = tls::client_config(self)?;
        Ok(CheckedBroker { settings: self.clone(), tls: Arc::new(tls) })
    }
}

impl CheckedBroker {
    /// The client id the operator chose, if any.
    pub fn client_id(&self) -> Option<&str> {
        self.settings.client_id.as_deref()
    }

    /// `host:port`, for log lines.
    pub fn address(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.port)
    }
}

impl fmt::Debug for CheckedBroker {
    /// Without the TLS configuration, which holds the private key.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CheckedBroker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A colon would be an IPv6 address: rumqttc cannot both connect to one and verify a certificate for it.
fn check_host(host: &str) -> Result<(), SettingsError> {
    if host.contains(':') || ServerName::try_from(host).is_err() {
        return Err(SettingsError::Host { host: host.to_owned() });
    }
    Ok(())
}

fn is_portable_client_id(id: &str) -> bool {
    (1..=LONGEST_CLIENT_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}
