//! A whole small world in one call: Keylime, a broker, a bridge, an observer, and as many devices as a scenario
//! wants, with the steps that scenarios are made of.

use crate::bridge::{Bridge, BridgeSettings};
use crate::broker::{BRIDGE, Broker, BrokerKind, OBSERVER};
use crate::device::{BrokerAccess, Device, DeviceSettings};
use crate::eventually::eventually;
use crate::ima::runtime_policy;
use crate::keylime::Keylime;
use crate::keylime_config::KeylimeSettings;
use crate::observe::Observer;
use crate::operator::{CvStatus, Policies};
use crate::pki::Pki;
use crate::scratch::{Scratch, tails};
use crate::swtpm::{EkCa, Swtpm};
use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::messages::{AttestationResult, Verdict};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// Programs that [`Policies::full`] allows.
pub const ALLOWED_PROGRAMS: [&str; 3] = ["/usr/bin/gateway", "/usr/bin/sensor", "/usr/sbin/ntpd"];

/// A program that no policy of a scenario allows.
pub const FOREIGN_PROGRAM: &str = "/tmp/miner";

/// A PCR that nothing extends by itself, for policies on PCR values.
pub const QUIET_PCR: u32 = 23;

impl Policies {
    /// PCR 23 as it is after a boot: no log is asked for.
    pub fn quote_only() -> Self {
        Self { tpm: Some(json!({ QUIET_PCR.to_string(): ["0".repeat(64)] })), ..Self::default() }
    }

    /// The allowed programs and nothing else.
    pub fn ima() -> Self {
        Self { runtime: Some(runtime_policy(&ALLOWED_PROGRAMS)), ..Self::default() }
    }

    /// Any boot, as long as its log explains the PCRs.
    pub fn measured_boot() -> Self {
        // Keylime skips the comparison for an empty object.
        Self { measured_boot: Some(json!({ "boot": "as logged" })), ..Self::default() }
    }

    /// All three at once.
    pub fn full() -> Self {
        Self { tpm: Self::quote_only().tpm, runtime: Self::ima().runtime, ..Self::measured_boot() }
    }
}

/// What scenarios vary.
#[derive(Clone, Debug)]
pub struct WorldSettings {
    /// Which broker
    pub broker: BrokerKind,
    /// Keylime's settings
    pub keylime: KeylimeSettings,
    /// Further settings of the bridge, `key=value`
    pub bridge: Vec<String>,
    /// Leaves the bridge's times at the defaults that are shipped
    pub as_shipped: bool,
}

impl Default for WorldSettings {
    fn default() -> Self {
        Self {
            broker: BrokerKind::Mosquitto,
            keylime: KeylimeSettings::default(),
            bridge: Vec::new(),
            as_shipped: false,
        }
    }
}

/// All parts but the devices. Dropping it ends everything; drop devices first.
pub struct World {
    /// Registrar and verifier
    pub keylime: Keylime,
    /// The broker
    pub broker: Broker,
    /// The bridge
    pub bridge: Bridge,
    /// Certificates of the MQTT side
    pub pki: Pki,
    /// The maker whose TPMs the bridge admits
    pub maker: EkCa,
    observer: Option<Observer>,
    admission_list: PathBuf,
    /// Directory and logs; last, so that it is removed when all parts have ended
    pub scratch: Scratch,
}

impl World {
    /// Everything started, the observer connected.
    pub fn start(settings: &WorldSettings) -> Result<Self> {
        let mut world = Self::prepare(settings)?;
        world.start_parts()?;
        Ok(world)
    }

    /// Starts what was configured, the observer first to see it all.
    pub fn start_parts(&mut self) -> Result<()> {
        self.broker.power_on()?;
        self.connect_observer()?;
        self.keylime.start_both()?;
        self.bridge.start()
    }

    /// With mosquitto and the default settings.
    pub fn on_mosquitto() -> Result<Self> {
        Self::start(&WorldSettings::default())
    }

