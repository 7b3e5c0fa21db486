//! The real Keylime: registrar and push-mode verifier, each a process that can be stopped, killed and restarted.
//!
//! CA, certificates and migrated databases are made once per checkout, in `.run/`, and copied for each Keylime,
//! which halves its start. Nothing else is shared.

use crate::eventually::within;
use crate::keylime_config::{self, KeylimePorts, KeylimeSettings};
use crate::ports::Port;
use crate::process::Process;
use crate::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Keylime is Python: on a busy machine its imports alone take seconds.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// Keylime drains for two seconds (`shutdown_drain_timeout`).
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Prints agent, SHA-256 of the nonce and evaluation of each attestation as it is judged.
const FOLLOW_RECORD: &str = r#"
import hashlib, sqlite3, sys, time
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=60)
query = """select attestations.agent_id, chosen_parameters__challenge, evaluation from evidence_items join attestations
    on attestations.agent_id = evidence_items.agent_id and attestations."index" = attestation_index
    where evidence_class = 'certification' and evaluation <> 'pending'"""
told = set()
while True:
    # All at once: while rows are read, the verifier cannot write.
    for row in set(database.execute(query).fetchall()) - told:
        agent, nonce, evaluation = row
        print(agent, hashlib.sha256(nonce).hexdigest(), evaluation, flush=True)
        told.add(row)
    time.sleep(0.2)
"#;

/// Where a template of this version and form is kept.
const TEMPLATE: &str = "keylime-7.14.3-template";

/// Registrar and verifier with a state of their own.
#[derive(Debug)]
pub struct Keylime {
    dir: PathBuf,
    logs: PathBuf,
    settings: KeylimeSettings,
    ports: [Port; 3],
    verifier: Option<Process>,
    registrar: Option<Process>,
}

impl Keylime {
    /// Starts both in a subdirectory of `scratch` and returns when they serve.
    pub fn start(scratch: &Scratch, settings: KeylimeSettings) -> Result<Self> {
        let mut keylime = Self::configure(scratch, settings)?;
        keylime.start_both()?;
        Ok(keylime)
    }

    /// Starts registrar and verifier side by side: the template has the CA, so neither waits for the other.
    pub fn start_both(&mut self) -> Result<()> {
        let (verifier, registrar) = std::thread::scope(|scope| {
            let registrar = scope.spawn(|| self.launch_registrar());
            (self.launch_verifier(), registrar.join().expect("launching does not panic"))
        });
        self.verifier = Some(verifier?);
        self.registrar = Some(registrar?);
        Ok(())
    }

    /// Writes its configuration and starts nothing.
    pub fn configure(scratch: &Scratch, settings: KeylimeSettings) -> Result<Self> {
        let template = template()?;
        let keylime = Self::bare(scratch, settings)?;
        copy_tree(&template, &keylime.state())?;
        Ok(keylime)
    }

    fn bare(scratch: &Scratch, settings: KeylimeSettings) -> Result<Self> {
        let ports = [Port::claim()?, Port::claim()?, Port::claim()?];
        let dir = scratch.subdir("keylime")?;
        let keylime = Self { dir, logs: scratch.logs(), settings, ports, verifier: None, registrar: None };
        fs::create_dir_all(keylime.state())?;
        keylime.write_configuration()?;
        Ok(keylime)
    }

