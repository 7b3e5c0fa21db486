//! `[[broker.fallback]]`: brokers to go to when the first cannot be reached, and what each of them takes over
//! from the first.

use std::path::PathBuf;

use serde::Deserialize;

use super::{BrokerSettings, Headers, ProxyChoice, Transport};

/// One more broker, tried after those before it. What is left out is as in `[broker]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FallbackBroker {
    /// As in `[broker]`.
    pub host: String,
    /// As in `[broker]`; with another transport than there, that transport's default.
    #[serde(default)]
    pub port: Option<u16>,
    /// As in `[broker]`.
    #[serde(default)]
    pub transport: Option<Transport>,
    /// As in `[broker]`.
    #[serde(default)]
    pub websocket_path: Option<String>,
    /// As in `[broker]`.
    #[serde(default)]
    pub websocket_headers: Option<Headers>,
    /// As in `[broker]`.
    #[serde(default)]
    pub alpn: Option<Vec<String>>,
    /// As in `[broker]`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// As in `[broker]`; together with the key.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// As in `[broker]`; together with the certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// As in `[broker]`.
    #[serde(default)]
    pub proxy: Option<ProxyChoice>,
}

/// One broker with everything filled in.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) transport: Transport,
    pub(super) websocket_path: String,
    pub(super) websocket_headers: Headers,
    pub(super) alpn: Vec<String>,
    pub(super) ca_file: PathBuf,
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) proxy: ProxyChoice,
}

/// mosquitto, EMQX, HiveMQ, NanoMQ and AWS all have it there.
const DEFAULT_PATH: &str = "/mqtt";

impl BrokerSettings {
    /// The first broker, and the others in the order in which they are tried.
    pub(super) fn places(&self) -> (Place, Vec<Place>) {
        let first = Place {
            host: self.host.clone(),
            port: self.port.unwrap_or(self.transport.default_port()),
            transport: self.transport,
            websocket_path: self.websocket_path.clone().unwrap_or_else(|| DEFAULT_PATH.to_owned()),
            websocket_headers: self.websocket_headers.clone(),
            alpn: self.alpn.clone(),
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            proxy: self.proxy.clone(),
        };
        let others = self.fallback.iter().map(|other| other.after(&first)).collect();
        (first, others)
    }
}

impl FallbackBroker {
    fn after(&self, first: &Place) -> Place {
        let other = self.clone();
        let transport = other.transport.unwrap_or(first.transport);
        let inherited = if transport == first.transport { first.port } else { transport.default_port() };
        Place {
            host: other.host,
            port: other.port.unwrap_or(inherited),
            transport,
            websocket_path: other.websocket_path.unwrap_or_else(|| first.websocket_path.clone()),
            websocket_headers: other.websocket_headers.unwrap_or_else(|| first.websocket_headers.clone()),
            alpn: other.alpn.unwrap_or_else(|| first.alpn.clone()),
            ca_file: other.ca_file.unwrap_or_else(|| first.ca_file.clone()),
            cert_file: other.cert_file.unwrap_or_else(|| first.cert_file.clone()),
            key_file: other.key_file.unwrap_or_else(|| first.key_file.clone()),
            proxy: other.proxy.unwrap_or_else(|| first.proxy.clone()),
        }
    }
}
