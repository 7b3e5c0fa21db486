//! Claims about which TPMs may register, with EK certificates of swtpm_localca as devices have them.

use crate::fixtures::{EK_HASH, TestAk, bytes, path};
use keylime_mqtt_bridge::admission::{
    Admission, AdmissionError, AdmissionSettings, Claim, Decision, ek_hash,
};
use rustls_pki_types::UnixTime;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Within the fixtures' validity
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));

struct Store {
    dir: TempDir,
}

impl Store {
    fn with(files: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let from = path(&format!("device-secure/{file}"));
            fs::copy(from, dir.path().join(file)).unwrap();
        }
        Self { dir }
    }

    fn list(&self, text: &str) -> PathBuf {
        let list = self.dir.path().join(".admitted");
        fs::write(&list, text).unwrap();
        list
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn maker() -> Store {
    Store::with(&["ek_issuer.pem", "ek_rootca.pem"])
}

fn gate(store: &Store, list: Option<&str>, any_id: bool) -> Admission {
    Admission::new(&AdmissionSettings {
        ek_ca_dir: Some(store.path().to_owned()),
        list_file: list.map(|text| store.list(text)),
        danger_any_id_of_trusted_ca: any_id,
    })
    .unwrap()
}

fn decide(gate: &Admission, id: &str, certificate: Option<&[u8]>) -> Decision {
    let ek = bytes("device-secure/ek.pub");
    let ak = TestAk::new().tpm2b();
    gate.decide(Claim { id, ek_public: &ek, ek_certificate: certificate, ak_public: &ak }, NOW)
}

fn name(gate: &Admission, id: &str, certificate: Option<&[u8]>) -> &'static str {
    decide(gate, id, certificate).name()
}

#[test]
fn the_ek_hash_is_keylimes() {
    assert_eq!(ek_hash(&bytes("device-secure/ek.pub")).unwrap().as_str(), EK_HASH);
}

#[test]
fn a_genuine_tpm_is_admitted_under_its_own_hash_and_no_other_id() {
    let certificate = bytes("device-secure/ek_rsa.der");
    let gate = gate(&maker(), None, false);
    assert_eq!(name(&gate, EK_HASH, Some(&certificate)), "admitted");
    assert_eq!(name(&gate, "gate-1", Some(&certificate)), "not_admitted");
    assert_eq!(name(&gate, &"0".repeat(64), Some(&certificate)), "id_mismatch");
    assert_eq!(name(&gate, EK_HASH, None), "no_certificate");
}

#[test]
fn a_line_gives_an_id_to_one_ek_and_to_no_other() {
    let certificate = bytes("device-secure/ek_rsa.der");
    let list = format!("gate-1 = {EK_HASH}\ngate-2 = {}\n", "1".repeat(64));
    let gate = gate(&maker(), Some(&list), false);
    assert_eq!(name(&gate, "gate-1", Some(&certificate)), "admitted");
    assert_eq!(name(&gate, "gate-1", None), "admitted");
    assert_eq!(name(&gate, "gate-2", Some(&certificate)), "id_mismatch");
    assert_eq!(name(&gate, "gate-3", Some(&certificate)), "not_admitted");
    let remedy = decide(&gate, "gate-3", Some(&certificate)).remedy("gate-3").unwrap();
    assert!(remedy.contains(&format!("gate-3 = {EK_HASH}")), "{remedy}");
}

#[test]
fn any_id_is_given_to_a_genuine_tpm_only_by_the_setting_that_says_danger() {
    let certificate = bytes("device-secure/ek_rsa.der");
    let list = format!("gate-2 = {}\n", "1".repeat(64));
    let gate = gate(&maker(), Some(&list), true);
    assert_eq!(name(&gate, "gate-1", Some(&certificate)), "admitted");
    assert_eq!(name(&gate, "gate-1", None), "no_certificate");
    assert_eq!(name(&gate, "gate-2", Some(&certificate)), "id_mismatch", "a listed id stays its EK's");
    assert_eq!(name(&gate, &"0".repeat(64), Some(&certificate)), "id_mismatch", "a hash stays its EK's");
}

#[test]
fn a_certificate_of_an_unknown_maker_is_refused() {
    let certificate = bytes("device-secure/ek_rsa.der");
    // the maker's root alone cannot complete the chain: devices send the leaf only
    let root_only = gate(&Store::with(&["ek_rootca.pem"]), None, false);
    assert_eq!(name(&root_only, EK_HASH, Some(&certificate)), "unknown_ca");

    let other = rcgen::CertificateParams::new(vec![]).map(|mut params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    });
    let store = Store::with(&["ek_issuer.pem"]);
    fs::write(store.path().join("other.crt"), other.unwrap().pem()).unwrap();
    assert_eq!(name(&gate(&store, None, false), EK_HASH, Some(&certificate)), "unknown_ca");
}

#[test]
fn a_certificate_of_another_key_is_refused_even_for_a_listed_device() {
    let other = bytes("device-secure/ek_ecc.der");
    let list = format!("gate-1 = {EK_HASH}\n");
    let gate = gate(&maker(), Some(&list), false);
    assert_eq!(name(&gate, "gate-1", Some(&other)), "malformed");
    assert_eq!(name(&gate, "gate-1", Some(b"not a certificate")), "malformed");
    let mut padded = bytes("device-secure/ek_rsa.der");
    padded.push(0xFF);
    assert_eq!(name(&gate, "gate-1", Some(&padded)), "malformed");
}

#[test]
fn a_tampered_certificate_is_refused() {
    let gate = gate(&maker(), None, false);
    let mut certificate = bytes("device-secure/ek_rsa.der");
    let last = certificate.len() - 1;
    certificate[last] ^= 1;
    assert_eq!(name(&gate, EK_HASH, Some(&certificate)), "unknown_ca");
}

#[test]
fn an_unrestricted_ak_is_refused_before_the_registrar_hears_of_it() {
    let certificate = bytes("device-secure/ek_rsa.der");
    let ek = bytes("device-secure/ek.pub");
    let ak = TestAk::new().tpm2b_with(TestAk::ATTRIBUTES & !(1 << 16), 0x0014, 0x000B);
    let claim = Claim { id: EK_HASH, ek_public: &ek, ek_certificate: Some(&certificate), ak_public: &ak };
    assert_eq!(gate(&maker(), None, false).decide(claim, NOW).name(), "unfit_ak");
}

#[test]
fn an_admission_that_could_decide_nothing_is_refused_at_start() {
    assert!(matches!(Admission::new(&AdmissionSettings::default()), Err(AdmissionError::Nothing)));
    let no_root = Store::with(&["ek_issuer.pem"]);
    let settings = AdmissionSettings { ek_ca_dir: Some(no_root.path().to_owned()), ..Default::default() };
    let error = Admission::new(&settings).unwrap_err().to_string();
    assert!(error.contains("self-signed"), "{error}");
    fs::write(no_root.path().join("junk.pem"), "junk").unwrap();
    let error = Admission::new(&settings).unwrap_err().to_string();
    assert!(error.contains("junk.pem"), "{error}");
}
