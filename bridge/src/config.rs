//! What the operator configures, read once and checked before anything starts.
//!
//! A TOML file, then `KEYLIME_MQTT_BRIDGE_…` from the environment (`__` between levels), then `--set key=value`; later ones win. Invariant: what
//! [`Config::check`] returns can be used as it is, and everything that it refuses names the key, the file and the remedy.

mod checked;

pub use checked::{Checked, ConfigError};

use figment::Figment;
use figment::providers::{Env, Format as _, Toml};
use keylime_mqtt_broker_config::BrokerSettings;
use reqwest::Url;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Prefix of environment variables
const ENV_PREFIX: &str = "KEYLIME_MQTT_BRIDGE_";
/// Variables with that prefix that are flags and not settings
const ENV_FLAGS: [&str; 2] = ["config", "log"];
/// Where the file is looked for by default
pub const DEFAULT_FILE: &str = "/etc/keylime-mqtt/bridge.toml";

/// The whole configuration
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach the broker
    pub broker: BrokerSettings,
    /// Names on the broker
    #[serde(default)]
    pub topics: TopicSettings,
    /// Keylime's verifier
    pub verifier: VerifierSettings,
    /// Keylime's registrar
    pub registrar: RegistrarSettings,
    /// Which devices may register
    pub admission: AdmissionTable,
    /// The exchange with devices
    #[serde(default)]
    pub exchange: ExchangeSettings,
    /// Bounds
    #[serde(default)]
    pub limits: Limits,
    /// UEFI logs kept on the disk
    #[serde(default)]
    pub cache: CacheSettings,
    /// Files made by `keylime-mqtt-bridge reference` that devices may have too: what they know need not travel
    #[serde(default)]
    pub references: Vec<PathBuf>,
    /// Keys that seal tickets; made with mode 0600 if missing. Replicas share a copy. Beside it, under the same name and
    /// `.session-budget`, is kept what was spent of `sessions_per_minute`
    pub ticket_key_file: PathBuf,
    /// Unix socket from which `waiting` reads, mode 0600
    #[serde(default = "default_status_socket")]
    pub status_socket: PathBuf,
}

/// `[topics]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicSettings {
    /// First levels of every topic
    pub prefix: String,
    /// This bridge's name where several serve; answers then come to its own topic
    pub via: Option<String>,
    /// Group of `$share` subscriptions where several serve
    pub share_group: Option<String>,
}

/// `[verifier]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierSettings {
    /// Such as `https://verifier.example:8881`
    #[serde(deserialize_with = "url")]
    pub url: Url,
    /// PEM file with the CA certificates of the verifier, and of nothing else
    pub ca_file: PathBuf,
    /// Longest time for one request, seconds. Keylime checks evidence and tokens on the thread that answers, so above a minute
    #[serde(default = "default_verifier_timeout")]
    pub timeout_seconds: u64,
    /// Requests under way at once, and keep-alive connections; devices keep to one each
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// The verifier's `session_create_rate_limit_per_ip`; the bridge stays below it
    #[serde(default = "default_sessions")]
    pub sessions_per_minute: u32,
    /// Bridges that share what the verifier allows: those on the same address, and those that serve the same devices
    #[serde(default = "one")]
    pub replicas: u32,
}

/// `[registrar]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrarSettings {
    /// Such as `https://registrar.example:8891`
    #[serde(deserialize_with = "url")]
    pub url: Url,
    /// PEM file with the CA certificates of the registrar, and of nothing else
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Longest time for one request, seconds
    #[serde(default = "default_registrar_timeout")]
    pub timeout_seconds: u64,
    /// Allows `http://`: whoever is on the way to the registrar can then enrol their own TPM in a device's place
    #[serde(default)]
    pub danger_plaintext_registrar: bool,
}

/// `[admission]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionTable {
    /// Directory with certificates of TPM makers, PEM or DER
    #[serde(default)]
    pub ek_ca_dir: Option<PathBuf>,
    /// File of `id = EK hash` lines; read again when it changes
    #[serde(default)]
    pub list_file: Option<PathBuf>,
    /// Lets any TPM of a trusted maker take any id that is not in the list
    #[serde(default)]
    pub danger_any_id_of_trusted_ca: bool,
}

