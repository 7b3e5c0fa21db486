//! A device: TPM, firmware, kernel, and the real agent with a state of its own.
//!
//! Devices of one machine share a kernel, so each has its own boot id and boot time in files; the agent's settings
//! name them. A reboot goes through what a real one does: agent and TPM end, the TPM starts with zeroed PCRs,
//! firmware and kernel measure anew.

use crate::binaries;
use crate::ima::ImaLog;
use crate::measured_boot::UefiLog;
use crate::pki::Certificate;
use crate::process::Process;
use crate::scratch::read_log;
use crate::swtpm::Swtpm;
use crate::tpm::{Bank, Tpm};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The agent says goodbye to the broker and ends.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Seconds between the boots of a device, as its clock tells them.
const BOOT_EVERY: u64 = 600;

/// Longer than operators of scenarios take to enrol: a registration makes the one before inactive for a moment.
const ENROL_AGAIN_AFTER: u32 = 120;

/// Reconnects and time-outs as quick as they can be set.
const QUICK: &str = "keep_alive_seconds = 5\nack_timeout_seconds = 5\nconnect_timeout_seconds = 5\n\
                     reconnect_first_seconds = 1\nreconnect_longest_seconds = 1\n";

/// How a device goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reboot {
    /// The agent is stopped, firmware sends TPM2_Shutdown
    Orderly,
    /// Everything stops where it is
    PowerCut,
}

/// What a device is made of.
#[derive(Clone, Debug, Default)]
pub struct DeviceSettings {
    /// The agent id, where it is not the hash of the EK
    pub id: Option<String>,
    /// What its firmware measures and records
    pub uefi: Option<UefiLog>,
    /// Whether its kernel has IMA
    pub ima: bool,
    /// Seconds after which it registers again while the verifier does not know it, where that is to be soon
    pub enrol_again_after: Option<u32>,
    /// Further lines at the top of the agent's configuration
    pub agent: String,
    /// Another build of the agent than the one beside this program
    pub binary: Option<PathBuf>,
    /// A command that starts the agent in its place, such as `ip netns exec …`; it must become the agent
    pub launcher: Vec<String>,
    /// Leaves the agent's times at the defaults that are shipped, instead of as quick as they can be
    pub as_shipped: bool,
}

impl DeviceSettings {
    /// IMA and measured boot, as a typical gateway.
    pub fn full() -> Result<Self> {
        Ok(Self { uefi: Some(UefiLog::secure_boot()?), ima: true, ..Self::default() })
    }

    /// IMA alone.
    pub fn with_ima() -> Self {
        Self { ima: true, ..Self::default() }
    }

    /// Measured boot alone.
    pub fn with_measured_boot() -> Result<Self> {
        Ok(Self { uefi: Some(UefiLog::secure_boot()?), ..Self::default() })
    }
}

/// Where and how the agent reaches the broker.
#[derive(Clone, Debug)]
pub struct BrokerAccess {
    /// Name that must be in the broker's certificate
    pub host: String,
    /// TLS port
    pub port: u16,
    /// CA of the broker's certificate
    pub ca: PathBuf,
    /// The client's own
    pub certificate: Certificate,
    /// Further lines of the `[broker]` table, and tables in it
    pub more: String,
}

impl BrokerAccess {
    /// The `[broker]` table; with reconnects and time-outs as quick as they can be set, or as they are shipped.
    pub(crate) fn table(&self, as_shipped: bool) -> String {
        let Self { host, port, ca, certificate, more } = self;
        // what is said otherwise stays as it is said: TOML takes no key twice
        let key = |line: &&str| line.split(" =").next().is_some_and(|key| !more.contains(key));
        let quick = QUICK.lines().filter(key).collect::<Vec<_>>().join("\n") + "\n";
        format!(
            "\n[broker]\nhost = \"{host}\"\nport = {port}\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
             {}{more}",
            ca.display(),
            certificate.certificate.display(),
            certificate.key.display(),
            if as_shipped { "" } else { &quick }
        )
    }
}

/// A device with its agent, which may be running or not.
#[derive(Debug)]
pub struct Device {
    name: String,
    id: String,
    ek_hash: String,
    dir: PathBuf,
    log: PathBuf,
    settings: DeviceSettings,
    access: BrokerAccess,
    swtpm: Swtpm,
    boots: u64,
    first_boot: u64,
    ima: Option<ImaLog>,
    agent: Option<Process>,
}

impl Device {
    /// Puts the parts together and boots; the agent is not started. `issue` makes the certificate for the id.
    pub(crate) fn assemble(
        name: &str,
        dir: PathBuf,
        logs: &Path,
        swtpm: Swtpm,
        settings: DeviceSettings,
        access: impl FnOnce(&str) -> Result<BrokerAccess>,
    ) -> Result<Self> {
        let ek_hash = ek_hash(&swtpm.ek_certificate()?)?;
        let id = settings.id.clone().unwrap_or_else(|| ek_hash.clone());
        let access = access(&id)?;
        let first_boot = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let log = logs.join(format!("agent-{name}.log"));
        let mut device = Self {
            name: name.to_owned(),
            id,
            ek_hash,
            dir,
            log,
            settings,
            access,
            swtpm,
            boots: 0,
            first_boot,
            ima: None,
            agent: None,
        };
        device.boot()?;
        device.configure_agent()?;
        Ok(device)
    }

