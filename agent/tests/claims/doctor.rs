//! The doctor names what is wrong and what to do: each failure is brought about, on a real broker and a software TPM.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use keylime_mqtt_schemas::messages::{Heard, LaterReason, Outcome, Question, RefusedReason, Told, Up};
use serde_json::Value;

use crate::bridge::{Bridge, Site};
use crate::device::{IMA, UEFI};
use crate::kernel::Kernel;
use crate::shared_tpm::SharedTpm;
use crate::swtpm::Swtpm;

/// A device whose doctor is called, with a certificate for its id.
struct Patient {
    config: PathBuf,
    environment: Vec<(String, String)>,
}

/// What the doctor said.
struct Diagnosis {
    code: i32,
    report: Value,
}

impl Patient {
    fn new(site: &Site, tcti: &str, lines: &str) -> Self {
        let patient = Self { config: site.configure(tcti, lines), environment: Vec::new() };
        patient.with_certificate(site, "gateway-7")
    }

    fn with_certificate(self, site: &Site, name: &str) -> Self {
        let file = |kind: &str| site.path(&format!("{name}.{kind}")).display().to_string();
        self.with("BROKER__CERT_FILE", &file("pem")).with("BROKER__KEY_FILE", &file("key"))
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.push((format!("KEYLIME_MQTT_AGENT_{key}"), value.to_owned()));
        self
    }

    fn call(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-agent"))
            .arg("--config")
            .arg(&self.config)
            .arg("doctor")
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .env("TSS2_LOG", "all+NONE")
            .output()
            .unwrap()
    }

    /// While nobody answers.
    fn examined(&self) -> Diagnosis {
        Diagnosis::of(&self.call(&["--json"]))
    }

    /// While a bridge answers, that has told the device this.
    async fn examined_before(&self, bridge: &mut Bridge, told: Option<Told>) -> Diagnosis {
        let patient = Self { config: self.config.clone(), environment: self.environment.clone() };
        let mut called = tokio::task::spawn_blocking(move || patient.call(&["--json"]));
        loop {
            tokio::select! {
                output = &mut called => return Diagnosis::of(&output.unwrap()),
                up = bridge.hear() => {
                    let Up::Hello(hello) = up else { panic!("the doctor said {}", up.kind()) };
                    bridge.say(Question::Heard(Heard { tag: hello.tag, told }));
                }
            }
        }
    }
}

impl Diagnosis {
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&said)
            .unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)));
        for secret in ["PRIVATE KEY", "BEGIN CERTIFICATE"] {
            assert!(!said.contains(secret), "{said}");
        }
        assert_eq!(report["version"], 1);
        Self { code: output.status.code().unwrap(), report }
    }

    /// The step of this name is in this state, and says all these words.
    #[track_caller]
    fn has(&self, name: &str, state: &str, words: &[&str]) -> &Self {
        let steps = self.report["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name}: {self}"));
        assert_eq!(step["state"], state, "{self}");
        for word in words {
            assert!(step.to_string().contains(word), "{word:?} is not in {step}");
        }
        self
    }

    #[track_caller]
    fn ends_with(&self, code: i32) {
        assert_eq!(self.code, code, "{self}");
        assert_eq!(self.report["well"], code == 0, "{self}");
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.report["steps"])
    }
}

/// A TPM that is not needed: its port is closed.
const NO_TPM: &str = "swtpm:host=127.0.0.1,port=1";
/// Keys that swtpm has room for.
const SLOTS: usize = 3;

