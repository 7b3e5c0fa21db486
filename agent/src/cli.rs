//! The command line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, value_parser};
use keylime_mqtt_broker_config::{Report, Step, keep_memory_private};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, ConfigError, DEFAULT_FILE, Overrides, TpmOverrides};
use crate::doctor::{self, Wishes};
use crate::run::{self, EXIT_CODES, Mode, RunError};
use crate::store::Store;
use crate::tpm::{Identity, Tpm, TpmError, ek_certificate_issuer};

/// The library below logs every refused command by itself; what matters is logged here with its meaning.
const QUIET: &str = "tss_esapi=off";
/// Exit code for a wrong configuration or command line; clap uses the same.
pub const WRONG_CONFIGURATION: u8 = 2;
/// Longest time between wakes: far above any interval at which Keylime attests.
const MONTH: i64 = 31 * 24 * 3600;

/// Attests this device to Keylime through an MQTT broker: answers the bridge's challenges with evidence of the TPM.
#[derive(Debug, Parser)]
#[command(
    name = "keylime-mqtt-agent",
    version,
    after_help = "\
Every key of the configuration can be set in the environment: KEYLIME_MQTT_AGENT_TPM__TCTI is tcti in the table [tpm].
The environment wins over the file, flags win over both. TSS2_LOG=all+NONE silences what the TPM library prints by itself."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file (TOML).
    #[arg(long, short, global = true, env = "KEYLIME_MQTT_AGENT_CONFIG", default_value = DEFAULT_FILE, value_name = "FILE")]
    config: PathBuf,
    /// Id under which Keylime knows the device, or `hash_ek` [key: id].
    #[arg(long, global = true)]
    id: Option<String>,
    /// How to reach the TPM, such as device:/dev/tpmrm0 [key: tpm.tcti].
    #[arg(long, global = true)]
    tcti: Option<String>,
    /// Directory for what must outlive a restart [key: state_dir].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Filter for the log on standard error, such as debug [key: log].
    #[arg(long, global = true)]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attest until stopped, connected all the time or at each wake; or once, with an exit code that says the outcome.
    #[command(after_help = EXIT_CODES, group(ArgGroup::new("sleeping").args(["once", "every"])))]
    Run {
        /// Wake, attest, end.
        #[arg(long)]
        once: bool,
        /// Wake every so many seconds, attest and disconnect, in one process: costs less than --once at each wake.
        #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=MONTH))]
        every: Option<u32>,
        /// With --once and --every: latest end of a wake, in seconds.
        #[arg(long, default_value_t = 300, value_name = "SECONDS", requires = "sleeping")]
        deadline: u64,
        /// With --once: seconds until the next run, so that the bridge knows when to expect it; 0: at no fixed time.
        #[arg(
            long,
            default_value_t = 0,
            value_name = "SECONDS",
            requires = "once",
            conflicts_with = "every"
        )]
        sleep: u32,
    },
    /// Check configuration, certificates, logs and state, without touching TPM or broker.
    CheckConfig,
    /// Walk the way of the data, from the TPM to the bridge, and say what works, what does not, and what to do.
    ///
    /// May run beside the agent. Sends up to broker.max_packet_bytes once. Nothing of it changes how the device stands.
    #[command(
        after_help = "Exits with 0 when all is well, 1 when something failed or was found, 2 when the configuration is wrong."
    )]
    Doctor {
        /// Print the steps as JSON, at the end.
        #[arg(long)]
        json: bool,
        /// Leave out the message of max_packet_bytes: for links on which 120 kB matter.
        #[arg(long)]
        spare_link: bool,
    },
    /// Print who this device is, and the lines to paste for admission and enrolment. Uses the TPM.
    ShowIdentity,
}

impl Cli {
    /// Where a wrong value may stand.
    pub fn sources(&self) -> String {
        let file = self.global.config.display();
        format!(
            "The configuration is {file}; variables KEYLIME_MQTT_AGENT_\u{2026} win over it, flags over both."
        )
    }

    /// Does what was asked; the result is the exit code.
    pub fn execute(self) -> Result<u8, CliError> {
        let config = Config::read(&self.global.config, &self.global.overrides());
        if let Command::Doctor { json, spare_link } = self.command {
            return doctor(config, &self.global.config, Wishes { spare_link }, json);
        }
        let config = config?;
        let filter = filter(&config.log)?;
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        tracing_subscriber::registry().with(filter).with(lines).init();
        match self.command {
            Command::Run { once, every, deadline, sleep } => {
                keep_memory_private();
                let deadline = Duration::from_secs(deadline);
                let mode = match every {
                    Some(seconds) => Mode::Every { seconds, deadline },
                    None if once => Mode::Once { deadline, sleep },
                    None => Mode::Service,
                };
                let ending = runtime()?.block_on(run::run(&config, mode))?;
                if once {
                    tracing::info!(exit_code = ending.exit_code(), "{ending}");
                }
                Ok(ending.exit_code())
            }
            Command::Doctor { .. } => Ok(0),
            Command::CheckConfig => {
                check(&config)?;
                println!("{}: the configuration is good", self.global.config.display());
                Ok(0)
            }
            Command::ShowIdentity => {
                print!("{}", runtime()?.block_on(show_identity(&config))?);
                Ok(0)
            }
        }
    }
}

