//! Who the device is, over restarts, resets and clears, on a real software TPM.

use std::time::Duration;

use crate::swtpm::Swtpm;
use keylime_mqtt_agent::tpm::{Identity, SavedAk, Tpm, TpmError, TpmSettings, ek_certificate_issuer};
use sha2::{Digest, Sha256};

fn settings(swtpm: &Swtpm) -> TpmSettings {
    TpmSettings { tcti: swtpm.tcti(), command_timeout: Duration::from_secs(60), ek_handle: None }
}

/// One life of the agent: start, say who it is, end.
async fn one_life(swtpm: &Swtpm, saved: Option<SavedAk>) -> Identity {
    let tpm = Tpm::start(settings(swtpm), saved).await.unwrap();
    let identity = tpm.identity().await.unwrap();
    tpm.close().await.unwrap();
    identity
}

#[tokio::test]
async fn the_identity_survives_restarts_of_the_agent_and_resets_of_the_tpm() {
    let mut swtpm = Swtpm::new();
    let first = one_life(&swtpm, None).await;
    assert_eq!(one_life(&swtpm, Some(first.saved_ak.clone())).await, first);
    swtpm.orderly_reboot();
    assert_eq!(one_life(&swtpm, Some(first.saved_ak.clone())).await, first);
    swtpm.power_off();
    swtpm.power_on();
    assert_eq!(one_life(&swtpm, Some(first.saved_ak.clone())).await, first);
}

#[tokio::test]
async fn the_ek_hash_is_that_of_the_pem_that_openssl_writes() {
    let swtpm = Swtpm::new();
    let identity = one_life(&swtpm, None).await;
    swtpm.tool("tpm2_readpublic", &["-Q", "-c", "0x81010001", "-f", "pem", "-o", "ek.pem"]);
    let pem = std::fs::read(swtpm.path().join("ek.pem")).unwrap();
    assert_eq!(identity.ek_hash, hex::encode(Sha256::digest(pem)));
}

#[tokio::test]
async fn the_structures_are_those_that_tpm2_tools_read() {
    let swtpm = Swtpm::new();
    let identity = one_life(&swtpm, None).await;
    swtpm.tool("tpm2_readpublic", &["-Q", "-c", "0x81010001", "-f", "tss", "-o", "ek.tss"]);
    assert_eq!(identity.ek_public, std::fs::read(swtpm.path().join("ek.tss")).unwrap());
    swtpm.tool("tpm2_nvread", &["-C", "o", "0x1c00002", "-o", "ek.der"]);
    assert_eq!(
        identity.ek_certificate.as_deref().unwrap(),
        std::fs::read(swtpm.path().join("ek.der")).unwrap()
    );
    assert_eq!(ek_certificate_issuer(&identity.ek_certificate.unwrap()).unwrap(), "CN=swtpm-localca");
    // TPM 2.0 Part 1, 16: the name is the algorithm and the digest of the public area.
    let name = [&[0x00, 0x0B], Sha256::digest(&identity.ak_public[2..]).as_slice()].concat();
    assert_eq!(identity.ak_name.as_slice(), name);
}

#[tokio::test]
async fn the_ak_is_restricted_to_signing_and_exempt_from_lockout() {
    let swtpm = Swtpm::new();
    let identity = one_life(&swtpm, None).await;
    // TPM2B size, type RSA, name algorithm SHA-256, attributes (TPM 2.0 Part 2, 8.3 and 12.2.4).
    assert_eq!(identity.ak_public[2..6], [0x00, 0x01, 0x00, 0x0B]);
    let attributes = u32::from_be_bytes(identity.ak_public[6..10].try_into().unwrap());
    let fixed_tpm_parent_origin_with_auth = 0x02 | 0x10 | 0x20 | 0x40;
    let (no_da, restricted, sign) = (0x400, 0x1_0000, 0x4_0000);
    assert_eq!(attributes, fixed_tpm_parent_origin_with_auth | no_da | restricted | sign);
}

#[tokio::test]
async fn a_tpm_without_ek_and_certificate_makes_the_same_ek_every_time_and_says_that_it_has_no_certificate() {
    let mut swtpm = Swtpm::bare();
    let first = one_life(&swtpm, None).await;
    assert_eq!(first.ek_certificate, None);
    swtpm.power_off();
    swtpm.power_on();
    assert_eq!(one_life(&swtpm, Some(first.saved_ak.clone())).await, first);
}

#[tokio::test]
async fn a_cleared_tpm_gets_a_new_ak_under_the_new_ek() {
    let swtpm = Swtpm::new();
    let before = one_life(&swtpm, None).await;
    swtpm.tool("tpm2_clear", &["-c", "p"]);
    let after = one_life(&swtpm, Some(before.saved_ak.clone())).await;
    assert_ne!(after.ak_name, before.ak_name);
    assert_eq!(one_life(&swtpm, Some(after.saved_ak.clone())).await, after);
}

#[tokio::test]
async fn a_new_ak_signs_nothing_before_its_identity_was_asked_for() {
    let mut swtpm = Swtpm::new();
    let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
    assert!(matches!(tpm.quote(vec![1; 16], 1).await, Err(TpmError::AkReplaced { .. })));
    let before = tpm.identity().await.unwrap();
    tpm.quote(vec![1; 16], 1).await.unwrap();
    // The TPM is cleared behind the agent's back, then starts anew under its live connection.
    tpm.clone().close().await.unwrap();
    swtpm.tool("tpm2_clear", &["-c", "p"]);
    swtpm.orderly_reboot();
    let refused = tpm.quote(vec![1; 16], 1).await;
    assert!(matches!(refused, Err(TpmError::AkReplaced { name }) if name != before.ak_name), "{refused:?}");
    assert_ne!(tpm.identity().await.unwrap().ak_name, before.ak_name);
    tpm.quote(vec![1; 16], 1).await.unwrap();
}

#[tokio::test]
async fn a_configured_ek_handle_is_taken_or_refused_but_never_replaced() {
    let swtpm = Swtpm::new();
    let usual = one_life(&swtpm, None).await;
    let at = |handle| TpmSettings { ek_handle: Some(handle), ..settings(&swtpm) };
    let tpm = Tpm::start(at(0x8101_0001), None).await.unwrap();
    assert_eq!(tpm.identity().await.unwrap().ek_hash, usual.ek_hash);
    tpm.close().await.unwrap();
    let absent = Tpm::start(at(0x8101_0042), None).await;
    assert!(matches!(absent, Err(TpmError::NoEk { handle: 0x8101_0042 })), "{absent:?}");
    // swtpm_setup keeps an ECC EK there.
    let other = Tpm::start(at(0x8101_0016), None).await;
    assert!(matches!(other, Err(TpmError::ForeignEk { handle: 0x8101_0016 })), "{other:?}");
}

#[tokio::test]
async fn a_tcti_string_that_is_none_is_refused_with_examples() {
    let swtpm =
        TpmSettings { tcti: "tpm0".to_owned(), command_timeout: Duration::from_secs(1), ek_handle: None };
    let error = Tpm::start(swtpm, None).await.unwrap_err();
    assert!(error.to_string().contains("device:/dev/tpmrm0"), "{error}");
}