#[tokio::test]
async fn a_device_on_whose_way_everything_works_is_well_step_by_step() {
    let (site, swtpm) = (Site::with_acl(), Swtpm::new());
    let shared = SharedTpm::before(swtpm.port());
    let (ima, uefi) = (site.path("ima"), site.path("uefi"));
    fs::write(&ima, b"").unwrap();
    fs::write(&uefi, UEFI).unwrap();
    let mut kernel = Kernel::new(&ima, shared.clone());
    kernel.measure(b"/usr/bin/true");
    kernel.violate("/var/log/messages");
    let lines = format!("ima_log = '{}'\nuefi_log = '{}'", ima.display(), uefi.display());
    let patient = Patient::new(&site, &shared.tcti(), &lines);
    let mut bridge = site.bridge().await;

    let first = patient.examined_before(&mut bridge, None).await;
    first.has("configuration", "ok", &[]).has("state", "ok", &["no AK yet", "no agent runs"]);
    first.has("tpm", "ok", &["EK hash", "with an EK certificate", "no resource manager"]);
    first.has("lockout", "ok", &["0 of "]).has("slots", "ok", &["3 free"]);
    first.has("ak", "not-checked", &["show-identity"]).has("tpm-clock", "not-checked", &[]);
    first.has("ima-log", "ok", &["line 2 leads to PCR 10"]).has("uefi-log", "ok", &["events in"]);
    first.has("clock", "ok", &[]).has("certificate", "ok", &["CN gateway-7", "days"]);
    first.has("name", "ok", &["127.0.0.1"]).has("tcp", "ok", &[]);
    first.has("tls", "ok", &["TLSv1_3", "days"]).has("id", "ok", &["gateway-7"]);
    first.has("login", "ok", &["as gateway-7\""]).has("topics", "ok", &["a bridge answered"]);
    first.has("bridge", "ok", &["told it nothing"]).has(
        "packet",
        "ok",
        &["a message of 122880 bytes passes"],
    );
    first.has("others", "ok", &["nothing of another device"]).ends_with(0);
    assert!(!site.path("state").exists(), "it makes nothing");

    let identity = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-agent"))
        .args(["--config", patient.config.to_str().unwrap(), "show-identity"])
        .output();
    assert!(identity.unwrap().status.success());
    let passed = Some(Told::Attested(Outcome::Pass));
    let second = patient.examined_before(&mut bridge, passed).await;
    second.has("ak", "ok", &["loads and signs"]).has("tpm-clock", "ok", &["safe"]);
    second.has("bridge", "ok", &["passed"]).ends_with(0);

    // for people, and while nobody answers
    let told = String::from_utf8(patient.call(&["--spare-link"]).stdout).unwrap();
    for line in [
        "ok           tcp (localhost:",
        "not checked  topics (localhost:",
        "FAILED       bridge (localhost:",
        "-> does keylime-mqtt-bridge run",
        "1 failed, 0 found",
    ] {
        assert!(told.contains(line), "{line:?} is not in:\n{told}");
    }
}

#[tokio::test]
async fn what_the_bridge_told_the_device_is_passed_on_with_what_to_do() {
    let site = Site::with_acl();
    let patient = Patient::new(&site, NO_TPM, "");
    let mut bridge = site.bridge().await;
    let refused = Some(Told::Refused(RefusedReason::NoCertificate));
    let diagnosis = patient.examined_before(&mut bridge, refused).await;
    diagnosis
        .has("topics", "ok", &[])
        .has("bridge", "failed", &["no EK certificate", "admission line"])
        .ends_with(1);
    let waiting = Some(Told::Later(LaterReason::NotEnrolled));
    let diagnosis = patient.examined_before(&mut bridge, waiting).await;
    diagnosis.has("bridge", "finding", &["keylime_tenant -c add"]).ends_with(1);
    let failed = Some(Told::Attested(Outcome::Fail));
    let diagnosis = patient.examined_before(&mut bridge, failed).await;
    diagnosis.has("bridge", "failed", &["verifier's log"]).ends_with(1);
}

// another thread keeps the bridge's connection while the doctor is waited for
#[tokio::test(flavor = "multi_thread")]
async fn no_bridge_and_an_acl_that_refuses_are_told_apart_by_the_status_that_bridges_leave() {
    let site = Site::with_acl();
    let patient = Patient::new(&site, NO_TPM, "");
    patient.examined().has("bridge", "failed", &["none answers", "topic prefix", "common name gateway-7"]);

    let bridge = site.bridge().await;
    bridge.leave_status(true);
    // its own topics are another name's
    let stranger = Patient::new(&site, NO_TPM, "").with_certificate(&site, "agent");
    let diagnosis = stranger.examined();
    diagnosis.has("id", "finding", &["common name is agent"]);
    let words = ["acknowledges", "common name agent", "write keylime/v1/gateway-7/evidence"];
    diagnosis.has("topics", "failed", &words).has("bridge", "ok", &["connected"]);
    diagnosis.has("packet", "not-checked", &["topics"]).ends_with(1);

    bridge.leave_status(false);
    bridge.goes().await;
    patient.examined().has("topics", "not-checked", &[]).has("bridge", "failed", &["said goodbye", "start"]);
}

#[test]
fn where_the_way_to_the_broker_ends_is_named_and_what_lies_behind_is_not_checked() {
    let site = Site::new();
    let patient = |key: &str, value: &str| Patient::new(&site, NO_TPM, "").with(key, value).examined();
    let unknown = patient("BROKER__HOST", "broker.invalid");
    unknown.has("name", "failed", &["broker.invalid"]).has("tcp", "not-checked", &["waits for name"]);
    let closed = patient("BROKER__PORT", "1");
    closed.has("name", "ok", &[]).has("tcp", "failed", &["broker.port"]).has(
        "tls",
        "not-checked",
        &["waits for tcp"],
    );
    closed.ends_with(1);
    let other_ca = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
    fs::write(site.path("other-ca.pem"), other_ca.cert.pem()).unwrap();
    let wrong_ca = patient("BROKER__CA_FILE", site.path("other-ca.pem").to_str().unwrap());
    wrong_ca.has("tcp", "ok", &[]).has("tls", "failed", &["none of the CAs in broker.ca_file"]).ends_with(1);
    let wrong_name = patient("BROKER__HOST", "127.0.0.1");
    wrong_name.has("tls", "failed", &["another host name"]);

    let expired = Patient::new(&site, NO_TPM, "").with_certificate(&site, "expired").examined();
    expired.has("certificate", "failed", &["has run out", "2020-01-01", "renew it"]);
    // TLS 1.3: the broker says so after the handshake
    expired.has("tls", "ok", &[]).has("login", "failed", &["certificate"]).has(
        "topics",
        "not-checked",
        &["login"],
    );

    let no_key = Patient::new(&site, NO_TPM, "").with("BROKER__KEY_FILE", "/nonexistent").examined();
    no_key
        .has("configuration", "failed", &["broker.key_file"])
        .has("broker", "not-checked", &[])
        .ends_with(2);
    let misspelt = Patient::new(&site, NO_TPM, "ima_logg = 'x'").examined();
    misspelt.has("configuration", "failed", &["ima_logg"]).ends_with(2);
}