impl Global {
    fn overrides(&self) -> Overrides {
        Overrides {
            id: self.id.clone(),
            state_dir: self.state_dir.clone(),
            log: self.log.clone(),
            tpm: self.tcti.clone().map(|tcti| TpmOverrides { tcti }),
        }
    }
}

/// What ends the program with a message.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter.
    #[error("log = {filter:?}: {source}; write info, debug or as in RUST_LOG")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The agent cannot run on.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// 2 for what the operator has to correct before a new try can help, else 1.
pub fn exit_code_of(error: &CliError) -> u8 {
    match error {
        CliError::Config(_)
        | CliError::Filter { .. }
        | CliError::Run(
            RunError::Config(_)
            | RunError::Log(_)
            | RunError::Store(_)
            | RunError::Tpm(TpmError::BadTcti { .. } | TpmError::NoEk { .. } | TpmError::ForeignEk { .. }),
        ) => WRONG_CONFIGURATION,
        CliError::Run(_) => 1,
    }
}

/// By level and target; what EnvFilter can do beyond that needs a regex engine of its own on the device.
fn filter(filter: &str) -> Result<Targets, CliError> {
    format!("{filter},{QUIET}")
        .parse()
        .map_err(|source| CliError::Filter { filter: filter.to_owned(), source })
}

fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    // This thread carries the connection; TPM and logs have their own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "no runtime", source })
}

fn check(config: &Config) -> Result<(), RunError> {
    config.broker()?;
    config.reference()?;
    run::check_files(config)?;
    Store::peek(&config.state_dir)?;
    Tpm::check(&config.tpm())?;
    Ok(())
}

/// The steps on standard output: each as soon as it is known, or all of them as JSON.
fn doctor(
    config: Result<Config, ConfigError>,
    file: &Path,
    wishes: Wishes,
    json: bool,
) -> Result<u8, CliError> {
    let shown: fn(&Step) = |step| println!("{step}");
    let mut report = Report::new(doctor::PROGRAM, (!json).then_some(shown));
    let is_configured = match config {
        Ok(config) => runtime()?.block_on(doctor::examine(&config, wishes, &mut report)),
        Err(error) => {
            report.add(Step::error("configuration", &error).of(file.display().to_string()));
            false
        }
    };
    if json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| RunError::System { what: "no report", source: error.into() })?;
        println!("{text}");
    } else {
        println!("{}", report.summary());
    }
    Ok(if is_configured { report.exit_code() } else { WRONG_CONFIGURATION })
}

async fn show_identity(config: &Config) -> Result<String, RunError> {
    let mut store = Store::peek(&config.state_dir)?;
    let tpm = Tpm::start(config.tpm(), store.state().ak.clone()).await?;
    let identity = tpm.identity().await?;
    tpm.close().await?;
    if store.state().ak.is_none() {
        store.update(|state| state.ak = Some(identity.saved_ak.clone()))?;
    }
    let id = run::agent_id(config, &identity)?;
    Ok(describe(id.as_str(), &identity, config))
}

fn describe(id: &str, identity: &Identity, config: &Config) -> String {
    let certificate = match &identity.ek_certificate {
        Some(der) => match ek_certificate_issuer(der) {
            Some(issuer) => format!("issued by {issuer}"),
            None => "present, but not readable as a certificate".to_owned(),
        },
        None => "none: this TPM has no EK certificate, so the bridge needs the admission line".to_owned(),
    };
    let mut policies = Vec::new();
    policies.extend(config.ima_log.as_ref().map(|_| "--runtime-policy FILE"));
    policies.extend(config.uefi_log.as_ref().map(|_| "--mb-policy FILE"));
    if policies.is_empty() {
        policies.push(r#"--tpm_policy '{"7": ["<sha256 in hex>"]}'"#);
    }
    format!(
        "\
id:             {id}
EK hash:        {ek_hash}
EK certificate: {certificate}
AK name:        {ak_name}

Common name of this device's certificate for the broker:
  {id}

Line for the bridge's admission list ([admission] list_file){needed}:
  {id} = {ek_hash}

To enrol at the verifier, once the agent has run (without a policy the verifier asks for nothing and never says PASS):
  keylime_tenant -c add --push-model -u {id} {policies}
",
        ek_hash = identity.ek_hash,
        needed = if id == identity.ek_hash && identity.ek_certificate.is_some() {
            ", unless ek_ca_dir has the root of the EK certificate"
        } else {
            ""
        },
        ak_name = hex::encode(identity.ak_name),
        policies = policies.join(" "),
    )
}
