//! Whatever bytes come: no panic, and nothing changed is ever bound.

use crate::fixtures::{Quote, TestAk, bytes, device_pcrs, mask, text};
use keylime_mqtt_bridge::restore::{Replayed, bind};
use keylime_mqtt_bridge::tpm::{AkPublic, Attest, Public, RsaSignature};
use keylime_mqtt_schemas::ima::{ImaReplay, ImaState, replay_ima};
use proptest::prelude::*;

/// A genuine input, cut, extended or changed in a few places
fn mutated(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = original.len();
    let changes = prop::collection::vec((0..len, any::<u8>()), 0..6);
    (changes, 0..=len, prop::collection::vec(any::<u8>(), 0..8), any::<bool>()).prop_map(
        move |(changes, cut, tail, keep)| {
            let mut bytes = original.clone();
            for (at, value) in changes {
                bytes[at] = value;
            }
            if !keep {
                bytes.truncate(cut);
            }
            bytes.extend_from_slice(&tail);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn tpm_structures_are_read_or_refused(
        attest in mutated(bytes("device-secure/quote.msg")),
        public in mutated(bytes("device-secure/ek.pub")),
        ak in mutated(TestAk::new().tpm2b()),
    ) {
        if let Ok(parsed) = Attest::parse(&attest) {
            prop_assert!(parsed.extra_data.len() <= attest.len());
        }
        if let (Ok(a), Ok(b)) = (Public::parse(&public), Public::parse(&ak)) {
            prop_assert_ne!(a, b);
        }
        if let Ok(ak) = AkPublic::parse(&ak) {
            prop_assert!(ak.bits() >= 2048);
        }
        prop_assert!(RsaSignature::parse(&attest).is_err());
    }

    #[test]
    fn no_changed_quote_is_ever_bound(
        (attest, signature) in {
            let values = device_pcrs("device-direct", 0xFF);
            let digest = values.digest();
            let attest = Quote { nonce: b"nonce", mask: 0xFF, digest: digest.as_bytes(), safe: 1, kind: 0x8018 }.marshal();
            let signature = TestAk::new().sign(&attest);
            (mutated(attest), mutated(signature))
        },
    ) {
        let ak = TestAk::new();
        let values = device_pcrs("device-direct", 0xFF);
        let digest = values.digest();
        let genuine = Quote { nonce: b"nonce", mask: 0xFF, digest: digest.as_bytes(), safe: 1, kind: 0x8018 }.marshal();
        if bind(&ak.public(), b"nonce", mask(0xFF), &attest, &signature, values).is_ok() {
            prop_assert_eq!(attest, genuine);
        }
    }

    #[test]
    fn logs_of_any_bytes_are_followed_or_refused(
        uefi in mutated(bytes("device-secure/binary_bios_measurements")),
        ima in mutated(text("device-secure-violations/ascii_runtime_measurements").into_bytes()[..4000].to_vec()),
    ) {
        // a changed event extends something else, so a changed log explains only where the change is in data that is not hashed
        Replayed::of(&uefi).explains(&device_pcrs("device-secure", 0xFF));
        let replay = replay_ima(ImaState::BOOT, &ima, &[0xAA; 32]);
        let explained = matches!(replay, ImaReplay::Explained { .. });
        prop_assert!(!explained);
    }
}
