//! Claims about brief quotes: what the bridge puts in place of what was left out is what the TPM gave, to the byte, or it is refuted.

use crate::fixtures::{DEVICES, TestAk, base64, bytes, device_pcrs, json, mask};
use keylime_mqtt_bridge::restore::{Unbound, restore_brief};
use keylime_mqtt_bridge::tpm::{AkPublic, Attest, Attested, ClockInfo, SignatureError, marshal_quote};
use keylime_mqtt_schemas::messages::{Brief, PcrValues, Signed};
use proptest::prelude::*;

/// The number in a TPMT_SIGNATURE
fn number(tpmt: &[u8]) -> Vec<u8> {
    tpmt[6..].to_vec()
}

/// The same TPM's statement in the same boot: a quote of no PCRs over something else
fn statement(quote: &Attest) -> Vec<u8> {
    let clock = ClockInfo { clock: 1, ..quote.clock };
    marshal_quote(&quote.qualified_signer, &[9; 32], clock, quote.firmware_version, mask(0), &[]).unwrap()
}

/// A quote of swtpm that Keylime accepted
struct Recorded {
    ak: AkPublic,
    nonce: Vec<u8>,
    quote: Signed,
    parsed: Attest,
    values: PcrValues,
}

fn recorded() -> Recorded {
    let (evidence, challenge) = (json("keylime/evidence.json"), json("keylime/challenge.json"));
    let asked = &challenge["data"]["attributes"]["evidence_requested"][0]["chosen_parameters"];
    let attest = base64(&evidence["quote"]["message"]);
    // this agent quotes PCR 16 too; its values lie in the blob at a fixed stride
    let blob = base64(&evidence["quote"]["subject_data"]);
    let at = |n: usize| 136 + (n / 8) * 532 + 4 + (n % 8) * 66 + 2;
    let values = (0..17).map(|n| blob[at(n)..at(n) + 32].try_into().unwrap()).collect();
    Recorded {
        ak: AkPublic::parse(&base64(&evidence["ak_public"])).unwrap(),
        nonce: base64(&asked["challenge"]),
        parsed: Attest::parse(&attest).unwrap(),
        quote: Signed {
            attest: attest.try_into().unwrap(),
            signature: base64(&evidence["quote"]["signature"]).try_into().unwrap(),
        },
        values: PcrValues::new(mask(0x1_FFFF), values).unwrap(),
    }
}

impl Recorded {
    fn brief(&self) -> Brief {
        let signature = number(self.quote.signature.as_slice()).try_into().unwrap();
        Brief { clock: self.parsed.clock.clock, signature, restart_count: None }
    }
}

#[test]
fn a_quote_made_from_its_parts_is_what_each_recorded_tpm_gave() {
    let quotes = DEVICES.iter().map(|device| bytes(&format!("{device}/quote.msg")));
    for quote in quotes.chain([recorded().quote.attest.into_vec()]) {
        let Attest { qualified_signer, extra_data, clock, firmware_version, attested } =
            Attest::parse(&quote).unwrap();
        let Attested::Quote { sha256_mask, pcr_digest } = attested else { panic!("no quote") };
        let pcrs = mask(sha256_mask.unwrap());
        let made = marshal_quote(&qualified_signer, &extra_data, clock, firmware_version, pcrs, &pcr_digest);
        assert_eq!(made.unwrap(), quote);
    }
}

#[test]
fn a_brief_quote_of_a_real_tpm_is_made_whole_to_the_byte() {
    let recorded = recorded();
    let boot = statement(&recorded.parsed);
    let (quote, bound) =
        restore_brief(&recorded.ak, &recorded.nonce, &boot, &recorded.brief(), recorded.values.clone())
            .unwrap();
    assert_eq!(quote, recorded.quote);
    assert_eq!(bound.values(), &recorded.values);
    assert_eq!(bound.clock(), recorded.parsed.clock);
}

