//! What a TPM marshalled, or somebody who says so.

use std::sync::LazyLock;

use keylime_mqtt_bridge::admission::ek_hash;
use keylime_mqtt_bridge::restore::{
    bind, certified_name, pcr_blob, restore_brief, verify_proof, verify_statement,
};
use keylime_mqtt_bridge::tpm::{AkPublic, Attest, Attested, ClockInfo, Public, RsaSignature, marshal_quote};
use keylime_mqtt_schemas::messages::limits::MAX_ATTEST;
use keylime_mqtt_schemas::messages::{Brief, PcrMask, PcrValues};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

use crate::bytes::Bytes;
use crate::certificates::AK_PUBLIC;

/// Of a key that signed none of the inputs.
static AK: LazyLock<AkPublic> = LazyLock::new(|| AkPublic::parse(AK_PUBLIC).expect("an AK"));
/// The same key, for what is behind a good signature.
static KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| {
    let pkcs8 = include_bytes!("../../../bridge/tests/data/throwaway_rsa2048.pk8");
    RsaKeyPair::from_pkcs8(pkcs8).expect("the fixtures' key")
});

pub(crate) fn structures(input: &[u8]) {
    if let Ok(attest) = Attest::parse(input) {
        assert!(attest.extra_data.len() <= input.len());
    }
    if let Ok(ak) = AkPublic::parse(input) {
        assert!(ak.bits() >= 2048 && ak.tpm2b() == input);
    }
    if Public::parse(input).is_err() {
        assert!(ek_hash(input).is_err(), "a hash of what is no key");
    }
    if let Ok(signature) = RsaSignature::parse(input) {
        assert_eq!(signature.marshal().as_deref(), Ok(input), "a signature with two encodings");
    }
    if let Ok(name) = certified_name(input) {
        assert!(name.len() <= input.len());
    }
}

/// Nothing is bound that the trusted AK has not signed, and what it has signed is taken for what it says.
pub(crate) fn restoring(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mask =
        PcrMask::try_from(u32::from_le_bytes(bytes.array()) & u32::from(PcrMask::ALL)).expect("24 bits");
    let values = PcrValues::new(mask, vec![bytes.array(); mask.count()]).expect("one value each");
    assert_eq!((pcr_blob(&values).len() - 132 - 4) % 532, 0);
    let (nonce, attest, signature) = (bytes.piece(), bytes.piece(), bytes.piece());
    assert!(bind(&AK, nonce, mask, attest, signature, values.clone()).is_err(), "bound without a signature");
    assert!(verify_statement(&AK, &bytes.array(), attest, signature).is_err(), "stated without a signature");
    if let Ok(signature) = signature.to_vec().try_into() {
        let brief = Brief { clock: u64::from_le_bytes(bytes.array()), signature, restart_count: None };
        let restored = restore_brief(&AK, nonce, attest, &brief, values.clone());
        assert!(restored.is_err(), "restored without a signature");
    }
    // what cannot be read is no TPM's to sign
    if let Ok(parsed) = Attest::parse(attest) {
        signed(nonce, attest, &parsed, &values);
        restored(nonce, attest, &parsed, values);
    }
}

/// The number of a signature, and the TPMT_SIGNATURE.
fn sign(attest: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut number = vec![0; KEY.public().modulus_len()];
    KEY.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), attest, &mut number).expect("a signature");
    let signature = RsaSignature::of_number(&number).marshal().expect("a short number");
    (number, signature)
}

/// Any structure under a good signature.
fn signed(nonce: &[u8], attest: &[u8], parsed: &Attest, values: &PcrValues) {
    let (_, signature) = sign(attest);
    let mask = values.mask();
    // a fuzzer seldom finds the nonce twice
    for nonce in [nonce, &parsed.extra_data] {
        if bind(&AK, nonce, mask, attest, &signature, values.clone()).is_ok() {
            let Attested::Quote { sha256_mask, pcr_digest } = &parsed.attested else { panic!("no quote") };
            assert_eq!(*sha256_mask, Some(mask.into()), "of other PCRs");
            assert_eq!(pcr_digest, values.digest().as_bytes(), "of other values");
            assert!(parsed.extra_data == nonce && parsed.clock.safe, "bound: {parsed:?}");
        }
        if verify_proof(&AK, nonce, attest, &signature).is_ok() {
            assert!(parsed.extra_data == nonce, "proven for another session");
            assert_eq!(parsed.attested, Attested::Certify { name: AK.name().to_vec() }, "about another key");
        }
    }
    let Ok(said) = parsed.extra_data.as_slice().try_into() else { return };
    let stated = verify_statement(&AK, said, attest, &signature).is_ok();
    assert!(!stated || matches!(parsed.attested, Attested::Quote { sha256_mask: Some(0), .. }), "of PCRs");
}

/// A quote comes back from its brief form, whatever the boot's statement was.
fn restored(nonce: &[u8], boot: &[u8], stated: &Attest, values: PcrValues) {
    let clock = ClockInfo { safe: true, ..stated.clock };
    let (signer, digest) = (&stated.qualified_signer, values.digest());
    let made = marshal_quote(signer, nonce, clock, stated.firmware_version, values.mask(), digest.as_bytes());
    let Some(quote) = made.ok().filter(|quote| quote.len() <= MAX_ATTEST) else { return };
    let (number, signature) = sign(&quote);
    let brief =
        Brief { clock: clock.clock, signature: number.try_into().expect("short"), restart_count: None };
    let (whole, bound) = restore_brief(&AK, nonce, boot, &brief, values.clone()).expect("signed as restored");
    assert!(whole.attest.as_slice() == quote && whole.signature.as_slice() == signature);
    assert_eq!((bound.clock(), bound.values()), (clock, &values));
    bind(&AK, nonce, values.mask(), &quote, &signature, values).expect("bound in its full form as well");
}
