//! The configuration: a TOML file, then the environment, then flags, read once at start into types that are checked.
//!
//! What is wrong is refused with its key, the file it stands in and what to write instead; a key that is not known is an
//! error, for a misspelt one would otherwise silently be the default.

mod error;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use keylime_mqtt_broker_config::{BrokerSettings, CheckedBroker};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::attester;
use keylime_mqtt_schemas::fragment::{DEFAULT_PAYLOAD, MAX_PAYLOAD};
use keylime_mqtt_schemas::messages::PcrMask;
use keylime_mqtt_schemas::messages::limits::MAX_FIRST_CONTACT;
use keylime_mqtt_schemas::topics::{DEFAULT_PREFIX, Topics};
use serde::{Deserialize, Serialize};

use crate::logs::boot::BootSources;
use crate::tpm::TpmSettings;

pub use error::ConfigError;

/// Where the file is when no flag says otherwise.
pub const DEFAULT_FILE: &str = "/etc/keylime-mqtt/agent.toml";
/// `KEYLIME_MQTT_AGENT_TPM__TCTI` is `tpm.tcti`.
const ENVIRONMENT: &str = "KEYLIME_MQTT_AGENT_";
/// The largest reference there is, in bytes; a larger file is no reference.
const LARGEST_REFERENCE: u64 = 64 * 1024 * 1024;
/// The id that stands for "the hash of this TPM's EK".
pub const HASH_EK: &str = "hash_ek";

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id under which Keylime knows the device, or `hash_ek`.
    #[serde(default = "hash_ek")]
    id: String,
    /// First levels of all topics; the same as the bridge's.
    #[serde(default = "topic_prefix")]
    topic_prefix: String,
    /// Directory for what must outlive a restart.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// The kernel's ascii IMA log. Left out: the device attests without.
    #[serde(default)]
    pub ima_log: Option<PathBuf>,
    /// The firmware's log. Left out: the device attests without.
    #[serde(default)]
    pub uefi_log: Option<PathBuf>,
    /// A file that the bridge has too: what it knows of the logs need not travel.
    #[serde(default)]
    reference: Option<PathBuf>,
    /// Text that differs in every boot.
    #[serde(default = "boot_id_file")]
    boot_id_file: PathBuf,
    /// `/proc/stat`, or a file with a number of Unix seconds.
    #[serde(default = "boot_time_file")]
    boot_time_file: PathBuf,
    /// Longest silence of the bridge to bear before the device speaks up, whatever the bridge says.
    #[serde(default = "longest_silence")]
    longest_silence_seconds: u64,
    /// First wait for an answer when the device has spoken up; doubles.
    #[serde(default = "first_retry")]
    first_retry_seconds: u64,
    /// Longest such wait.
    #[serde(default = "longest_retry")]
    longest_retry_seconds: u64,
    /// A device that the verifier does not know registers again after so long, and no oftener.
    #[serde(default = "enrol_again_after")]
    enrol_again_after_seconds: u64,
    /// Questions answered in a minute, twice as many at once: a broker that lies may ask more.
    #[serde(default = "answers_per_minute")]
    answers_per_minute: u32,
    /// PCRs that may be quoted; left out: all of them.
    #[serde(default)]
    pcrs: Option<Vec<u8>>,
    /// Largest MQTT payload in bytes; what is larger goes in parts.
    #[serde(default = "payload_bytes")]
    pub payload_bytes: usize,
    /// Filter for the log by level and target, as in RUST_LOG: `info`, `keylime_mqtt_agent=debug,warn`.
    #[serde(default = "log")]
    pub log: String,
    /// The TPM.
    #[serde(default)]
    tpm: TpmTable,
    /// The broker.
    broker: BrokerSettings,
}

/// The table `[tpm]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TpmTable {
    tcti: String,
    command_timeout_seconds: u64,
    ek_handle: Option<u32>,
}

impl Default for TpmTable {
    fn default() -> Self {
        Self { tcti: "device:/dev/tpmrm0".to_owned(), command_timeout_seconds: 60, ek_handle: None }
    }
}

fn hash_ek() -> String {
    HASH_EK.to_owned()
}
fn topic_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}
fn state_dir() -> PathBuf {
    "/var/lib/keylime-mqtt-agent".into()
}
fn boot_id_file() -> PathBuf {
    "/proc/sys/kernel/random/boot_id".into()
}
fn boot_time_file() -> PathBuf {
    "/proc/stat".into()
}
const fn longest_silence() -> u64 {
    900
}
const fn first_retry() -> u64 {
    10
}
const fn longest_retry() -> u64 {
    300
}
const fn enrol_again_after() -> u64 {
    3600
}
const fn answers_per_minute() -> u32 {
    60
}
const fn payload_bytes() -> usize {
    DEFAULT_PAYLOAD
}
fn log() -> String {
    "info".to_owned()
}

/// What flags may set; they win over file and environment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Overrides {
    /// `id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `state_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// `log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// `tpm.tcti`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmOverrides>,
}

