//! EK certificates, and the certificates of those who issue them.

use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

use keylime_mqtt_bridge::admission::{Admission, AdmissionSettings, Claim, Decision, EkTrust};
use rustls_pki_types::UnixTime;

const EK_PUBLIC: &[u8] = include_bytes!("../../../bridge/tests/data/device-secure/ek.pub");
const EK_CERTIFICATE: &[u8] = include_bytes!("../../../bridge/tests/data/device-secure/ek_rsa.der");
const ISSUER: &[u8] = include_bytes!("../../../bridge/tests/data/device-secure/ek_issuer.pem");
const ROOT: &[u8] = include_bytes!("../../../bridge/tests/data/device-secure/ek_rootca.pem");
/// A TPM2B_PUBLIC fit for an AK: the fixtures' key in its usual template.
pub(crate) const AK_PUBLIC: &[u8] = include_bytes!("ak.pub");
const ID: &str = "9713f8e0f758554aa47d250cf5ef851168b50aa57d25293e0a7fa7c39a7c830a";
/// Within the fixtures' validity.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));

static GATE: LazyLock<Admission> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("issuer.pem"), ISSUER).expect("a file");
    fs::write(directory.path().join("root.pem"), ROOT).expect("a file");
    let ek_ca_dir = Some(directory.path().to_owned());
    let settings = AdmissionSettings { ek_ca_dir, ..AdmissionSettings::default() };
    Admission::new(&settings).expect("the fixtures' maker")
});

/// The only certificate of that key that its maker signed is the fixture's own.
pub(crate) fn ek_certificate(certificate: &[u8]) {
    let claim =
        Claim { id: ID, ek_public: EK_PUBLIC, ek_certificate: Some(certificate), ak_public: AK_PUBLIC };
    let admitted = matches!(GATE.decide(claim, NOW), Decision::Admitted { .. });
    assert_eq!(admitted, certificate == EK_CERTIFICATE, "admitted: {admitted}");
}

/// A file in the operator's directory, beside a good one.
pub(crate) fn ek_authority(file: &[u8]) {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    fs::write(directory.path().join("a.pem"), file).expect("a file");
    let loaded = EkTrust::from_dir(directory.path());
    if let Err(error) = loaded {
        assert!(error.to_string().contains("ek_ca_dir"), "an error that names no setting: {error}");
    }
}
