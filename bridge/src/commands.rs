//! The command line: `run`, `check-config`, `waiting`.

use crate::config::{Config, DEFAULT_FILE};
use crate::fleet::Snapshot;
use crate::{run, status_socket};
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tracing_subscriber::EnvFilter;

/// Drives Keylime on behalf of devices that reach nothing but an MQTT broker
#[derive(Debug, Parser)]
#[command(
    name = "keylime-mqtt-bridge",
    version,
    after_help = "\
Every key of the configuration can be set in the environment: KEYLIME_MQTT_BRIDGE_VERIFIER__URL is url in the table [verifier].
The environment wins over the file, --set wins over both. Exits with 1, and a line that says why, when it cannot start."
)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Source {
    /// Configuration file (TOML)
    #[arg(long, global = true, env = "KEYLIME_MQTT_BRIDGE_CONFIG", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Overrides a key, such as verifier.url=https://verifier:8881; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// What to log, such as info or keylime_mqtt_bridge=debug
    #[arg(long, global = true, env = "KEYLIME_MQTT_BRIDGE_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT
    Run,
    /// Reads and checks the configuration with all its files, and connects to nothing. Run it as the bridge's user: a
    /// missing ticket_key_file is made
    CheckConfig,
    /// Shows devices that were seen by the running bridge but are not attested, and why
    Waiting {
        /// Prints JSON: also what was refused and what Keylime did not answer
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// Does what was asked for
    ///
    /// # Errors
    /// Whatever an operator has to know.
    pub async fn execute(self) -> anyhow::Result<()> {
        let config = Config::read(&self.source.config, &self.source.overrides)?;
        match self.command {
            Command::Run => {
                start_logging(&self.source.log)?;
                run::run(config.check()?).await?;
            }
            Command::CheckConfig => {
                let checked = config.check()?;
                say(&format!("the configuration is good; broker {}\n", checked.broker.address()))?;
            }
            Command::Waiting { json } => {
                let snapshot = status_socket::ask(&config.status_socket)?;
                say(&if json { serde_json::to_string_pretty(&snapshot)? + "\n" } else { table(&snapshot) })?;
            }
        }
        Ok(())
    }
}

fn start_logging(filter: &str) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("--log {filter}: is not a log filter"))?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    Ok(())
}

fn say(text: &str) -> std::io::Result<()> {
    std::io::stdout().write_all(text.as_bytes())
}

fn table(snapshot: &Snapshot) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let devices = snapshot.waiting.iter().map(|device| {
        let age = now.saturating_sub(device.since);
        let remedy = device.remedy.as_ref().map(|remedy| format!("  {remedy}\n")).unwrap_or_default();
        let ek_hash = device.ek_hash.as_ref().map(|hash| format!("  EK hash {hash}\n")).unwrap_or_default();
        format!("\n{}  (for {age} s)\n  {}\n{remedy}{ek_hash}", device.id, device.reason)
    });
    let head = format!("{} devices, {} of them waiting\n", snapshot.devices, snapshot.waiting.len());
    std::iter::once(head).chain(devices).collect()
}
