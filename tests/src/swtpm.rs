//! A device's TPM: swtpm with an EK certificate from a CA of the harness's own.
//!
//! An orderly reboot and a power cut are the same TPM reset with and without TPM2_Shutdown before it, as on a
//! real device. Clients reach it through a [`TpmMux`], whose address outlives the resets.

use crate::mux::TpmMux;
use crate::process::Process;
use crate::tpm::Tpm;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// swtpm opens its socket within milliseconds; this long means that it never will.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a starting swtpm.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A maker's CA for EK certificates: swtpm_localca with its own root and issuer.
#[derive(Debug)]
pub struct EkCa {
    dir: PathBuf,
}

impl EkCa {
    /// A new CA with its keys in `dir`.
    pub fn found(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("ca"))?;
        let dir = dir.canonicalize()?;
        let at = dir.display();
        fs::write(
            dir.join("localca.conf"),
            format!(
                "statedir = {at}/ca\nsigningkey = {at}/ca/signkey.pem\nissuercert = {at}/ca/issuercert.pem\n\
                 certserial = {at}/ca/certserial\n"
            ),
        )?;
        fs::write(
            dir.join("localca.options"),
            "--platform-manufacturer harness\n--platform-version 1\n--platform-model device\n",
        )?;
        fs::write(
            dir.join("setup.conf"),
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {at}/localca.conf\n\
                 create_certs_tool_options = {at}/localca.options\nactive_pcr_banks = sha256\n"
            ),
        )?;
        let ca = Self { dir };
        // swtpm_localca makes its keys with the first certificate: this one is for no device.
        let first = ca.dir.join("first");
        fs::create_dir_all(&first)?;
        ca.manufacture(&first)?;
        Ok(ca)
    }

    /// A directory with root and issuer, as an operator fills a trust store.
    pub fn trust_dir(&self) -> Result<PathBuf> {
        let trust = self.dir.join("trust");
        fs::create_dir_all(&trust)?;
        fs::copy(self.root(), trust.join("root.pem"))?;
        fs::copy(self.issuer(), trust.join("issuer.pem"))?;
        Ok(trust)
    }

    /// Root and issuer in one PEM file.
    pub fn bundle(&self) -> Result<PathBuf> {
        let bundle = self.dir.join("bundle.pem");
        let mut pem = fs::read(self.root()).context("this CA has not issued a certificate yet")?;
        pem.extend(fs::read(self.issuer())?);
        fs::write(&bundle, pem)?;
        Ok(bundle)
    }

    /// The self-signed root, PEM.
    pub fn root(&self) -> PathBuf {
        self.dir.join("ca/swtpm-localca-rootca-cert.pem")
    }

    /// The certificate of the key that signs EK certificates, PEM.
    pub fn issuer(&self) -> PathBuf {
        self.dir.join("ca/issuercert.pem")
    }

    /// Makes a TPM: seeds, EKs and their certificates in a new state directory.
    fn manufacture(&self, state: &Path) -> Result<()> {
        let mut command = Command::new("swtpm_setup");
        command
            .args(["--tpm2", "--create-ek-cert", "--lock-nvram", "--overwrite", "--tpmstate"])
            .arg(state)
            .arg("--config")
            .arg(self.dir.join("setup.conf"));
        if nix::unistd::geteuid().is_root() {
            // Root's swtpm_setup would become the user tss, who may not write here.
            command.args(["--runas", "root"]);
        }
        let output = command.output().context("cannot run swtpm_setup: `make setup` installs it")?;
        ensure!(
            output.status.success(),
            "swtpm_setup failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// A running TPM, or one that is switched off.
#[derive(Debug)]
pub struct Swtpm {
    state: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    mux: TpmMux,
}

impl Swtpm {
    /// A new TPM with an EK certificate from `ca`, switched on. `state` must not exist yet.
    pub fn manufacture(ca: &EkCa, state: &Path, log: &Path) -> Result<Self> {
        fs::create_dir_all(state)?;
        ca.manufacture(state)?;
        let mux = TpmMux::listen(state.join("data"))?;
        let mut swtpm = Self { state: state.to_owned(), log: log.to_owned(), process: None, mux };
        swtpm.power_on()?;
        Ok(swtpm)
    }

    /// Port of the data channel; the control channel is the next one.
    pub fn port(&self) -> u16 {
        self.mux.port()
    }

    /// Serves clients in another network namespace too, at the same address there.
    pub fn listen_in(&self, namespace: &Path) -> Result<()> {
        self.mux.listen_in(namespace)
    }

    /// What the agent and tpm2-tools take as TCTI.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port())
    }

    /// A connection beside the agent's.
    pub fn connect(&self) -> Result<Tpm> {
        Tpm::connect(self.port())
    }

    /// TPM commands served since it was made.
    pub fn commands(&self) -> u64 {
        self.mux.commands()
    }

    /// Stops it in the middle of whatever it does (SIGSTOP): a TPM that hangs.
    pub fn freeze(&self) {
        self.process.iter().for_each(Process::freeze);
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.process.iter().for_each(Process::thaw);
    }

    /// Switches it on: TPM2_Startup(CLEAR), PCRs at zero.
    pub fn power_on(&mut self) -> Result<()> {
        let socket = self.state.join("data");
        fs::remove_file(&socket).ok();
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", self.state.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", self.state.join("control").display()));
        let mut process = Process::spawn("swtpm", &mut command, &self.log)?;
        let deadline = Instant::now() + START_PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                bail!("swtpm does not start: {}", crate::scratch::read_log(&self.log));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.process = Some(process);
        Ok(())
    }

    /// Switches it off as firmware does, with TPM2_Shutdown.
    pub fn power_off(&mut self) -> Result<()> {
        self.connect()?.shutdown()?;
        self.cut_power();
        Ok(())
    }

    /// Cuts its power: no TPM2_Shutdown, so its clock will not be `safe` for a while.
    pub fn cut_power(&mut self) {
        self.process = None;
        self.mux.disconnect();
    }

    /// The EK certificate in NV (RSA-2048, index 0x01C00002), DER.
    pub fn ek_certificate(&self) -> Result<Vec<u8>> {
        let output = Command::new("tpm2_nvread")
            .arg("0x01C00002")
            .env("TPM2TOOLS_TCTI", self.tcti())
            .output()
            .context("cannot run tpm2_nvread: `make setup` installs it")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}