#[test]
fn whatever_was_guessed_wrong_is_refuted_by_the_signature() {
    let recorded = recorded();
    let boot = statement(&recorded.parsed);
    let refuted = |nonce: &[u8], boot: &[u8], brief: &Brief, values: &PcrValues| {
        restore_brief(&recorded.ak, nonce, boot, brief, values.clone()).map(drop)
            == Err(Unbound::Signature(SignatureError::Mismatch))
    };
    let (nonce, brief, values) = (&recorded.nonce, recorded.brief(), &recorded.values);
    assert!(refuted(&[0; 16], &boot, &brief, values), "nonce");
    assert!(refuted(nonce, &boot, &Brief { clock: brief.clock + 1, ..brief.clone() }, values), "clock");
    let restarted = Brief { restart_count: Some(recorded.parsed.clock.restart_count + 1), ..brief.clone() };
    assert!(refuted(nonce, &boot, &restarted, values), "restart count");
    let other = |change: fn(&mut Attest)| {
        let mut other = recorded.parsed.clone();
        change(&mut other);
        statement(&other)
    };
    assert!(refuted(nonce, &other(|boot| boot.clock.reset_count += 1), &brief, values), "reset count");
    assert!(refuted(nonce, &other(|boot| boot.firmware_version += 1), &brief, values), "firmware");
    assert!(refuted(nonce, &other(|boot| boot.qualified_signer[5] ^= 1), &brief, values), "signer");
    let fewer = values.only(values.mask().without(16));
    assert!(refuted(nonce, &boot, &brief, &fewer), "fewer PCRs");
    let changed = values.overlaid(&PcrValues::new(mask(1 << 3), vec![[7; 32]]).unwrap());
    assert!(refuted(nonce, &boot, &brief, &changed), "another value");
    let garbage = Brief { signature: vec![0; 256].try_into().unwrap(), ..brief };
    assert!(refuted(nonce, &boot, &garbage, values), "signature");
    assert!(matches!(
        restore_brief(&recorded.ak, nonce, b"no statement", &garbage, values.clone()),
        Err(Unbound::Malformed(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_quote_of_a_trusted_ak_comes_back_from_its_brief_form(
        signer in prop::collection::vec(any::<u8>(), 0..68),
        nonce in any::<[u8; 16]>(),
        (clock, reset_count, boot_restarts, restarts) in any::<(u64, u32, u32, u32)>(),
        firmware in any::<u64>(),
        bits in 0u32..1 << 16,
    ) {
        let ak = TestAk::new();
        let values = device_pcrs("device-secure", bits);
        let clock = ClockInfo { clock, reset_count, restart_count: restarts, safe: true };
        let digest = values.digest();
        let attest = marshal_quote(&signer, &nonce, clock, firmware, mask(bits), digest.as_bytes()).unwrap();
        let signature = ak.sign(&attest);
        let restart_count = (restarts != boot_restarts).then_some(restarts);
        let brief = Brief { clock: clock.clock, signature: number(&signature).try_into().unwrap(), restart_count };
        let at_boot = ClockInfo { clock: 0, restart_count: boot_restarts, safe: false, ..clock };
        let boot = marshal_quote(&signer, &[1; 32], at_boot, firmware, mask(0), &[]).unwrap();
        let (quote, _) = restore_brief(&ak.public(), &nonce, &boot, &brief, values.clone()).unwrap();
        prop_assert_eq!(quote.attest.as_slice(), attest.as_slice());
        prop_assert_eq!(quote.signature.as_slice(), signature.as_slice());
        let forged = Brief { signature: number(&TestAk::other().sign(&attest)).try_into().unwrap(), ..brief };
        let refuted = Err(Unbound::Signature(SignatureError::Mismatch));
        prop_assert_eq!(restore_brief(&ak.public(), &nonce, &boot, &forged, values).map(drop), refuted);
    }
}