#[tokio::test]
async fn a_packet_that_the_broker_drops_or_ends_the_connection_for_is_found_and_sent_once() {
    for (limit, how) in
        [("message_size_limit", "acknowledged and dropped"), ("max_packet_size", "ended the connection")]
    {
        let site = Site::with(&format!("allow_anonymous true\n{limit} 20000"));
        let patient = Patient::new(&site, NO_TPM, "");
        let mut bridge = site.bridge().await;
        let diagnosis = patient.examined_before(&mut bridge, None).await;
        diagnosis.has("packet", "finding", &["a message of 122880 bytes", how, "broker.max_packet_bytes"]);
        let small =
            Patient::new(&site, NO_TPM, "payload_bytes = 40000").with("BROKER__MAX_PACKET_BYTES", "50000");
        let diagnosis = small.examined_before(&mut bridge, None).await;
        diagnosis.has("packet", "failed", &["a message of 40000 bytes", "payload_bytes"]).ends_with(1);
    }
}

#[tokio::test]
async fn topics_of_other_devices_that_can_be_read_are_a_finding() {
    let site = Site::new();
    let patient = Patient::new(&site, NO_TPM, "");
    let mut bridge = site.bridge().await;
    bridge.retain("keylime/v1/gateway-8/result", b"{}");
    let diagnosis = patient.examined_before(&mut bridge, None).await;
    diagnosis.has("others", "finding", &["keylime/v1/gateway-8/result", "too wide"]).ends_with(1);
}

#[test]
fn a_tpm_that_is_absent_or_locked_and_logs_that_do_not_fit_it_are_named() {
    let (site, swtpm) = (Site::new(), Swtpm::bare());
    fs::write(site.path("ima"), IMA).unwrap();
    fs::write(site.path("uefi"), &UEFI[..UEFI.len() - 3]).unwrap();
    let logs =
        format!("ima_log = '{}'\nuefi_log = '{}'", site.path("ima").display(), site.path("uefi").display());
    let absent = Patient::new(&site, NO_TPM, &logs).examined();
    absent.has("tpm", "failed", &["port=1", "may this user open it"]).has(
        "ak",
        "not-checked",
        &["waits for tpm"],
    );
    absent.has("ima-log", "not-checked", &["waits for tpm"]).ends_with(1);

    // another user of the TPM does not know the password
    swtpm.tool("tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "600", "-l", "600"]);
    swtpm.tool(
        "tpm2_nvdefine",
        &["0x1500001", "-C", "o", "-s", "8", "-a", "ownerwrite|authread", "-p", "secret"],
    );
    let wrong = ["0x1500001", "-C", "0x1500001", "-P", "wrong", "-s", "8"];
    let read = Command::new("tpm2_nvread").args(wrong).env("TPM2TOOLS_TCTI", swtpm.tcti()).output().unwrap();
    assert!(!read.status.success());
    let locked = Patient::new(&site, &swtpm.tcti(), &logs).examined();
    locked.has("tpm", "ok", &["without an EK certificate"]);
    locked.has("lockout", "finding", &["in lockout", "1 of 1", "tpm2_dictionarylockout --clear-lockout"]);
    locked.has("ima-log", "failed", &["do not lead to PCR 10", "this boot"]);
    locked.has("uefi-log", "failed", &["cannot", "binary_bios_measurements"]).ends_with(1);

    fs::remove_file(site.path("ima")).unwrap();
    fs::write(site.path("uefi"), b"no log").unwrap();
    let missing = Patient::new(&site, &swtpm.tcti(), &logs).examined();
    missing.has("ima-log", "failed", &["cannot be read", "correct the path"]);
    missing.has("uefi-log", "failed", &["not a log"]);

    // without a resource manager a tool leaves its keys in the TPM
    let context = site.path("context").display().to_string();
    for _ in 0..SLOTS {
        swtpm.tool("tpm2_createprimary", &["-C", "n", "-G", "ecc", "-c", &context]);
    }
    let full = Patient::new(&site, &swtpm.tcti(), &logs).examined();
    full.has("tpm", "failed", &["no room left", "another program", "tpm2_flushcontext"]).ends_with(1);
}
