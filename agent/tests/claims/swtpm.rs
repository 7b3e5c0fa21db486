//! A real software TPM per test: manufactured with an EK certificate from a CA of its own, on free ports, in a directory
//! that goes with it, ended when it is dropped.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ports::PortPair;

pub(crate) struct Swtpm {
    directory: tempfile::TempDir,
    ports: PortPair,
    process: Child,
}

impl Swtpm {
    /// A new TPM, switched on.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        manufacture(directory.path());
        Self::power_on_somewhere(directory)
    }

    /// A new TPM as it comes from makers that provision nothing: no EK certificate, no persistent EK.
    pub(crate) fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("state")).unwrap();
        Self::power_on_somewhere(directory)
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.first()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Power gone without TPM2_Shutdown.
    pub(crate) fn power_off(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Power back: a TPM reset.
    pub(crate) fn power_on(&mut self) {
        self.process =
            start(self.directory.path(), self.port(), "clear").expect("swtpm starts again on its ports");
    }

    /// What a system that suspends and wakes again does to its TPM: a TPM resume.
    pub(crate) fn suspend_and_resume(&mut self) {
        self.tool("tpm2_shutdown", &[]);
        self.power_off();
        self.process =
            start(self.directory.path(), self.port(), "state").expect("swtpm starts again on its ports");
    }

    /// What an orderly shutdown of the system does to its TPM.
    pub(crate) fn orderly_reboot(&mut self) {
        self.tool("tpm2_shutdown", &["-c"]);
        self.power_off();
        self.power_on();
    }

    pub(crate) fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Runs one of tpm2-tools against this TPM; no other connection may be open.
    pub(crate) fn tool(&self, name: &str, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new(name)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn power_on_somewhere(directory: tempfile::TempDir) -> Self {
        for _ in 0..50 {
            let ports = PortPair::claim();
            if let Some(process) = start(directory.path(), ports.first(), "clear") {
                return Self { directory, ports, process };
            }
        }
        panic!("no two free ports for swtpm");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn manufacture(base: &Path) {
    let write = |name: &str, content: String| -> PathBuf {
        let path = base.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let at = base.display();
    fs::create_dir(base.join("ca")).unwrap();
    fs::create_dir(base.join("state")).unwrap();
    write(
        "localca.conf",
        format!(
            "statedir = {at}/ca\nsigningkey = {at}/ca/signkey.pem\nissuercert = {at}/ca/issuercert.pem\ncertserial = {at}/ca/certserial\n"
        ),
    );
    write(
        "localca.options",
        "--platform-manufacturer test\n--platform-version 2.1\n--platform-model test\n".to_owned(),
    );
    let setup = write(
        "setup.conf",
        format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {at}/localca.conf\ncreate_certs_tool_options = {at}/localca.options\nactive_pcr_banks = sha256\n"
        ),
    );
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--lock-nvram", "--overwrite", "--runas", &user])
        .arg("--tpmstate")
        .arg(base.join("state"))
        .arg("--config")
        .arg(setup)
        .output()
        .unwrap();
    assert!(output.status.success(), "swtpm_setup: {}", String::from_utf8_lossy(&output.stdout));
}

/// `None` when somebody else took a port first: swtpm then ends at once.
fn start(base: &Path, port: u16, startup: &str) -> Option<Child> {
    let mut process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags"])
        .arg(format!("not-need-init,startup-{startup}"))
        .arg("--tpmstate")
        .arg(format!("dir={}/state", base.display()))
        .arg("--server")
        .arg(format!("type=tcp,port={port},bindaddr=127.0.0.1"))
        .arg("--ctrl")
        .arg(format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        // swtpm has no other sign of readiness than that it accepts.
        if TcpStream::connect(("127.0.0.1", port + 1)).is_ok() && process.try_wait().unwrap().is_none() {
            return Some(process);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    panic!("swtpm does not accept connections");
}