    /// Everything configured, nothing started.
    pub fn prepare(settings: &WorldSettings) -> Result<Self> {
        let scratch = Scratch::new()?;
        let pki = Pki::in_dir(&scratch.subdir("pki")?)?;
        let broker = Broker::configure(settings.broker, &scratch, &pki)?;
        Self::around(broker, pki, scratch, settings)
    }

    /// Everything else for a broker that is configured already; nothing is started.
    pub fn around(broker: Broker, pki: Pki, scratch: Scratch, settings: &WorldSettings) -> Result<Self> {
        let keylime = Keylime::configure(&scratch, settings.keylime.clone())?;
        let maker = EkCa::found(&scratch.subdir("maker")?)?;
        let admission_list = scratch.path().join("admission");
        fs::write(&admission_list, "")?;
        let access = BrokerAccess {
            host: broker.host().to_owned(),
            port: broker.port(),
            ca: pki.ca(),
            certificate: pki.issue(BRIDGE, &[])?,
            more: String::new(),
        };
        let bridge_settings = BridgeSettings {
            broker: access,
            verifier_url: keylime.verifier_url(),
            registrar_url: keylime.registrar_url(),
            keylime_ca: keylime.ca(),
            ek_ca_dir: maker.trust_dir()?,
            admission_list: admission_list.clone(),
            set: settings.bridge.clone(),
            as_shipped: settings.as_shipped,
            environment: Vec::new(),
        };
        let bridge =
            Bridge::configure("bridge", scratch.subdir("bridge")?, &scratch.logs(), bridge_settings)?;
        Ok(Self { keylime, broker, bridge, pki, maker, observer: None, admission_list, scratch })
    }

    /// Connects the observer, which sees every message from then on.
    pub fn connect_observer(&mut self) -> Result<()> {
        self.observe(&["#"])
    }

    /// Connects the observer anew, for these topics alone.
    pub fn observe(&mut self, filters: &[&str]) -> Result<()> {
        self.observer = None;
        let certificate = self.pki.issue(OBSERVER, &[])?;
        let logs = self.scratch.logs();
        let (host, port) = (self.broker.host(), self.broker.port());
        self.observer = Some(Observer::connect_to(host, port, &self.pki.ca(), &certificate, filters, &logs)?);
        Ok(())
    }

    /// The client that sees everything.
    pub fn observer(&self) -> Result<&Observer> {
        self.observer.as_ref().context("no observer is connected")
    }

    /// A new device with a TPM of the trusted maker, booted; its agent is not started.
    pub fn device(&self, name: &str, settings: DeviceSettings) -> Result<Device> {
        self.device_by(&self.maker, name, settings)
    }

    /// A new device with a TPM of this maker.
    pub fn device_by(&self, maker: &EkCa, name: &str, settings: DeviceSettings) -> Result<Device> {
        let dir = self.scratch.subdir(&format!("device-{name}"))?;
        let log = self.scratch.log(&format!("swtpm-{name}"));
        let swtpm = Swtpm::manufacture(maker, &dir.join("tpm"), &log)?;
        Device::assemble(name, dir, &self.scratch.logs(), swtpm, settings, |id| {
            Ok(BrokerAccess {
                host: self.broker.host().to_owned(),
                port: self.broker.port(),
                ca: self.pki.ca(),
                certificate: self.pki.issue(id, &[])?,
                more: String::new(),
            })
        })
    }

    /// Another bridge beside the first, with a certificate of this common name and the same settings but for these; not
    /// started.
    pub fn another_bridge(&self, name: &str, certificate: &str, set: &[&str]) -> Result<Bridge> {
        let mut settings = self.bridge.settings().clone();
        settings.broker.certificate = self.pki.issue(certificate, &[])?;
        settings.set.extend(set.iter().map(ToString::to_string));
        Bridge::configure(name, self.scratch.subdir(name)?, &self.scratch.logs(), settings)
    }

    /// Lets this TPM, and no other, bear this id.
    pub fn admit(&self, id: &str, ek_hash: &str) -> Result<()> {
        Ok(writeln!(OpenOptions::new().append(true).open(&self.admission_list)?, "{id} = {ek_hash}")?)
    }

