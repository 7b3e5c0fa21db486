//! What is said of a wrong configuration: where it stands, which key, what is wrong, what to write instead.

use std::path::{Path, PathBuf};

use keylime_mqtt_broker_config::SettingsError;
use keylime_mqtt_schemas::agent_id::AgentIdError;
use keylime_mqtt_schemas::topics::TopicError;

use super::{ENVIRONMENT, HASH_EK};

/// Why the configuration is refused. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there.
    #[error("no configuration at {}; write one, or name another with --config", .path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, a key that is not known, missing, or of another type.
    #[error("{0}")]
    Shape(String),
    /// The id.
    #[error("id = {id:?}: {source}; write \"{HASH_EK}\" to use the hash of the EK")]
    Id {
        /// As configured.
        id: String,
        /// What is wrong with it.
        source: AgentIdError,
    },
    /// The prefix.
    #[error("topic_prefix = {prefix:?}: {source}")]
    Prefix {
        /// As configured.
        prefix: String,
        /// What is wrong with it.
        source: TopicError,
    },
    /// The file that the bridge has too.
    #[error("reference = {}: {reason}; name a file made by `keylime-mqtt-bridge reference`, or leave the key out", .path.display())]
    Reference {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker's table.
    #[error(transparent)]
    Broker(#[from] SettingsError),
    /// The first wait is longer than the longest.
    #[error(
        "first_retry_seconds = {first} is more than longest_retry_seconds = {longest}: change one of them"
    )]
    Waits {
        /// `first_retry_seconds`.
        first: u64,
        /// `longest_retry_seconds`.
        longest: u64,
    },
    /// A number outside its range.
    #[error("{key} = {value} is out of range: set it between {least} and {most}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// As configured.
        value: u64,
        /// Smallest allowed.
        least: u64,
        /// Largest allowed.
        most: u64,
    },
}

/// One line per mistake: where it stands, which key, what is wrong.
pub(super) fn describe(errors: &figment::Error, file: &Path) -> String {
    let lines = errors.clone().into_iter().map(|error| {
        let at = match &error.metadata {
            Some(metadata) if metadata.name.contains("environment") => format!("environment {ENVIRONMENT}…"),
            Some(metadata) if metadata.name.contains("TOML") => file.display().to_string(),
            Some(_) => "flags".to_owned(),
            None => file.display().to_string(),
        };
        let key = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path.join(".")) };
        format!("{at}: {key}{}", error.kind)
    });
    lines.collect::<Vec<_>>().join("\n")
}