/// `[exchange]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExchangeSettings {
    /// When an unanswered question is repeated, seconds; doubles
    pub repeat_after_seconds: u64,
    /// How often it is repeated
    pub repeats: u8,
    /// First and longest wait of a device that is not enrolled at the verifier, seconds
    pub waiting_first_seconds: u64,
    /// See `waiting_first_seconds`
    pub waiting_cap_seconds: u64,
    /// Wait of a refused device, seconds; no more than an interval where what was refused is not signed
    pub refused_wait_seconds: u64,
    /// Longest wait between attestations of a device that Keylime fails, seconds
    pub failing_cap_seconds: u64,
    /// After a restart, devices are asked to speak up within this time, seconds
    pub spread_seconds: u64,
    /// Hold a device that rebooted under an IMA policy: Keylime would fail it for good until it is added again
    pub hold_after_reboot: bool,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Devices remembered at once
    pub max_devices: usize,
    /// Bytes of unfinished messages and logs of all devices together
    pub max_held_bytes: usize,
    /// Bytes of UEFI logs kept; about 50 kB for each kind of firmware and boot
    pub uefi_cache_bytes: u64,
}

/// `[cache]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Directory of this bridge's own for UEFI logs; made if missing. Without it they are kept in memory alone
    pub dir: Option<PathBuf>,
    /// Bytes kept there; the oldest log goes first
    pub max_bytes: u64,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self { prefix: keylime_mqtt_schemas::topics::DEFAULT_PREFIX.to_owned(), via: None, share_group: None }
    }
}

impl Default for ExchangeSettings {
    fn default() -> Self {
        Self {
            repeat_after_seconds: 10,
            repeats: 2,
            waiting_first_seconds: 5,
            waiting_cap_seconds: 60,
            refused_wait_seconds: 300,
            failing_cap_seconds: 300,
            spread_seconds: 10,
            hold_after_reboot: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_devices: 20_000, max_held_bytes: 256 * 1024 * 1024, uefi_cache_bytes: 256 * 1024 * 1024 }
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { dir: None, max_bytes: 256 * 1024 * 1024 }
    }
}

fn url<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| serde::de::Error::custom(format!("\"{text}\" is not a URL ({error})")))
}

fn default_status_socket() -> PathBuf {
    "/run/keylime-mqtt-bridge/status.sock".into()
}

const fn default_verifier_timeout() -> u64 {
    120
}

const fn default_registrar_timeout() -> u64 {
    30
}

const fn default_connections() -> usize {
    8
}

const fn default_sessions() -> u32 {
    50
}

const fn one() -> u32 {
    1
}

impl Config {
    /// Reads file, environment and `key=value` overrides
    ///
    /// # Errors
    /// When a key is unknown, missing or of another type, with its name and source.
    pub fn read(file: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        if !file.is_file() {
            return Err(ConfigError::NoFile { path: file.to_owned() });
        }
        let environment = Env::prefixed(ENV_PREFIX).ignore(&ENV_FLAGS).split("__");
        let mut figment = Figment::new().merge(Toml::file_exact(file)).merge(environment);
        for text in overrides {
            figment = figment.merge(Toml::string(&as_toml(text)?));
        }
        figment.extract().map_err(|error| ConfigError::Read(describe(&error, file)))
    }
}

/// A line for each mistake: where it stands, which key, what is wrong
fn describe(errors: &figment::Error, file: &Path) -> String {
    let lines = errors.clone().into_iter().map(|error| {
        let at = match &error.metadata {
            Some(metadata) if metadata.name.contains("environment") => format!("environment {ENV_PREFIX}…"),
            // as figment calls TOML that is in no file
            Some(metadata) if metadata.name.contains("source string") => "--set".to_owned(),
            _ => file.display().to_string(),
        };
        let key = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path.join(".")) };
        format!("{at}: {}{}", key.to_lowercase(), error.kind)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `a.b=value` as TOML; a value that is none is taken as a string
fn as_toml(text: &str) -> Result<String, ConfigError> {
    let (key, value) = text.split_once('=').ok_or_else(|| ConfigError::Override { text: text.to_owned() })?;
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if key.trim().is_empty() || !key.trim().chars().all(bare) {
        return Err(ConfigError::Override { text: text.to_owned() });
    }
    let value = value.trim();
    let literal = value.parse::<i64>().is_ok() || matches!(value, "true" | "false") || value.starts_with('[');
    let quoted = if literal { value.to_owned() } else { serde_json::Value::from(value).to_string() };
    Ok(format!("{} = {quoted}", key.trim()))
}
