//! What a broker can do to evidence on its way: nothing that would be submitted.

use super::*;
use crate::tpm::{ClockInfo, marshal_quote};
use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::exchange::relay::{ImaParts, Offer, Requested};
use keylime_mqtt_schemas::messages::{Brief, Evidence, ImaSegment, Nonce, Up};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use std::time::Duration;

const LOG: &[u8] = include_bytes!("../../../tests/data/device-secure/ascii_runtime_measurements");
const KEY: &[u8] = include_bytes!("../../../tests/data/throwaway_rsa2048.pk8");
const CLOCK: ClockInfo = ClockInfo { clock: 377_161, reset_count: 2, restart_count: 0, safe: true };
/// PCR 0, 10 and 14
const ASKED: u32 = 0x4401;

/// A device whose quote covers its log up to a line, and a bridge that knows its log up to an earlier one
struct Scene {
    key: RsaKeyPair,
    offer: Offer,
    /// Where the verifier has followed the log to
    passed: ImaState,
    lines: Vec<u8>,
    /// The line that the device measured next
    next: Vec<u8>,
    values: PcrValues,
}

impl Scene {
    fn new(from: usize, upto: usize) -> Self {
        let key = RsaKeyPair::from_pkcs8(KEY).unwrap();
        let mut passed = ImaState::BOOT;
        let all: Vec<&[u8]> = LOG.split_inclusive(|byte| *byte == b'\n').collect();
        for line in &all[..from] {
            extend_by(&mut passed, line).unwrap();
        }
        let mut quoted = passed;
        for line in &all[from..upto] {
            extend_by(&mut quoted, line).unwrap();
        }
        let pcrs = PcrMask::try_from(ASKED).unwrap();
        let values = PcrValues::new(pcrs, vec![[1; 32], quoted.pcr10, [14; 32]]).unwrap();
        let requested = vec![Requested::Quote, Requested::Ima { offset: passed.entries }];
        let (nonce, expires_at) = (Nonce::from([9; 16]), Duration::from_secs(1800));
        let offer = Offer { index: 4, nonce, pcrs, requested, expires_at };
        Self { key, offer, passed, lines: all[from..upto].concat(), next: all[upto].to_vec(), values }
    }

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// TPM2B_PUBLIC. TPM 2.0 Part 2, 12.2.5
    fn ak_public(&self) -> Vec<u8> {
        let PublicKeyComponents { n: modulus, .. }: PublicKeyComponents<Vec<u8>> = self.key.public().into();
        let fixed = hex::decode("0001000b0005007200000010 0014000b0800 00000000".replace(' ', "")).unwrap();
        Self::sized(&[fixed, Self::sized(&modulus)].concat())
    }