    /// Waits until the registrar has activated the device, then enrols it with `keylime_tenant`.
    pub fn enrol(&self, device: &Device, policies: &Policies) -> Result<()> {
        eventually(&format!("{} can be enrolled", device.name()), &self.scratch.logs(), || {
            self.await_registration(device)?;
            match self.keylime.add(device.id(), policies) {
                Ok(()) => Ok(Some(())),
                // It registers anew at this moment: an operator tries again.
                Err(error) if error.to_string().contains("has not been activated") => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Waits until the registrar has activated the device.
    pub fn await_registration(&self, device: &Device) -> Result<()> {
        eventually(&format!("{} is registered", device.name()), &self.scratch.logs(), || {
            Ok(self.keylime.has_activated(device.id()).then_some(()))
        })
    }

    /// A device that was started, enrolled, and has passed.
    pub fn passing_device(
        &self,
        name: &str,
        settings: DeviceSettings,
        policies: &Policies,
    ) -> Result<Device> {
        let mut device = self.device(name, settings)?;
        self.bring_up(&mut device, policies)?;
        Ok(device)
    }

    /// Starts the agent of a new device, enrols it and waits until it has passed.
    pub fn bring_up(&self, device: &mut Device, policies: &Policies) -> Result<()> {
        if device.id() != device.ek_hash() {
            self.admit(device.id(), device.ek_hash())?;
        }
        let mark = self.observer()?.mark();
        device.start_agent()?;
        self.enrol(device, policies)?;
        self.verdict_from(mark, device, Verdict::Pass).map(drop)
    }

    /// The next result with this verdict that the bridge publishes after `mark`.
    pub fn verdict_from(&self, mark: usize, device: &Device, verdict: Verdict) -> Result<AttestationResult> {
        self.observer()?.verdict_from(mark, device.id(), verdict)
    }

    /// The next result with this verdict that the bridge publishes from now on.
    pub fn next_verdict(&self, device: &Device, verdict: Verdict) -> Result<AttestationResult> {
        self.verdict_from(self.observer()?.mark(), device, verdict)
    }

    /// A PASS that Keylime gave for an attestation that began after this call.
    pub fn passes_anew(&self, device: &Device) -> Result<AttestationResult> {
        // The first may be of an attestation under way; the one after it is not.
        let first = self.next_verdict(device, Verdict::Pass)?;
        let mark = self.observer()?.mark();
        let id = device.id();
        self.observer()?.wait_from(mark, &format!("another PASS of {id}"), |seen| {
            seen.result().filter(|result| {
                result.agent_id.as_str() == id
                    && result.verdict == Verdict::Pass
                    && result.nonce_sha256 != first.nonce_sha256
            })
        })
    }

    /// Waits until `keylime_tenant -c cvstatus` says this.
    pub fn keylime_says(&self, device: &Device, status: &str) -> Result<CvStatus> {
        eventually(&format!("cvstatus of {} is {status}", device.name()), &self.scratch.logs(), || {
            let told = self.keylime.cvstatus(device.id())?;
            Ok(told.filter(|told| told.attestation_status == status))
        })
    }

    /// That the device was never failed, on the result topic and by Keylime.
    pub fn never_failed(&self, device: &Device) -> Result<()> {
        let results = self.observer()?.results(device.id());
        ensure!(
            results.iter().all(|result| result.verdict != Verdict::Fail),
            "{} was failed: {results:?}\n{}",
            device.name(),
            self.tails()
        );
        // Cheaper than asking `keylime_tenant`, and it also tells of a FAIL that has been cleared since.
        let words = format!("for agent '{}' failed verification", device.id());
        ensure!(
            !self.keylime.verifier_log().contains(&words),
            "Keylime failed {}\n{}",
            device.name(),
            self.tails()
        );
        Ok(())
    }

    /// The last lines of every log.
    pub fn tails(&self) -> String {
        tails(&self.scratch.logs())
    }
}
