//! Claims about evidence: what is bound, what a log explains, and that restored bytes equal the originals.

use crate::fixtures::{DEVICES, Quote, TestAk, base64, bytes, device_pcrs, json, mask, text};
use keylime_mqtt_bridge::restore::{
    ImaProblem, ImaReplay, ImaState, Replayed, UefiReplay, Unbound, bind, certified_name, follows_from_pcr,
    pcr_blob, replay_ima, verify_statement,
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
    let cases: [(&str, Signed, Unbound); 5] = [
        ("old nonce", quoted(&ak, |q| q.nonce = b"another nonce..."), Unbound::Nonce),
        ("fewer PCRs", quoted(&ak, |q| q.mask = 1), Unbound::Selection),
        ("other values", quoted(&ak, |q| q.digest = &[7; 32]), Unbound::Values),
        ("unsafe clock", quoted(&ak, |q| q.safe = 0), Unbound::ClockUnsafe),
        ("signed by nobody", Signed { signature: ak.sign(b"else"), ..quoted(&ak, |_| {}) }, mismatch()),
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
}

#[test]
fn the_recorded_ima_logs_explain_pcr_10_from_any_entry_on() {
    for device in DEVICES {
        let log = text(&format!("{device}/ascii_runtime_measurements"));
        let quoted = *device_pcrs(device, 1 << 10).value(10).unwrap();
        let lines = log.lines().count() as u64;
        let whole = replay_ima(ImaState::BOOT, log.as_bytes(), &quoted);
        let at = ImaState { entries: lines, pcr10: quoted };
        assert_eq!(whole, ImaReplay::Explained { at, covered: log.len() }, "{device}");

        // from the middle, with entries after the quote
        let half: String = log.split_inclusive('\n').take(100).collect();
        let ImaReplay::Differs { .. } = replay_ima(ImaState::BOOT, half.as_bytes(), &quoted) else {
            panic!("{device}: half a log explained the whole");
        };
        let middle = state_after(&half);
        let mut rest = log[half.len()..].to_owned();
        let covered = rest.len();
        rest.push_str("10 not looked at");
        assert_eq!(
            replay_ima(middle, rest.as_bytes(), &quoted),
            ImaReplay::Explained { at, covered },
            "{device}"
        );
        assert_eq!(
            replay_ima(at, rest.as_bytes(), &quoted),
            ImaReplay::Explained { at, covered: 0 },
            "{device}"
        );
    }
}

#[test]
fn columns_that_pcr_10_does_not_cover_are_not_taken_from_the_network_as_they_come() {
    for device in DEVICES {
        let log = text(&format!("{device}/ascii_runtime_measurements"));
        for line in log.split_inclusive('\n') {
            let is_violation = line.starts_with(&format!("10 {} ", "0".repeat(40)));
            assert_eq!(follows_from_pcr(line.as_bytes()), !is_violation, "{device}: {line}");
            // none of these changes what the line extends PCR 10 with
            let other = if line.starts_with("10 fe") { "ef" } else { "fe" };
            let changed_hash = [&line[..3], other, &line[5..]].concat();
            let shouted = line.to_uppercase().replace("IMA-NG", "ima-ng");
            for changed in
                [format!("\t{line}"), line.replacen("ima-ng", "ima-ngv2", 1), changed_hash, shouted]
            {
                assert!(!follows_from_pcr(changed.as_bytes()), "{device}: {changed}");
            }
        }
    }
}

/// PCR 10 after a piece of log: the value is found by an independent computation of the ima-ng entries
fn state_after(log: &str) -> ImaState {
    let mut pcr10 = [0u8; 32];
    for line in log.lines() {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let (algorithm, digest) = fields[3].split_once(':').unwrap();
        let digest = hex::decode(digest).unwrap();
        let mut data = Vec::new();
        data.extend_from_slice(&u32::try_from(algorithm.len() + 2 + digest.len()).unwrap().to_le_bytes());
        data.extend_from_slice(algorithm.as_bytes());
        data.extend_from_slice(b":\0");
        data.extend_from_slice(&digest);
        data.extend_from_slice(&u32::try_from(fields[4].len() + 1).unwrap().to_le_bytes());
        data.extend_from_slice(fields[4].as_bytes());
        data.push(0);
        let value: [u8; 32] =
            if fields[1].trim_matches('0').is_empty() { [0xFF; 32] } else { Sha256::digest(data).into() };
        pcr10 = Sha256::digest([pcr10, value].concat()).into();
    }
    ImaState { entries: log.lines().count() as u64, pcr10 }
}

#[test]
fn templates_are_hashed_as_keylime_hashes_them() {
    // template data by hand from keylime/ima/ast.py: SHA-1 of it stands in each line, as in a kernel's log
    let digest = "11".repeat(32);
    let lines = [
        format!("10 - ima {} /bin/old", "22".repeat(20)),
        format!("10 - ima-ng sha256:{digest} /bin/with blank"),
        format!("10 - ima-sig sha256:{digest} /bin/unsigned "),
        format!("10 - ima-sig sha256:{digest} /bin/signed 030204aabbccdd0003010203"),
        format!("10 - ima-buf sha256:{digest} dm_table_load 00ff"),
        format!("10 - ima-modsig sha256:{digest} /bin/mod  sha256:{digest} 3082"),
        format!("10 - ima-sigv2 verity:sha256:{digest} /bin/verity 06"),
    ];
    let sized = |field: &[u8]| [&u32::try_from(field.len()).unwrap().to_le_bytes(), field].concat();
    let dng = sized(&[b"sha256:\0".as_slice(), &[0x11; 32]].concat());
    let mut old = vec![0x22; 20];
    old.extend_from_slice(b"/bin/old");
    old.resize(20 + 256, 0);
    let signature = hex::decode("030204aabbccdd0003010203").unwrap();
    let expected = [
        old,
        [dng.clone(), sized(b"/bin/with blank\0")].concat(),
        [dng.clone(), sized(b"/bin/unsigned\0"), sized(b"")].concat(),
        [dng.clone(), sized(b"/bin/signed\0"), sized(&signature)].concat(),
        [dng.clone(), sized(b"dm_table_load\0"), sized(&[0, 0xFF])].concat(),
        [dng.clone(), sized(b"/bin/mod\0"), sized(b""), dng.clone(), sized(&[0x30, 0x82])].concat(),
        [
            sized(&[b"verity:sha256:\0".as_slice(), &[0x11; 32]].concat()),
            sized(b"/bin/verity\0"),
            sized(&[6]),
        ]
        .concat(),
    ];
    for (line, data) in lines.iter().zip(expected) {
        let value: [u8; 32] = Sha256::digest(data).into();
        let quoted: [u8; 32] = Sha256::digest([[0; 32], value].concat()).into();
        let replay = replay_ima(ImaState::BOOT, line.as_bytes(), &quoted);
        assert!(matches!(replay, ImaReplay::Explained { .. }), "{line}: {replay:?}");
    }
}

#[test]
fn what_cannot_be_recomputed_is_unexplained_never_guessed() {
    let stopped = |problem| ImaReplay::Stopped { at: ImaState::BOOT, problem };
    let cases = [
        ("10 00ff evm-sig sha256:11 /x", stopped(ImaProblem::UnknownTemplate)),
        ("10 00ff ima-ng sha256:zz /x", stopped(ImaProblem::Malformed)),
        ("10 00ff ima-ng", stopped(ImaProblem::Malformed)),
        ("ten 00ff ima-ng sha256:11 /x", stopped(ImaProblem::Malformed)),
        ("", ImaReplay::Differs { at: ImaState::BOOT }),
    ];
    for (line, expected) in cases {
        assert_eq!(replay_ima(ImaState::BOOT, line.as_bytes(), &[9; 32]), expected, "{line:?}");
    }
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