    /// Its id at Keylime.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The hash of its EK as Keylime computes it.
    pub fn ek_hash(&self) -> &str {
        &self.ek_hash
    }

    /// What it is called in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its TPM.
    pub fn swtpm(&mut self) -> &mut Swtpm {
        &mut self.swtpm
    }

    /// A connection to its TPM beside the agent's.
    pub fn tpm(&self) -> Result<Tpm> {
        self.swtpm.connect()
    }

    /// What the agent has logged.
    pub fn agent_log(&self) -> String {
        read_log(&self.log)
    }

    /// The agent's process, to freeze it.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("no agent runs")
    }

    /// The agent's configuration file.
    pub fn agent_configuration(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// Stops it as its service manager would.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.terminate(STOP_GRACE).map(drop)
    }

    /// Kills it.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// `run --once`: wakes, attests, ends; its exit status.
    pub fn run_once(&self, deadline: Duration) -> Result<ExitStatus> {
        let seconds = deadline.as_secs().to_string();
        let mut command = self.agent_command()?;
        command.args(["run", "--once", "--deadline", &seconds]);
        let mut process = Process::spawn("agent", &mut command, &self.log)?;
        process.wait(deadline + STOP_GRACE)
    }

    /// Starts the agent with further arguments of `run`.
    pub fn start_agent_with(&mut self, arguments: &[&str]) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let mut command = self.agent_command()?;
        self.agent = Some(Process::spawn("agent", command.arg("run").args(arguments), &self.log)?);
        Ok(())
    }

    /// Runs another subcommand of the agent: whether it succeeded, and what it said.
    pub fn ask_agent(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.agent_command()?.args(arguments).stdin(Stdio::null()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// How it reaches the broker.
    pub fn access(&self) -> &BrokerAccess {
        &self.access
    }

    /// Changes how it reaches the broker, from the agent's next start on.
    pub fn change_access(&mut self, change: impl FnOnce(&mut BrokerAccess)) -> Result<()> {
        change(&mut self.access);
        self.configure_agent()
    }

    /// A program runs: the kernel measures it, while the agent is connected to the TPM or not.
    pub fn run_program(&mut self, program: &str) -> Result<()> {
        let mut tpm = self.swtpm.connect()?;
        self.ima.as_mut().context("this device has no IMA")?.run(&mut tpm, program)
    }

    /// Many programs run, one after the other.
    pub fn run_programs(&mut self, programs: &[String]) -> Result<()> {
        let mut tpm = self.swtpm.connect()?;
        self.ima.as_mut().context("this device has no IMA")?.run_all(&mut tpm, programs)
    }

    /// The IMA log as its kernel shows it.
    pub fn ima_log(&self) -> Result<String> {
        self.ima.as_ref().context("this device has no IMA")?.text()
    }

    /// Something extends a PCR that no log speaks of.
    pub fn extend_pcr(&self, pcr: u32) -> Result<()> {
        self.tpm()?.extend(pcr, &[(Bank::Sha256, vec![0x5a; 32])])
    }

    /// Replaces the UEFI log that the kernel shows, without what the PCRs say.
    pub fn forge_uefi_log(&self) -> Result<()> {
        let log = self.settings.uefi.as_ref().context("this device has no UEFI log")?;
        Ok(fs::write(self.uefi_log(), log.with_changed_measurement()?.bytes())?)
    }

    /// What its kernel says of the time of this boot, which follows its clock; gives what it said before.
    pub fn kernel_booted_at(&self, seconds: u64) -> Result<u64> {
        let file = self.dir.join("btime");
        let before = fs::read_to_string(&file)?.trim().parse()?;
        fs::write(file, seconds.to_string())?;
        Ok(before)
    }

    /// Other firmware from the next boot on.
    pub fn flash(&mut self, uefi: UefiLog) {
        self.settings.uefi = Some(uefi);
    }

    /// Goes down and comes up again; the agent is started if it ran before.
    pub fn reboot(&mut self, how: Reboot) -> Result<()> {
        let ran = self.agent.is_some();
        match how {
            Reboot::Orderly => {
                if ran {
                    self.stop_agent()?;
                }
                self.swtpm.power_off()?;
            }
            Reboot::PowerCut => self.cut_power(),
        }
        self.power_on()?;
        if ran { self.start_agent() } else { Ok(()) }
    }

    /// Everything stops where it is, the TPM without TPM2_Shutdown.
    pub fn cut_power(&mut self) {
        self.swtpm.cut_power();
        self.kill_agent();
    }

    /// Power is back: TPM, firmware and kernel are up, the agent is not.
    pub fn power_on(&mut self) -> Result<()> {
        self.swtpm.power_on()?;
        self.boot()
    }

    /// The clock by which the kernel reckons when it booted is set: `seconds` later or earlier.
    pub fn shift_boot_time(&self, seconds: i64) -> Result<()> {
        let file = self.dir.join("btime");
        let shown: u64 = fs::read_to_string(&file)?.trim().parse()?;
        Ok(fs::write(&file, shown.saturating_add_signed(seconds).to_string())?)
    }

    /// As if the agent had been killed before it wrote down that the registrar accepted it: it enrols again.
    pub fn forget_enrolment(&mut self) -> Result<()> {
        self.kill_agent();
        let file = self.state_dir().join("state.json");
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
        let known = state.get_mut("enrolled_ak").context("the state has no `enrolled_ak` any more")?;
        *known = serde_json::Value::Null;
        Ok(fs::write(&file, serde_json::to_vec(&state)?)?)
    }

    /// Starts the agent through another command from its next start on, which must become the agent; none: as it is.
    pub fn launch_by(&mut self, launcher: Vec<String>) {
        self.settings.launcher = launcher;
    }

    /// Where the agent keeps its keys.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Takes the device's hard disk away: keys and all else that the agent kept.
    pub fn lose_state(&mut self) -> Result<()> {
        self.kill_agent();
        Ok(fs::remove_dir_all(self.state_dir())?)
    }

    /// The logs that its kernel shows: IMA's and the firmware's.
    pub fn kernel_logs(&self) -> [PathBuf; 2] {
        [self.dir.join("ima"), self.uefi_log()]
    }

    /// Firmware and kernel up to the moment when services start.
    fn boot(&mut self) -> Result<()> {
        self.boots += 1;
        let mut tpm = self.swtpm.connect()?;
        if let Some(uefi) = &self.settings.uefi {
            fs::write(self.uefi_log(), uefi.bytes())?;
            uefi.replay(&mut tpm)?;
        }
        if self.settings.ima {
            self.ima = Some(ImaLog::boot(&self.dir.join("ima"), &mut tpm)?);
        }
        fs::write(self.dir.join("boot_id"), format!("{}-{}", self.name, self.boots))?;
        fs::write(self.dir.join("btime"), (self.first_boot + self.boots * BOOT_EVERY).to_string())?;
        Ok(())
    }

    fn uefi_log(&self) -> PathBuf {
        self.dir.join("uefi")
    }

    fn agent_command(&self) -> Result<Command> {
        let agent = match &self.settings.binary {
            Some(binary) => binary.clone(),
            None => binaries::path("keylime-mqtt-agent")?,
        };
        let mut command = match self.settings.launcher.split_first() {
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(agent);
                command
            }
            None => Command::new(agent),
        };
        command.arg("--config").arg(self.agent_configuration()).env("TSS2_LOG", "all+NONE");
        Ok(command)
    }

    fn configure_agent(&self) -> Result<()> {
        let dir = self.dir.display();
        let mut text = self.settings.agent.clone();
        if self.settings.id.is_some() {
            writeln!(text, "id = \"{}\"", self.id)?;
        }
        if self.settings.ima {
            writeln!(text, "ima_log = \"{dir}/ima\"")?;
        }
        if self.settings.uefi.is_some() {
            writeln!(text, "uefi_log = \"{dir}/uefi\"")?;
        }
        if !self.settings.as_shipped {
            text.push_str(
                "first_retry_seconds = 1\nlongest_retry_seconds = 2\nlongest_silence_seconds = 10\n",
            );
        }
        write!(
            text,
            "state_dir = \"{dir}/state\"\nboot_id_file = \"{dir}/boot_id\"\nboot_time_file = \"{dir}/btime\"\n\
             enrol_again_after_seconds = {}\n\n[tpm]\ntcti = \"{}\"\n{}",
            self.settings.enrol_again_after.unwrap_or(ENROL_AGAIN_AFTER),
            self.swtpm.tcti(),
            self.access.table(self.settings.as_shipped)
        )?;
        fs::write(self.agent_configuration(), text)?;
        Ok(())
    }
}

/// `hash_ek` as Keylime's own agent has it: SHA-256 over the EK's public key in PEM.
fn ek_hash(certificate: &[u8]) -> Result<String> {
    let mut openssl = Command::new("openssl")
        .args(["x509", "-inform", "der", "-noout", "-pubkey"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run openssl: `make setup` installs it")?;
    openssl.stdin.take().context("openssl's input was piped")?.write_all(certificate)?;
    let output = openssl.wait_with_output()?;
    if !output.status.success() {
        bail!("openssl cannot read the EK certificate");
    }
    Ok(hex::encode(Bank::Sha256.digest(&output.stdout)))
}
