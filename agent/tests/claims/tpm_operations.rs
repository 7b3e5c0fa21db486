//! What the TPM signs and opens, checked with other people's code: ring for signatures, tpm2-tools for the rest.

use std::time::Duration;

use crate::swtpm::Swtpm;
use keylime_mqtt_agent::tpm::{Identity, Tpm, TpmError, TpmSettings};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use sha2::{Digest, Sha256};

async fn start(swtpm: &Swtpm) -> (Tpm, Identity) {
    let settings =
        TpmSettings { tcti: swtpm.tcti(), command_timeout: Duration::from_secs(60), ek_handle: None };
    let tpm = Tpm::start(settings, None).await.unwrap();
    let identity = tpm.identity().await.unwrap();
    (tpm, identity)
}

/// Checks TPMT_SIGNATURE (RSASSA, SHA-256) over TPMS_ATTEST with the AK.
fn signed_by_ak(identity: &Identity, attest: &[u8], signature: &[u8]) -> bool {
    // TPMT_SIGNATURE: TPM_ALG_RSASSA, TPM_ALG_SHA256, size, signature.
    assert_eq!(signature[..6], [0x00, 0x14, 0x00, 0x0B, 0x01, 0x00]);
    // The modulus is the last field of TPMT_PUBLIC.
    let modulus = &identity.ak_public[identity.ak_public.len() - 256..];
    RsaPublicKeyComponents { n: modulus, e: &[1, 0, 1] }
        .verify(&RSA_PKCS1_2048_8192_SHA256, attest, &signature[6..])
        .is_ok()
}

/// extraData of TPMS_ATTEST: after magic, type and the signer's qualified name.
fn extra_data(attest: &[u8]) -> &[u8] {
    assert_eq!(attest[..4], [0xFF, b'T', b'C', b'G']);
    let after_name = 8 + usize::from(u16::from_be_bytes([attest[6], attest[7]]));
    let size = usize::from(u16::from_be_bytes([attest[after_name], attest[after_name + 1]]));
    &attest[after_name + 2..after_name + 2 + size]
}

#[tokio::test]
async fn a_quote_is_signed_by_the_ak_over_the_nonce_and_the_values_read_after_it() {
    let swtpm = Swtpm::new();
    swtpm.tool("tpm2_pcrextend", &[&format!("10:sha256={}", "ab".repeat(32))]);
    let (tpm, identity) = start(&swtpm).await;
    let quoted = tpm.quote(vec![7; 16], 0x00FF_FFFF).await.unwrap();
    let values = tpm.pcrs(0x00FF_FFFF).await.unwrap();
    assert!(signed_by_ak(&identity, &quoted.attest, &quoted.signature));
    assert_eq!(extra_data(&quoted.attest), [7; 16]);
    assert_eq!(values.len(), 24);
    assert_eq!(values[10].as_slice(), Sha256::digest([[0; 32], [0xAB; 32]].concat()).as_slice());
    assert_eq!(values[17], [0xFF; 32]);
    assert_eq!(quoted.pcr_digest.as_slice(), Sha256::digest(values.concat()).as_slice());
    assert!(quoted.attest.ends_with(&quoted.pcr_digest));
}

#[tokio::test]
async fn a_signature_does_not_pass_over_other_bytes() {
    let swtpm = Swtpm::new();
    let (tpm, identity) = start(&swtpm).await;
    let quoted = tpm.quote(vec![7; 16], 1).await.unwrap();
    let mut changed = quoted.attest.clone();
    changed[60] ^= 1;
    assert!(!signed_by_ak(&identity, &changed, &quoted.signature));
}

#[tokio::test]
async fn pcrs_come_lowest_first_whatever_the_selection() {
    let swtpm = Swtpm::new();
    swtpm.tool("tpm2_pcrextend", &[&format!("1:sha256={}", "11".repeat(32))]);
    swtpm.tool("tpm2_pcrextend", &[&format!("23:sha256={}", "23".repeat(32))]);
    let (tpm, _) = start(&swtpm).await;
    let all = tpm.pcrs(0x00FF_FFFF).await.unwrap();
    let some = tpm.pcrs(1 << 23 | 1 << 17 | 1 << 1).await.unwrap();
    assert_eq!(some, [all[1], all[17], all[23]]);
    assert_eq!(tpm.pcrs(0).await.unwrap(), Vec::<[u8; 32]>::new());
}

#[tokio::test]
async fn a_mask_of_nothing_quotes_no_pcr_and_still_carries_the_clock() {
    let mut swtpm = Swtpm::new();
    let (tpm, identity) = start(&swtpm).await;
    let statement = tpm.quote(vec![9; 32], 0).await.unwrap();
    assert!(signed_by_ak(&identity, &statement.attest, &statement.signature));
    assert_eq!(extra_data(&statement.attest), [9; 32]);
    assert_eq!(statement.pcr_digest.as_slice(), Sha256::digest([]).as_slice());
    let before = tpm.clock().await.unwrap();
    assert!(before.safe && before.clock_ms >= statement.clock.clock_ms);
    tpm.clone().close().await.unwrap();
    swtpm.orderly_reboot();
    let after = tpm.clock().await.unwrap();
    assert_eq!(after.reset_count, before.reset_count + 1);
    assert!(after.safe && after.clock_ms > before.clock_ms);
}

