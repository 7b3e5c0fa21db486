//! Claims about evidence: what is bound, what a log explains, and that restored bytes equal the originals.

use crate::fixtures::{DEVICES, Quote, TestAk, base64, bytes, certify, device_pcrs, json, mask};
use keylime_mqtt_bridge::restore::{
    Replayed, UefiReplay, Unbound, bind, certified_name, pcr_blob, verify_proof, verify_statement,
};
use keylime_mqtt_bridge::tpm::{AkPublic, AkUnfit, Attest, Attested, SignatureError};
use keylime_mqtt_schemas::messages::PcrValues;
use sha2::{Digest as _, Sha256};

const NONCE: [u8; 16] = *b"0123456789abcdef";
const MASK: u32 = 0x7FFF;

struct Signed {
    attest: Vec<u8>,
    signature: Vec<u8>,
}

fn quoted(ak: &TestAk, change: impl FnOnce(&mut Quote<'_>)) -> Signed {
    let digest = device_pcrs("device-secure", MASK).digest();
    let mut quote = Quote { nonce: &NONCE, mask: MASK, digest: digest.as_bytes(), safe: 1, kind: 0x8018 };
    change(&mut quote);
    let attest = quote.marshal();
    Signed { signature: ak.sign(&attest), attest }
}

fn bound(ak: &TestAk, signed: &Signed) -> Result<(), Unbound> {
    let values = device_pcrs("device-secure", MASK);
    bind(&ak.public(), &NONCE, mask(MASK), &signed.attest, &signed.signature, values).map(|_| ())
}

#[test]
fn a_quote_of_the_trusted_ak_over_the_nonce_is_bound() {
    let ak = TestAk::new();
    bound(&ak, &quoted(&ak, |_| {})).unwrap();
}

#[test]
fn everything_else_is_not_bound_and_says_why() {
    let ak = TestAk::new();
    let cases: [(&str, Signed, Unbound); 6] = [
        ("old nonce", quoted(&ak, |q| q.nonce = b"another nonce..."), Unbound::Nonce),
        ("fewer PCRs", quoted(&ak, |q| q.mask = 1), Unbound::Selection),
        ("other values", quoted(&ak, |q| q.digest = &[7; 32]), Unbound::Values),
        ("unsafe clock", quoted(&ak, |q| q.safe = 0), Unbound::ClockUnsafe),
        ("signature of else", Signed { signature: ak.sign(b"else"), ..quoted(&ak, |_| {}) }, mismatch()),
        ("signed by another AK", quoted(&TestAk::other(), |_| {}), mismatch()),
    ];
    for (name, signed, expected) in cases {
        assert_eq!(bound(&ak, &signed).unwrap_err(), expected, "{name}");
    }
}

fn mismatch() -> Unbound {
    Unbound::Signature(SignatureError::Mismatch)
}

#[test]
fn a_real_quote_and_proof_that_keylime_accepted_are_bound() {
    let evidence = json("keylime/evidence.json");
    let challenge = json("keylime/challenge.json");
    let nonce =
        base64(&challenge["data"]["attributes"]["evidence_requested"][0]["chosen_parameters"]["challenge"]);
    let ak = AkPublic::parse(&base64(&evidence["ak_public"])).unwrap();
    // this agent quotes PCR 16 too; its values lie in the blob at a fixed stride
    let blob = base64(&evidence["quote"]["subject_data"]);
    let values: Vec<[u8; 32]> = (0..17)
        .map(|n| {
            let at = 136 + (n / 8) * 532 + 4 + (n % 8) * 66 + 2;
            blob[at..at + 32].try_into().unwrap()
        })
        .collect();
    let values = PcrValues::new(mask(0x1_FFFF), values).unwrap();
    assert_eq!(pcr_blob(&values), blob, "restored blob");
    let quote = &evidence["quote"];
    bind(&ak, &nonce, mask(0x1_FFFF), &base64(&quote["message"]), &base64(&quote["signature"]), values)
        .unwrap();

    let message = base64(&evidence["proof"]["message"]);
    assert_eq!(certified_name(&message).unwrap(), ak.name());
    assert_eq!(certified_name(&base64(&quote["message"])), Err(Unbound::Kind));
}

#[test]
fn restored_pcr_blobs_equal_those_of_tpm2_tools() {
    for device in DEVICES {
        assert_eq!(pcr_blob(&device_pcrs(device, MASK)), bytes(&format!("{device}/quote.pcrs")), "{device}");
        let attest = Attest::parse(&bytes(&format!("{device}/quote.msg"))).unwrap();
        let Attested::Quote { sha256_mask, pcr_digest } = attest.attested else {
            panic!("{device}: no quote")
        };
        assert_eq!(sha256_mask, Some(MASK), "{device}");
        assert_eq!(pcr_digest, device_pcrs(device, MASK).digest().as_bytes(), "{device}");
    }
}

#[test]
fn an_ak_that_could_sign_foreign_data_is_no_ak() {
    let ak = TestAk::new();
    let unrestricted = ak.tpm2b_with(TestAk::ATTRIBUTES & !(1 << 16), 0x0014, 0x000B);
    assert_eq!(AkPublic::parse(&unrestricted).unwrap_err(), AkUnfit::Attribute("restricted"));
    let foreign = ak.tpm2b_with(TestAk::ATTRIBUTES & !(1 << 5), 0x0014, 0x000B);
    assert_eq!(AkPublic::parse(&foreign).unwrap_err(), AkUnfit::Attribute("sensitiveDataOrigin"));
    let decrypts = ak.tpm2b_with(TestAk::ATTRIBUTES | 1 << 17, 0x0014, 0x000B);
    assert_eq!(AkPublic::parse(&decrypts).unwrap_err(), AkUnfit::Decrypts);
    for (scheme, hash) in [(0x0016, 0x000B), (0x0014, 0x000C)] {
        assert_eq!(
            AkPublic::parse(&ak.tpm2b_with(TestAk::ATTRIBUTES, scheme, hash)).unwrap_err(),
            AkUnfit::Algorithm
        );
    }
}

#[test]
fn a_statement_says_its_32_bytes_and_nothing_else() {
    let ak = TestAk::new();
    let said: [u8; 32] = Sha256::digest(b"what was sent").into();
    let empty: [u8; 32] = Sha256::digest(b"").into();
    let states = |mask: u32, digest: &[u8], nonce: &[u8]| {
        let attest = Quote { nonce, mask, digest, safe: 0, kind: 0x8018 }.marshal();
        let signature = ak.sign(&attest);
        verify_statement(&ak.public(), &said, &attest, &signature).map(|clock| clock.reset_count)
    };
    assert_eq!(states(0, &empty, &said), Ok(2));
    assert_eq!(states(0, &[], &said), Ok(2));
    assert_eq!(states(0, &empty, &[1; 32]), Err(Unbound::Nonce));
    assert_eq!(states(1, &empty, &said), Err(Unbound::Selection));
    assert_eq!(states(0, &[5; 32], &said), Err(Unbound::Values));
    let attest = Quote { nonce: &said, mask: 0, digest: &empty, safe: 1, kind: 0x8018 }.marshal();
    let signature = TestAk::other().sign(&attest);
    assert_eq!(verify_statement(&ak.public(), &said, &attest, &signature).unwrap_err(), mismatch());
}

#[test]
fn a_proof_is_made_by_the_ak_that_it_is_about_and_that_the_device_named() {
    let (ak, other) = (TestAk::new(), TestAk::other());
    let about = |certified: &TestAk, signed_by: &TestAk| {
        let attest = certify(&NONCE, certified);
        verify_proof(&ak.public(), &NONCE, &attest, &signed_by.sign(&attest))
    };
    assert_eq!(about(&ak, &ak), Ok(()));
    assert_eq!(about(&ak, &other), Err(mismatch()));
    assert_eq!(about(&other, &other), Err(Unbound::Name));
    assert_eq!(about(&other, &ak), Err(Unbound::Name));
}

fn explained(log: &[u8], quoted: &PcrValues) -> UefiReplay {
    Replayed::of(log).explains(quoted)
}

#[test]
fn the_recorded_uefi_logs_explain_all_pcrs_they_speak_of() {
    for device in DEVICES {
        let log = bytes(&format!("{device}/binary_bios_measurements"));
        assert_eq!(explained(&log, &device_pcrs(device, 0xFFFF)), UefiReplay::Explained, "{device}");
        assert_eq!(explained(&log, &device_pcrs(device, 1 << 10)), UefiReplay::NotQuoted, "{device}");
    }
}

#[test]
fn a_uefi_log_of_another_boot_or_cut_short_does_not_explain() {
    let log = bytes("device-secure/binary_bios_measurements");
    let other = explained(&log, &device_pcrs("device-direct", 0xFF));
    assert!(matches!(other, UefiReplay::Differs(_)), "{other:?}");
    let cut = explained(&log[..log.len() - 1], &device_pcrs("device-secure", 0xFF));
    assert!(matches!(cut, UefiReplay::Malformed(_)), "{cut:?}");
}

#[test]
fn a_tpm_started_from_another_locality_starts_pcr_0_elsewhere() {
    // the recorded log with a StartupLocality event put behind its first event
    let log = bytes("device-direct/binary_bios_measurements");
    let first = 32 + u32::from_le_bytes(log[28..32].try_into().unwrap()) as usize;
    let mut event = Vec::new();
    event.extend_from_slice(&0u32.to_le_bytes());
    event.extend_from_slice(&3u32.to_le_bytes());
    event.extend_from_slice(&0u32.to_le_bytes());
    event.extend_from_slice(&17u32.to_le_bytes());
    event.extend_from_slice(b"StartupLocality\0\x03");
    let moved = [&log[..first], &event, &log[first..]].concat();
    let replay = explained(&moved, &device_pcrs("device-direct", 0xFF));
    assert_eq!(replay, UefiReplay::Differs(1), "PCR 0 and no other moves");
    let mut start = [0u8; 32];
    start[31] = 3;
    let empty = [&log[..first], &event].concat();
    let values = PcrValues::new(mask(1), vec![start]).unwrap();
    assert_eq!(explained(&empty, &values), UefiReplay::Explained);
}
