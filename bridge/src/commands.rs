//! The command line: `run`, `check-config`, `waiting`, `doctor`, `reference`.

use crate::config::{Config, ConfigError, DEFAULT_FILE};
use crate::doctor::{self, Wishes};
use crate::fleet::Snapshot;
use crate::reference::{Made, Sources, make_reference};
use crate::{run, status_socket};
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use keylime_mqtt_broker_config::{Report, Step, keep_memory_private};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing_subscriber::EnvFilter;

/// Exit code of a command that did what was asked
const SUCCESS: u8 = 0;
/// Exit code of the doctor for a wrong configuration; clap uses the same for a wrong command line
const WRONG_CONFIGURATION: u8 = 2;

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
    /// Walks the way of the data, from the broker to Keylime, and says what works, what does not, and what to do
    ///
    /// May run beside the bridge. Asks Keylime for nothing but its version. Run it as the bridge's user: a missing ticket_key_file is made.
    #[command(
        after_help = "Exits with 0 when all is well, 1 when something failed or was found, 2 when the configuration is wrong."
    )]
    Doctor(DoctorArguments),
    /// Makes a reference: a file known to devices and bridge, so that what it holds of their logs need not travel
    ///
    /// Give at least one of --policy, --ima and --uefi. The result goes to every device of the kind and to every bridge; the command says where. It holds
    /// no secret, and nothing in it can make an attestation pass: a device with another reference or none is attested all the same, at more bytes.
    /// Needs no configuration.
    Reference(ReferenceArguments),
}

#[derive(Debug, Args)]
struct DoctorArguments {
    /// Prints the steps as JSON, at the end
    #[arg(long)]
    json: bool,
    /// Logs in at the broker although a bridge runs here: one that takes client ids from certificates ends that bridge's connection for a moment
    #[arg(long)]
    login_too: bool,
    /// Keylime's verifier.conf, to check its settings against the fleet
    #[arg(long, value_name = "FILE")]
    verifier_conf: Option<PathBuf>,
    /// With --verifier-conf: devices of the fleet, where the admission list does not have them all
    #[arg(long, value_name = "N", requires = "verifier_conf")]
    devices: Option<u64>,
    /// With --verifier-conf: longest sleep of a device
    #[arg(long, value_name = "SECONDS", requires = "verifier_conf")]
    sleep: Option<u64>,
    /// With --verifier-conf: how long an attestation takes over the slowest link
    #[arg(long, value_name = "SECONDS", requires = "verifier_conf")]
    answer: Option<u64>,
}

#[derive(Debug, Args)]
struct ReferenceArguments {
    #[command(flatten)]
    inputs: ReferenceInputs,
    /// Where to write the reference
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct ReferenceInputs {
    /// Runtime policy (JSON) as keylime-policy or keylime_tenant take it: all files that it allows
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// IMA log of a golden machine, a copy of /sys/kernel/security/ima/ascii_runtime_measurements
    #[arg(long, value_name = "FILE")]
    ima: Option<PathBuf>,
    /// UEFI log of a golden machine, a copy of /sys/kernel/security/tpm0/binary_bios_measurements
    #[arg(long, value_name = "FILE")]
    uefi: Option<PathBuf>,
}

impl Cli {
    /// Does what was asked for
    ///
    /// # Errors
    /// Whatever an operator has to know.
    pub async fn execute(self) -> anyhow::Result<u8> {
        if let Command::Reference(arguments) = self.command {
            let ReferenceArguments { inputs: ReferenceInputs { policy, ima, uefi }, output } = arguments;
            let made = make_reference(&Sources { policy, ima, uefi }, &output)?;
            say(&what_next(&made, &output))?;
            return Ok(SUCCESS);
        }
        let config = Config::read(&self.source.config, &self.source.overrides);
        if let Command::Doctor(arguments) = self.command {
            return examine(config, &self.source.config, arguments).await;
        }
        let sources = self.source.named();
        let wrong = |error: ConfigError| anyhow::anyhow!("{error}\n{sources}");
        let config = config.map_err(wrong)?;
        match self.command {
            Command::Reference(_) | Command::Doctor(_) => {}
            Command::Run => {
                start_logging(&self.source.log)?;
                keep_memory_private();
                run::run(config.check().map_err(wrong)?).await?;
            }
            Command::CheckConfig => {
                let checked = config.check().map_err(wrong)?;
                for unused in checked.admission.unused_certificates() {
                    say(&format!("{unused}\n"))?;
                }
                say(&format!("the configuration is good; broker {}\n", checked.broker.address()))?;
            }
            Command::Waiting { json } => {
                let snapshot = status_socket::ask(&config.status_socket)?;
                say(&if json { serde_json::to_string_pretty(&snapshot)? + "\n" } else { table(&snapshot) })?;
            }
        }
        Ok(SUCCESS)
    }
}

impl Source {
    /// Where a wrong value may stand
    fn named(&self) -> String {
        let file = self.config.display();
        format!(
            "The configuration is {file}; variables KEYLIME_MQTT_BRIDGE_\u{2026} win over it, --set over both."
        )
    }
}

/// The steps on standard output: each as soon as it is known, or all of them as JSON
async fn examine(
    config: Result<Config, ConfigError>,
    file: &Path,
    arguments: DoctorArguments,
) -> anyhow::Result<u8> {
    let DoctorArguments { json, login_too, verifier_conf, devices, sleep, answer } = arguments;
    let shown: fn(&Step) = |step| println!("{step}");
    let mut report = Report::new(doctor::PROGRAM, (!json).then_some(shown));
    let is_configured = match config {
        Ok(config) => {
            let wishes = Wishes { login_too, verifier_conf, devices, sleep, answer };
            doctor::examine(config, &wishes, &mut report).await
        }
        Err(error) => {
            report.add(Step::error("configuration", &error).of(file.display().to_string()));
            false
        }
    };
    say(&if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.summary() + "\n" })?;
    Ok(if is_configured { report.exit_code() } else { WRONG_CONFIGURATION })
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

fn what_next(made: &Made, output: &Path) -> String {
    let Made { digest, entries, uefi, size } = made;
    let uefi = if *uefi == 0 { "no UEFI log".to_owned() } else { format!("a UEFI log of {uefi} bytes") };
    let file = output.display();
    format!(
        "{file}: {size} bytes, knows {entries} files and {uefi}\nSHA-256 {}\n\nNext, with the same file on both sides:\n\
         - copy it to the devices and name it in agent.toml:     reference = \"/etc/keylime-mqtt/reference\"\n\
         - copy it to the bridges and name it in bridge.toml:    references = [\"/etc/keylime-mqtt/reference\"]\n\
         - restart the bridges first, then the agents; `keylime-mqtt-bridge check-config` reads the file\n",
        hex::encode(digest.as_bytes())
    )
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