    fn signed(&self, attest: Vec<u8>) -> Signed {
        let mut number = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &attest, &mut number).unwrap();
        let signature = [&[0, 0x14, 0, 0x0B][..], &Self::sized(&number)].concat();
        Signed { attest: attest.try_into().unwrap(), signature: signature.try_into().unwrap() }
    }

    fn statement(&self) -> Signed {
        let none = PcrMask::try_from(0).unwrap();
        self.signed(marshal_quote(&[0, 11, 9], &[5; 32], CLOCK, 7, none, &[]).unwrap())
    }

    fn quote(&self, clock: ClockInfo) -> Signed {
        let Offer { nonce, pcrs, .. } = &self.offer;
        let digest = self.values.digest();
        self.signed(marshal_quote(&[0, 11, 9], nonce.as_bytes(), clock, 7, *pcrs, digest.as_bytes()).unwrap())
    }

    fn evidence(&self, full: bool) -> Evidence {
        let signed = self.quote(CLOCK);
        let signature = signed.signature.as_slice()[6..].to_vec().try_into().unwrap();
        let brief = Brief { clock: CLOCK.clock, signature, restart_count: None };
        let (quote, pcrs) = if full {
            (Quote::Full(signed), self.values.clone())
        } else {
            (Quote::Brief(brief), self.values.only(self.offer.pcrs.without(IMA_PCR)))
        };
        let packed = pack_ima(&self.lines, None).try_into().unwrap();
        let ima = Some(ImaSegment { offset: self.passed.entries, packed });
        Evidence { tag: self.offer.nonce.tag(), quote, pcrs: Some(pcrs), ima }
    }

    /// What a bridge makes of it that holds nothing but the lines before
    fn restore(&self, evidence: &Evidence) -> Restoring {
        let packed = evidence.ima.as_ref().map(|ima| ima.packed.as_slice().to_vec()).unwrap_or_default();
        let state = relay::ImaState { entries: self.passed.entries, pcr10: self.passed.pcr10.into() };
        let ima = ImaParts {
            offset: self.passed.entries,
            gathered: Arc::default(),
            packed,
            reference: None,
            state: Some(state),
            sha256: false,
        };
        let restore = Restore {
            offer: self.offer.clone(),
            quote: evidence.quote.clone(),
            boot_statement: self.statement(),
            ak_public: self.ak_public().try_into().unwrap(),
            pcrs: evidence.pcrs.clone().unwrap_or_default(),
            ima: Some(ima),
            uefi: None,
        };
        super::restore(Job { restore, uefi: None, references: Arc::default() })
    }
}

#[test]
fn a_full_quote_of_another_boot_than_the_one_stated_is_not_restored() {
    let scene = Scene::new(40, 41);
    let mut evidence = scene.evidence(true);
    assert!(matches!(scene.restore(&evidence), Restoring::Explained { .. }));
    let later = ClockInfo { reset_count: CLOCK.reset_count + 1, ..CLOCK };
    evidence.quote = Quote::Full(scene.quote(later));
    assert!(matches!(scene.restore(&evidence), Restoring::OtherBoot));
}

#[test]
fn lines_beyond_what_a_quote_covers_are_cut_off_whoever_wrote_them() {
    let scene = Scene::new(40, 42);
    let forged = b"10 0000000000000000000000000000000000000000 ima-ng sha256:00 /tmp/forged\n";
    for beyond in [&scene.next[..], forged, &[&scene.next, &forged[..]].concat(), b"no line at all\n"] {
        let sent = [&scene.lines, beyond].concat();
        let mut evidence = scene.evidence(true);
        let packed = pack_ima(&sent, None).try_into().unwrap();
        evidence.ima = Some(ImaSegment { offset: scene.passed.entries, packed });
        let Restoring::Explained { restored, ima: Some(state), .. } = scene.restore(&evidence) else {
            panic!("{}: {:?}", beyond.escape_ascii(), scene.restore(&evidence));
        };
        assert_eq!(restored.lines(), scene.lines, "{}", beyond.escape_ascii());
        assert_eq!(state.entries, 42);
        // a brief quote is made of all of them
        evidence.quote = scene.evidence(false).quote;
        evidence.pcrs = scene.evidence(false).pcrs;
        assert!(matches!(scene.restore(&evidence), Restoring::Refuted));
    }
}

#[test]
fn no_turned_bit_of_evidence_changes_what_is_submitted() {
    for (from, upto, full) in [(0, 1, false), (40, 42, true)] {
        let scene = Scene::new(from, upto);
        let evidence = scene.evidence(full);
        let Restoring::Explained { restored: honest, .. } = scene.restore(&evidence) else {
            panic!("lines {from} to {upto}, full: {full}: {:?}", scene.restore(&evidence));
        };
        assert_eq!(honest.lines(), scene.lines);
        let sent = encode(&Up::Evidence(evidence)).unwrap();
        for bit in 0..sent.len() * 8 {
            let mut changed = sent.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(Up::Evidence(evidence)) = decode(&changed) else { continue };
            if let Restoring::Explained { restored, .. } = scene.restore(&evidence) {
                assert_eq!(restored, honest, "bit {bit} of lines {from} to {upto}, full: {full}");
            }
        }
    }
}
