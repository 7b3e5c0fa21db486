//! The real bridge as a process, configured to react quickly.

use crate::binaries;
use crate::device::BrokerAccess;
use crate::process::Process;
use crate::scratch::read_log;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The bridge says goodbye to the broker and ends.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// What its configuration names.
#[derive(Clone, Debug)]
pub struct BridgeSettings {
    /// Where and how it reaches the broker
    pub broker: BrokerAccess,
    /// `https://…` of the verifier
    pub verifier_url: String,
    /// `https://…` of the registrar
    pub registrar_url: String,
    /// CA of Keylime's servers
    pub keylime_ca: PathBuf,
    /// Directory with the CAs of TPM makers
    pub ek_ca_dir: PathBuf,
    /// `id = EK hash` lines
    pub admission_list: PathBuf,
    /// Further settings, `key=value` as `--set` takes them
    pub set: Vec<String>,
    /// Leaves its times at the defaults that are shipped, instead of as quick as scenarios want them
    pub as_shipped: bool,
    /// Further environment
    pub environment: Vec<(String, String)>,
}

/// A bridge with a directory of its own, running or not.
#[derive(Debug)]
pub struct Bridge {
    dir: PathBuf,
    log: PathBuf,
    settings: BridgeSettings,
    verbosity: &'static str,
    launcher: Vec<String>,
    process: Option<Process>,
}

impl Bridge {
    /// Writes its configuration into `dir` and starts nothing.
    pub fn configure(name: &str, dir: PathBuf, logs: &Path, settings: BridgeSettings) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let bridge = Self { dir, log, settings, verbosity: "info", launcher: Vec::new(), process: None };
        bridge.write_configuration()?;
        Ok(bridge)
    }

    /// Changes settings, from its next start on.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut BridgeSettings)) -> Result<()> {
        change(&mut self.settings);
        self.write_configuration()
    }

    /// What it was configured with.
    pub fn settings(&self) -> &BridgeSettings {
        &self.settings
    }

    /// Has it log all it can, from its next start on.
    pub fn log_everything(&mut self) {
        self.verbosity = "trace";
    }

    /// A command that starts it in its place, such as `setpriv …`, from its next start on; it must become the bridge.
    /// The last word is the bridge's own program.
    pub fn launch_by(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the bridge runs already");
        let mut command = self.command()?;
        self.process = Some(Process::spawn("bridge", command.arg("run"), &self.log)?);
        Ok(())
    }

    /// Stops it as its service manager would.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("no bridge runs")?.terminate(STOP_GRACE).map(drop)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Takes the keys away that seal tickets: none that was given before opens after its next start.
    pub fn lose_ticket_keys(&self) -> Result<()> {
        Ok(fs::remove_file(self.dir.join("ticket.key"))?)
    }

    /// Its process, to freeze it or to see whether it runs.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("no bridge runs")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Runs another subcommand: whether it succeeded, and what it said.
    pub fn ask(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.command()?.args(arguments).stdin(Stdio::null()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    fn command(&self) -> Result<Command> {
        let mut command = match self.launcher.split_first() {
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments);
                command
            }
            None => Command::new(binaries::path("keylime-mqtt-bridge")?),
        };
        command.arg("--config").arg(self.dir.join("bridge.toml"));
        command.args(["--log", self.verbosity]);
        for setting in &self.settings.set {
            command.args(["--set", setting]);
        }
        command.envs(self.settings.environment.iter().cloned());
        Ok(command)
    }

    fn write_configuration(&self) -> Result<()> {
        let BridgeSettings { verifier_url, registrar_url, .. } = &self.settings;
        let dir = self.dir.display();
        let ca = self.settings.keylime_ca.display();
        let quick = "[exchange]\nrepeat_after_seconds = 2\nwaiting_first_seconds = 1\nwaiting_cap_seconds = 2\n\
                     refused_wait_seconds = 2\nfailing_cap_seconds = 4\nspread_seconds = 1\n";
        let text = format!(
            "ticket_key_file = \"{dir}/ticket.key\"\nstatus_socket = \"{dir}/status.sock\"\n\n\
             [verifier]\nurl = \"{verifier_url}\"\nca_file = \"{ca}\"\n\n\
             [registrar]\nurl = \"{registrar_url}\"\nca_file = \"{ca}\"\n\n\
             [admission]\nek_ca_dir = \"{}\"\nlist_file = \"{}\"\n\n\
             {}{}",
            self.settings.ek_ca_dir.display(),
            self.settings.admission_list.display(),
            if self.settings.as_shipped { "" } else { quick },
            self.settings.broker.table(self.settings.as_shipped)
        );
        Ok(fs::write(self.dir.join("bridge.toml"), text)?)
    }
}
