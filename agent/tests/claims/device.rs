//! A device for tests: a software TPM, recorded logs, and files for boot id and time.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use keylime_mqtt_agent::evidence::{Device, Equipment, EvidenceError};
use keylime_mqtt_agent::logs::boot::BootSources;
use keylime_mqtt_agent::logs::ima::ImaLog;
use keylime_mqtt_agent::logs::uefi::UefiLog;
use keylime_mqtt_agent::store::Store;
use keylime_mqtt_agent::tpm::{Identity, Tpm, TpmSettings};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::{Challenge, Evidence, Ready};

use crate::shared_tpm::SharedTpm;
use crate::swtpm::Swtpm;

pub(crate) const IMA: &[u8] = include_bytes!("../data/device-secure-violations/ascii_runtime_measurements");
pub(crate) const UEFI: &[u8] = include_bytes!("../data/device-secure-violations/binary_bios_measurements");

pub(crate) struct TestDevice {
    pub(crate) id: AgentId,
    pub(crate) device: Device,
    pub(crate) tpm: Tpm,
    pub(crate) identity: Identity,
    pub(crate) swtpm: Swtpm,
    shared: Option<SharedTpm>,
    files: tempfile::TempDir,
    logs: bool,
}

impl TestDevice {
    pub(crate) async fn with_logs() -> Self {
        Self::start(Swtpm::new(), None, tempfile::tempdir().unwrap(), true).await
    }

    pub(crate) async fn bare() -> Self {
        Self::start(Swtpm::bare(), None, tempfile::tempdir().unwrap(), false).await
    }

    /// Its IMA log is empty and its TPM can be used beside it.
    pub(crate) async fn shared(logs: bool) -> (Self, SharedTpm) {
        let swtpm = Swtpm::bare();
        let shared = SharedTpm::before(swtpm.port());
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("ima"), b"").unwrap();
        (Self::start(swtpm, Some(shared.clone()), files, logs).await, shared)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn append_ima(&self, line: &str) {
        OpenOptions::new().append(true).open(self.path("ima")).unwrap().write_all(line.as_bytes()).unwrap();
    }

    pub(crate) async fn describe(&mut self) -> Ready {
        match self.device.work(&Work::Describe).await.unwrap() {
            Done::Described(ready) => ready,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn collect(&mut self, challenge: &Challenge) -> Result<Evidence, EvidenceError> {
        match self.device.work(&Work::Collect(challenge.clone())).await? {
            Done::Collected { evidence, .. } => Ok(evidence),
            other => panic!("{other:?}"),
        }
    }

    /// The agent ends and starts anew.
    pub(crate) async fn restart(self) -> Self {
        let Self { device, tpm, swtpm, shared, files, logs, .. } = self;
        drop(device);
        tpm.close().await.unwrap();
        Self::start(swtpm, shared, files, logs).await
    }

    pub(crate) async fn reboot_tpm(&mut self, orderly: bool) {
        if orderly {
            self.tpm.clone().close().await.unwrap();
            self.swtpm.orderly_reboot();
        } else {
            self.swtpm.power_off();
            self.swtpm.power_on();
        }
    }

    async fn start(swtpm: Swtpm, shared: Option<SharedTpm>, files: tempfile::TempDir, logs: bool) -> Self {
        let at = |name: &str| files.path().join(name);
        if !at("boot_id").exists() {
            fs::write(at("boot_id"), "a boot").unwrap();
            fs::write(at("boot_time"), "1790000000").unwrap();
            if shared.is_none() {
                fs::write(at("ima"), IMA).unwrap();
            }
            fs::write(at("uefi"), UEFI).unwrap();
        }
        let store = Store::open(&at("state")).unwrap();
        let tcti = shared.as_ref().map_or_else(|| swtpm.tcti(), SharedTpm::tcti);
        let settings = TpmSettings { tcti, command_timeout: Duration::from_secs(5), ek_handle: None };
        let tpm = Tpm::start(settings, store.state().ak.clone()).await.unwrap();
        let identity = tpm.identity().await.unwrap();
        let id: AgentId = "gateway-7".parse().unwrap();
        let boot = BootSources { id: at("boot_id"), time: at("boot_time") };
        let equipment = Equipment {
            boot,
            ima: logs.then(|| ImaLog::new(&at("ima"))),
            uefi: logs.then(|| UefiLog::new(&at("uefi"))),
            reference: at("reference")
                .exists()
                .then(|| Reference::parse(&fs::read(at("reference")).unwrap()).unwrap()),
            sleep: None,
            pcrs: keylime_mqtt_schemas::messages::PcrMask::ALL,
            payload_bytes: 15 * 1024,
        };
        let device = Device::new(id.clone(), tpm.clone(), identity.clone(), equipment, store).unwrap();
        Self { id, device, tpm, identity, swtpm, shared, files, logs }
    }
}
