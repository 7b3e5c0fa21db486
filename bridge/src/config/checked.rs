//! From what was read to what can be used: files opened, ranges checked, names parsed.

use super::Config;
use crate::admission::{Admission, AdmissionError, AdmissionSettings};
use crate::keylime::{EndpointError, EndpointSettings, Registrar, TrustError, Verifier, trust_from_ca_file};
use crate::reference::{ReferenceFileError, read_references};
use crate::ticket::{KeyFileError, TicketKeys};
use keylime_mqtt_broker_config::{CheckedBroker, SettingsError};
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::relay;
use keylime_mqtt_schemas::topics::{TopicError, Topics, Via};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Longest request that makes sense, seconds
const MAX_TIMEOUT: u64 = 3600;
/// Shortest: Keylime hashes tokens for a fifth of a second, twice, and more under load
const MIN_TIMEOUT: u64 = 5;
/// Most connections; Keylime has at most 16 workers
const MAX_CONNECTIONS: usize = 64;
/// Longest of the waits, seconds
const MAX_WAIT: u64 = 24 * 3600;
/// Longest name of a `$share` group
const MAX_GROUP: usize = 64;

/// A configuration with everything in it opened and parsed
#[derive(Debug)]
pub struct Checked {
    /// The configuration as it was read
    pub config: Config,
    /// The broker, its certificates loaded
    pub broker: CheckedBroker,
    /// Topics under the configured prefix
    pub topics: Topics,
    /// This bridge's name, where several serve
    pub via: Option<Via>,
    /// How relays behave
    pub relay: relay::Settings,
    /// The verifier's client
    pub verifier: Verifier,
    /// The registrar's client
    pub registrar: Registrar,
    /// The gate before the registrar
    pub admission: Admission,
    /// Keys of tickets
    pub tickets: TicketKeys,
}