#[tokio::test]
async fn after_a_power_cut_the_clock_says_that_it_is_not_safe() {
    let mut swtpm = Swtpm::new();
    let (tpm, _) = start(&swtpm).await;
    let before = tpm.clock().await.unwrap();
    swtpm.power_off();
    swtpm.power_on();
    let after = tpm.clock().await.unwrap();
    assert!(!after.safe && after.reset_count > before.reset_count, "{before:?} {after:?}");
}

#[tokio::test]
async fn the_ak_certifies_itself_over_the_session_nonce() {
    let swtpm = Swtpm::new();
    let (tpm, identity) = start(&swtpm).await;
    let proof = tpm.certify_ak([3; 16]).await.unwrap();
    assert!(signed_by_ak(&identity, &proof.attest, &proof.signature));
    assert_eq!(extra_data(&proof.attest), [3; 16]);
    // TPM_ST_ATTEST_CERTIFY, and the name of what is certified (TPM 2.0 Part 2, 10.12.3).
    assert_eq!(proof.attest[4..6], [0x80, 0x17]);
    let name = [&[0, 34], identity.ak_name.as_slice()].concat();
    assert!(proof.attest.windows(name.len()).any(|window| window == name));
}

/// The registrar's side: tpm2_makecredential without a TPM, in the layout that Keylime copied from it.
fn make_credential(swtpm: &Swtpm, identity: &Identity, ek_hash_of: &Swtpm, credential: &[u8]) -> Vec<u8> {
    std::fs::write(swtpm.path().join("credential"), credential).unwrap();
    ek_hash_of.tool("tpm2_readpublic", &["-Q", "-c", "0x81010001", "-f", "pem", "-o", "ek.pem"]);
    let key = ek_hash_of.path().join("ek.pem");
    let name = hex::encode(identity.ak_name);
    let arguments = [
        "-Q",
        "-T",
        "none",
        "-G",
        "rsa",
        "-u",
        key.to_str().unwrap(),
        "-s",
        "credential",
        "-n",
        &name,
        "-o",
        "blob",
    ];
    swtpm.tool("tpm2_makecredential", &arguments);
    std::fs::read(swtpm.path().join("blob")).unwrap()
}

#[tokio::test]
async fn the_credential_of_the_registrar_opens_in_the_right_tpm_alone() {
    let swtpm = Swtpm::new();
    let other = Swtpm::new();
    let (tpm, identity) = start(&swtpm).await;
    tpm.clone().close().await.unwrap();
    let ours = make_credential(&swtpm, &identity, &swtpm, &[0x5A; 32]);
    let foreign = make_credential(&swtpm, &identity, &other, &[0x5A; 32]);
    assert_eq!(tpm.activate(ours.clone()).await.unwrap().as_slice(), [0x5A; 32]);

    let refused = tpm.activate(foreign).await;
    assert!(matches!(refused, Err(TpmError::CredentialRejected { .. })), "{refused:?}");
    let other_ak = Identity { ak_name: [0; 34], ..identity.clone() };
    tpm.clone().close().await.unwrap();
    let refused = tpm.activate(make_credential(&swtpm, &other_ak, &swtpm, &[0x5A; 32])).await;
    assert!(matches!(refused, Err(TpmError::CredentialRejected { .. })), "{refused:?}");
    assert!(matches!(tpm.activate(vec![1, 2, 3]).await, Err(TpmError::CredentialBlob(_))));

    // A refusal leaves nothing loaded and the key intact: more often than the TPM has slots.
    for _ in 0..5 {
        assert_eq!(tpm.activate(ours.clone()).await.unwrap().as_slice(), [0x5A; 32]);
    }
}

#[tokio::test]
async fn more_power_cuts_than_a_lockout_allows_do_not_lock_out() {
    let mut swtpm = Swtpm::new();
    let (tpm, _) = start(&swtpm).await;
    for _ in 0..5 {
        tpm.quote(vec![1; 16], 1).await.unwrap();
        tpm.certify_ak([1; 16]).await.unwrap();
        swtpm.power_off();
        swtpm.power_on();
    }
    tpm.quote(vec![1; 16], 1).await.unwrap();
}

#[tokio::test]
async fn what_no_tpm_can_do_is_refused_without_asking_it() {
    let swtpm = Swtpm::new();
    let (tpm, _) = start(&swtpm).await;
    assert!(matches!(tpm.quote(vec![0; 16], 1 << 24).await, Err(TpmError::PcrMask { .. })));
    assert!(matches!(tpm.quote(vec![0; 35], 1).await, Err(TpmError::QualifyingData { length: 35 })));
}

#[tokio::test]
async fn without_a_sha256_bank_there_is_no_quote_of_nothing() {
    let mut swtpm = Swtpm::new();
    swtpm.tool("tpm2_pcrallocate", &["sha1:all+sha256:none"]);
    swtpm.orderly_reboot();
    let (tpm, _) = start(&swtpm).await;
    let quoted = tpm.quote(vec![0; 16], 0x401).await;
    assert!(matches!(quoted, Err(TpmError::NoSha256Bank { missing: 0x401 })), "{quoted:?}");
    let read = tpm.pcrs(0x401).await;
    assert!(matches!(read, Err(TpmError::NoSha256Bank { missing: 0x401 })), "{read:?}");
}