    /// Changes settings; they hold from the next start of a server on.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut KeylimeSettings)) -> Result<()> {
        change(&mut self.settings);
        self.write_configuration()
    }

    fn write_configuration(&self) -> Result<()> {
        keylime_config::write(&self.configuration(), &self.settings, self.ports())
    }

    fn ports(&self) -> KeylimePorts {
        let [verifier, registrar, registrar_tls] = self.ports.each_ref().map(Port::number);
        KeylimePorts { verifier, registrar, registrar_tls }
    }

    fn configuration(&self) -> PathBuf {
        self.dir.join("conf")
    }

    /// The verifier's settings.
    pub fn verifier_conf(&self) -> PathBuf {
        self.configuration().join("verifier.conf")
    }

    /// KEYLIME_DIR: CA, databases.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the servers run with.
    pub fn settings(&self) -> &KeylimeSettings {
        &self.settings
    }

    /// `https://…` of the verifier, by the address that its certificate names.
    pub fn verifier_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports().verifier)
    }

    /// Port of the verifier.
    pub fn verifier_port(&self) -> u16 {
        self.ports().verifier
    }

    /// `https://…` of the registrar.
    pub fn registrar_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports().registrar_tls)
    }

    /// The CA of both servers' certificates, PEM.
    pub fn ca(&self) -> PathBuf {
        self.state().join("cv_ca/cacert.crt")
    }

    /// The admin's certificate and key: what an operator has, and no process that faces devices.
    pub fn admin(&self) -> (PathBuf, PathBuf) {
        (self.state().join("cv_ca/client-cert.crt"), self.state().join("cv_ca/client-private.pem"))
    }

    /// The IMA log that the verifier has kept of an attestation from line 0 on which passed, as its database has it.
    pub fn kept_ima_log(&self, id: &str) -> Result<String> {
        let script = "import sqlite3, sys\n\
             rows = sqlite3.connect(sys.argv[1]).execute(\"select e.data__entries from evidence_items e join attestations a \
             on a.agent_id = e.agent_id and a.\\\"index\\\" = e.attestation_index where e.agent_id = ? and a.evaluation = 'pass' \
             and e.evidence_type = 'ima_log' and e.chosen_parameters__starting_offset = 0\", [sys.argv[2]])\n\
             sys.stdout.write(rows.fetchone()[0])";
        let database = self.state().join("cv_data.sqlite");
        let output =
            Command::new(venv().join("bin/python")).args(["-c", script]).arg(database).arg(id).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts the verifier and returns when it serves.
    pub fn start_verifier(&mut self) -> Result<()> {
        self.verifier = Some(self.launch_verifier()?);
        Ok(())
    }

    /// Starts the registrar and returns when it serves. Needs the CA that the verifier generates.
    pub fn start_registrar(&mut self) -> Result<()> {
        self.registrar = Some(self.launch_registrar()?);
        Ok(())
    }

    /// Stops the verifier as its service manager would.
    pub fn stop_verifier(&mut self) -> Result<()> {
        self.verifier.take().context("no verifier runs")?.terminate(STOP_GRACE).map(drop)
    }

    /// Stops the registrar as its service manager would.
    pub fn stop_registrar(&mut self) -> Result<()> {
        self.registrar.take().context("no registrar runs")?.terminate(STOP_GRACE).map(drop)
    }

    /// Kills the verifier.
    pub fn kill_verifier(&mut self) {
        self.verifier = None;
    }

    /// Kills the registrar.
    pub fn kill_registrar(&mut self) {
        self.registrar = None;
    }

    /// The verifier's process, to freeze it.
    pub fn verifier(&self) -> Result<&Process> {
        self.verifier.as_ref().context("no verifier runs")
    }

    /// The registrar's process, to freeze it.
    pub fn registrar(&self) -> Result<&Process> {
        self.registrar.as_ref().context("no registrar runs")
    }

    /// What the verifier has logged so far.
    pub fn verifier_log(&self) -> String {
        crate::scratch::read_log(&self.logs.join("verifier.log"))
    }

    /// What the registrar has logged so far.
    pub fn registrar_log(&self) -> String {
        crate::scratch::read_log(&self.logs.join("registrar.log"))
    }

    /// Follows the verifier's record of attestations, for as long as the process lives: each line of `file` has an agent, the
    /// SHA-256 of a nonce, and `pass` or `fail`. From its database, for its API fails to list them. It drops a PASS when the
    /// next has come (`engine_driver.py`), an interval later, so this looks several times a second.
    pub fn follow_record(&self, file: &Path) -> Result<Process> {
        let database = self.state().join("cv_data.sqlite");
        let mut command = self.program("python3");
        Process::spawn("the record's reader", command.args(["-c", FOLLOW_RECORD]).arg(database), file)
    }

    /// Whether this agent is activated: a registration that comes after makes it inactive again until it is
    /// activated anew, and a deletion for good.
    pub fn has_activated(&self, id: &str) -> bool {
        let log = self.registrar_log();
        let last = |method: &str| log.rfind(&format!("{method} /v2.6/agents/{id}"));
        let activated = last("PUT");
        activated > last("POST") && activated > last("DELETE")
    }

    /// One of Keylime's programs from the virtual environment, set up for this Keylime.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(venv().join("bin").join(name));
        let configuration = self.configuration();
        command.current_dir(&self.dir).env("KEYLIME_DIR", self.state());
        for part in ["verifier", "registrar", "tenant", "ca", "logging"] {
            let file = configuration.join(format!("{part}.conf"));
            command.env(format!("KEYLIME_{}_CONFIG", part.to_uppercase()), file);
        }
        command
    }

    fn launch_verifier(&self) -> Result<Process> {
        self.launch("keylime_verifier", "verifier", &[self.ports().verifier])
    }

    fn launch_registrar(&self) -> Result<Process> {
        let KeylimePorts { registrar, registrar_tls, .. } = self.ports();
        self.launch("keylime_registrar", "registrar", &[registrar, registrar_tls])
    }

    fn launch(&self, program: &str, name: &str, ports: &[u16]) -> Result<Process> {
        let log = self.logs.join(format!("{name}.log"));
        let mut process = Process::spawn(program, &mut self.program(program), &log)
            .with_context(|| format!("no Keylime in {}: run `make setup`", venv().display()))?;
        within(START_PATIENCE, &format!("{program} serves"), &self.logs, || {
            ensure!(process.is_running(), "{program} ended:\n{}", crate::scratch::read_log(&log));
            let all = ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
            Ok(all.then_some(()))
        })?;
        Ok(process)
    }
}

/// The virtual environment that `make setup` fills.
fn venv() -> PathBuf {
    std::env::var_os("KEYLIME_MQTT_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from)
}

pub(crate) fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The state of a Keylime that has started once and knows nobody. Whoever comes first makes it.
fn template() -> Result<PathBuf> {
    let run = repository().join(".run");
    let template = run.join(TEMPLATE);
    fs::create_dir_all(&run)?;
    // One makes it, the others wait: a first start is slow, and slower still when many start at once.
    let lock = Flock::lock(fs::File::create(run.join("template.lock"))?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)?;
    if !template.exists() {
        let scratch = Scratch::new()?;
        let mut keylime = Keylime::bare(&scratch, KeylimeSettings::default())?;
        keylime.start_verifier()?;
        keylime.start_registrar()?;
        keylime.stop_registrar()?;
        keylime.stop_verifier()?;
        let made = tempfile::tempdir_in(&run)?;
        copy_tree(&keylime.state(), made.path())?;
        fs::rename(made.path(), &template)?;
    }
    drop(lock);
    Ok(template)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