/// A configuration that cannot be used
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No file
    #[error(
        "configuration file {path}: there is none; give one with --config, an example is bridge.toml.example"
    )]
    NoFile {
        /// Where it was looked for
        path: PathBuf,
    },
    /// A key is unknown, missing, or of another type
    #[error("{0}")]
    Read(String),
    /// Not `key=value`
    #[error("--set {text}: must be key=value, such as verifier.url=https://verifier:8881")]
    Override {
        /// What was given
        text: String,
    },
    /// `[broker]`
    #[error("[broker] {0}")]
    Broker(#[from] SettingsError),
    /// `[topics]`
    #[error("[topics] {key} = \"{value}\": {source}")]
    Topic {
        /// The key at fault
        key: &'static str,
        /// Its value
        value: String,
        /// What is wrong with it
        source: TopicError,
    },
    /// `[topics] share_group`
    #[error(
        "[topics] share_group = \"{group}\": must be 1 to {MAX_GROUP} of A-Z a-z 0-9 _ . - and needs [topics] via, by which answers find this bridge"
    )]
    ShareGroup {
        /// Its value
        group: String,
    },
    /// A CA file
    #[error("[{table}] ca_file {source}")]
    Trust {
        /// The table at fault
        table: &'static str,
        /// What is wrong with the file
        source: TrustError,
    },
    /// A URL
    #[error("[{table}] url {source}")]
    Endpoint {
        /// The table at fault
        table: &'static str,
        /// What is wrong with it
        source: Box<EndpointError>,
    },
    /// TLS registrar without a CA
    #[error(
        "[registrar] ca_file: is missing; give the CA of the registrar's TLS port 8891, or, where nobody else can reach the wire, use http and danger_plaintext_registrar = true"
    )]
    NoRegistrarCa,
    /// A registrar without TLS
    #[error(
        "[registrar] url {url}: is not https; give the registrar's TLS port (8891), or, where nobody else can reach the wire, set danger_plaintext_registrar = true"
    )]
    PlaintextRegistrar {
        /// As configured
        url: String,
    },
    /// A danger that is not one
    #[error("[registrar] danger_plaintext_registrar = true with an https url: remove the setting")]
    PointlessDanger,
    /// The first wait is longer than the longest
    #[error(
        "exchange.waiting_first_seconds = {first} is more than exchange.waiting_cap_seconds = {cap}: change one of them"
    )]
    Waits {
        /// `waiting_first_seconds`
        first: u64,
        /// `waiting_cap_seconds`
        cap: u64,
    },
    /// A number out of range
    #[error("{key} = {value}: must be {least} to {most}")]
    Range {
        /// The key at fault
        key: &'static str,
        /// Its value
        value: u64,
        /// Smallest allowed
        least: u64,
        /// Largest allowed
        most: u64,
    },
    /// `[admission]`
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// `references`
    #[error(transparent)]
    References(#[from] ReferenceFileError),
    /// `ticket_key_file`
    #[error(transparent)]
    Tickets(#[from] KeyFileError),
}

impl Config {
    /// Opens and parses everything that the configuration names
    ///
    /// # Errors
    /// The first thing that cannot be used.
    pub fn check(self) -> Result<Checked, ConfigError> {
        self.check_ranges()?;
        let topics = Topics::new(&self.topics.prefix)
            .map_err(|source| topic_error("prefix", &self.topics.prefix, source))?;
        let via = self.topics.via.as_deref();
        let via =
            via.map(|name| name.parse().map_err(|source| topic_error("via", name, source))).transpose()?;
        self.check_share_group()?;
        Ok(Checked {
            broker: self.broker.check()?,
            relay: self.relay_settings(via.clone(), read_references(&self.references)?),
            topics,
            via,
            verifier: self.verifier()?,
            registrar: self.registrar()?,
            admission: Admission::new(&AdmissionSettings {
                ek_ca_dir: self.admission.ek_ca_dir.clone(),
                list_file: self.admission.list_file.clone(),
                danger_any_id_of_trusted_ca: self.admission.danger_any_id_of_trusted_ca,
            })?,
            tickets: TicketKeys::open(&self.ticket_key_file)?,
            config: self,
        })
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let exchange = &self.exchange;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let ranges = [
            ("verifier.timeout_seconds", self.verifier.timeout_seconds, MIN_TIMEOUT, MAX_TIMEOUT),
            ("verifier.connections", count(self.verifier.connections), 1, count(MAX_CONNECTIONS)),
            ("verifier.sessions_per_minute", self.verifier.sessions_per_minute.into(), 1, 1_000_000),
            ("verifier.replicas", self.verifier.replicas.into(), 1, 1000),
            ("registrar.timeout_seconds", self.registrar.timeout_seconds, MIN_TIMEOUT, MAX_TIMEOUT),
            ("exchange.repeat_after_seconds", exchange.repeat_after_seconds, 1, MAX_WAIT),
            ("exchange.repeats", exchange.repeats.into(), 0, 10),
            ("exchange.waiting_first_seconds", exchange.waiting_first_seconds, 1, MAX_WAIT),
            ("exchange.waiting_cap_seconds", exchange.waiting_cap_seconds, 1, MAX_WAIT),
            ("exchange.refused_wait_seconds", exchange.refused_wait_seconds, 1, MAX_WAIT),
            ("exchange.failing_cap_seconds", exchange.failing_cap_seconds, 1, MAX_WAIT),
            ("exchange.spread_seconds", exchange.spread_seconds, 0, MAX_WAIT),
            ("limits.max_devices", count(self.limits.max_devices), 1, 10_000_000),
            ("limits.max_held_bytes", count(self.limits.max_held_bytes), 1024 * 1024, u64::MAX),
            ("cache.max_bytes", self.cache.max_bytes, 1024 * 1024, u64::MAX / 2),
            ("limits.uefi_cache_bytes", self.limits.uefi_cache_bytes, 1024 * 1024, u64::MAX),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::Range { key, value, least, most });
            }
        }
        let (first, cap) = (exchange.waiting_first_seconds, exchange.waiting_cap_seconds);
        if first > cap {
            return Err(ConfigError::Waits { first, cap });
        }
        Ok(())
    }

    fn check_share_group(&self) -> Result<(), ConfigError> {
        let Some(group) = &self.topics.share_group else { return Ok(()) };
        let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let named = !group.is_empty() && group.len() <= MAX_GROUP && group.chars().all(safe);
        if named && self.topics.via.is_some() {
            Ok(())
        } else {
            Err(ConfigError::ShareGroup { group: group.clone() })
        }
    }

    fn relay_settings(&self, via: Option<Via>, references: Arc<[Reference]>) -> relay::Settings {
        let exchange = &self.exchange;
        relay::Settings {
            via,
            repeat_after: Duration::from_secs(exchange.repeat_after_seconds),
            repeats: exchange.repeats,
            waiting_first: Duration::from_secs(exchange.waiting_first_seconds),
            waiting_cap: Duration::from_secs(exchange.waiting_cap_seconds),
            refused_wait: Duration::from_secs(exchange.refused_wait_seconds),
            hold_after_reboot: exchange.hold_after_reboot,
            failing_cap: Duration::from_secs(exchange.failing_cap_seconds),
            spread: Duration::from_secs(exchange.spread_seconds),
            references,
            ..relay::Settings::default()
        }
    }

    fn verifier(&self) -> Result<Verifier, ConfigError> {
        let table = "verifier";
        let trust = trust_from_ca_file(&self.verifier.ca_file);
        let settings = EndpointSettings {
            url: self.verifier.url.clone(),
            tls: Some(trust.map_err(|source| ConfigError::Trust { table, source })?),
            timeout: Duration::from_secs(self.verifier.timeout_seconds),
            lanes: self.verifier.connections,
        };
        Verifier::new(&settings).map_err(|source| ConfigError::Endpoint { table, source: Box::new(source) })
    }

    fn registrar(&self) -> Result<Registrar, ConfigError> {
        let table = "registrar";
        let plaintext = self.registrar.danger_plaintext_registrar;
        let https = self.registrar.url.scheme() == "https";
        let tls = match (&self.registrar.ca_file, plaintext) {
            (_, false) if !https => {
                return Err(ConfigError::PlaintextRegistrar { url: self.registrar.url.to_string() });
            }
            (_, true) if https => return Err(ConfigError::PointlessDanger),
            (_, true) => None,
            (Some(file), false) => {
                Some(trust_from_ca_file(file).map_err(|source| ConfigError::Trust { table, source })?)
            }
            (None, false) => return Err(ConfigError::NoRegistrarCa),
        };
        let settings = EndpointSettings {
            url: self.registrar.url.clone(),
            tls,
            timeout: Duration::from_secs(self.registrar.timeout_seconds),
            lanes: self.verifier.connections,
        };
        Registrar::new(&settings).map_err(|source| ConfigError::Endpoint { table, source: Box::new(source) })
    }
}

fn topic_error(key: &'static str, value: &str, source: TopicError) -> ConfigError {
    ConfigError::Topic { key, value: value.to_owned(), source }
}
