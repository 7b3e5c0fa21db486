//! What a TPM marshalled, or somebody who says so.

use std::sync::LazyLock;

use keylime_mqtt_bridge::admission::ek_hash;
use keylime_mqtt_bridge::restore::{bind, certified_name, pcr_blob, restore_brief, verify_statement};
use keylime_mqtt_bridge::tpm::{AkPublic, Attest, Public, RsaSignature};
use keylime_mqtt_schemas::messages::{Brief, PcrMask, PcrValues};

use crate::bytes::Bytes;
use crate::certificates::AK_PUBLIC;

/// Of a key that signed none of the inputs.
static AK: LazyLock<AkPublic> = LazyLock::new(|| AkPublic::parse(AK_PUBLIC).expect("an AK"));

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

/// Nothing is bound that the trusted AK has not signed, and it has signed nothing.
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
        assert!(restore_brief(&AK, nonce, attest, &brief, values).is_err(), "restored without a signature");
    }
}