/// What flags may set of `[tpm]`.
#[derive(Debug, Clone, Serialize)]
pub struct TpmOverrides {
    /// `tpm.tcti`.
    pub tcti: String,
}

/// How the device is called: given, or known once the TPM was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfiguredId {
    /// The hash of the EK, as Keylime's own agent has it with `uuid = "hash_ek"`.
    HashOfEk,
    /// This one.
    Given(AgentId),
}

impl Config {
    /// Reads and checks everything but the broker's files, see [`Self::broker`].
    pub fn read(file: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        if !file.is_file() {
            return Err(ConfigError::NoFile { path: file.to_owned() });
        }
        let config: Self = Figment::new()
            .merge(Toml::file_exact(file))
            // The flag of the same name may come from the environment too.
            .merge(Env::prefixed(ENVIRONMENT).ignore(&["config"]).split("__"))
            .merge(Serialized::defaults(overrides))
            .extract()
            .map_err(|error| ConfigError::Shape(error::describe(&error, file)))?;
        config.check()?;
        Ok(config)
    }

    /// The id.
    pub fn id(&self) -> Result<ConfiguredId, ConfigError> {
        if self.id == HASH_EK {
            return Ok(ConfiguredId::HashOfEk);
        }
        let parsed = self.id.parse();
        parsed.map(ConfiguredId::Given).map_err(|source| ConfigError::Id { id: self.id.clone(), source })
    }

    /// The topics.
    pub fn topics(&self) -> Result<Topics, ConfigError> {
        Topics::new(&self.topic_prefix)
            .map_err(|source| ConfigError::Prefix { prefix: self.topic_prefix.clone(), source })
    }

    /// The broker, with its certificates and key read.
    pub fn broker(&self) -> Result<CheckedBroker, ConfigError> {
        Ok(self.broker.check()?)
    }

    /// The reference, read.
    pub fn reference(&self) -> Result<Option<Reference>, ConfigError> {
        let Some(path) = &self.reference else { return Ok(None) };
        let refused = |reason: String| ConfigError::Reference { path: path.clone(), reason };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LARGEST_REFERENCE + 1).read_to_end(&mut bytes))
            .map_err(|error| refused(error.to_string()))?;
        Reference::from_file(bytes).map(Some).map_err(|error| refused(error.to_string()))
    }

    /// The PCRs that may be quoted.
    pub fn pcrs(&self) -> PcrMask {
        let Some(pcrs) = &self.pcrs else { return PcrMask::ALL };
        let bits = pcrs.iter().filter(|pcr| **pcr < 24).fold(0, |bits, pcr| bits | 1 << u32::from(*pcr));
        PcrMask::try_from(bits).unwrap_or_default()
    }

    /// The TPM.
    pub fn tpm(&self) -> TpmSettings {
        TpmSettings {
            tcti: self.tpm.tcti.clone(),
            command_timeout: Duration::from_secs(self.tpm.command_timeout_seconds),
            ek_handle: self.tpm.ek_handle,
        }
    }

    /// Where boot id and time come from.
    pub fn boot(&self) -> BootSources {
        BootSources { id: self.boot_id_file.clone(), time: self.boot_time_file.clone() }
    }

    /// How the device behaves in the exchange; `sleeps`: it is connected only to attest.
    pub fn attester(&self, seed: u64, sleeps: bool) -> attester::Settings {
        attester::Settings {
            first_retry: Duration::from_secs(self.first_retry_seconds),
            retry_cap: Duration::from_secs(self.longest_retry_seconds),
            silence_cap: Duration::from_secs(self.longest_silence_seconds),
            enrol_again_after: Duration::from_secs(self.enrol_again_after_seconds),
            answers_per_minute: self.answers_per_minute,
            sleeps,
            seed,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.id()?;
        self.topics()?;
        let in_range = |key, value, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::OutOfRange { key, value, least, most })
            }
        };
        let day = 24 * 3600;
        in_range("longest_silence_seconds", self.longest_silence_seconds, 1, 7 * day)?;
        in_range("first_retry_seconds", self.first_retry_seconds, 1, 3600)?;
        in_range("longest_retry_seconds", self.longest_retry_seconds, 1, day)?;
        let (first, longest) = (self.first_retry_seconds, self.longest_retry_seconds);
        if first > longest {
            return Err(ConfigError::Waits { first, longest });
        }
        in_range("enrol_again_after_seconds", self.enrol_again_after_seconds, 1, 30 * day)?;
        in_range("answers_per_minute", self.answers_per_minute.into(), 1, 6000)?;
        for pcr in self.pcrs.iter().flatten() {
            in_range("pcrs", u64::from(*pcr), 0, 23)?;
        }
        // A first contact never goes in parts.
        in_range("payload_bytes", self.payload_bytes as u64, MAX_FIRST_CONTACT as u64, MAX_PAYLOAD as u64)?;
        // Over 300 s even the kernel has given the command up.
        in_range("tpm.command_timeout_seconds", self.tpm.command_timeout_seconds, 1, 300)
    }
}

#[cfg(test)]
mod tests;
