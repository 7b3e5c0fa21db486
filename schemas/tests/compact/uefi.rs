//! Every UEFI log comes back as it was.

use crate::logs::{NO_LOADER, SECURE, TWO_BANKS, UEFI_LOGS, reference};
use keylime_mqtt_schemas::compact::{
    CompactError, Reference, UefiShape, pack_uefi, shape_of_uefi, unpack_uefi,
};
use proptest::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

fn restored(log: &[u8], reference: Option<&Reference>) -> usize {
    let packed = pack_uefi(log, reference);
    assert!(packed.len() <= log.len() + 1, "{} bytes became {}", log.len(), packed.len());
    assert_eq!(unpack_uefi(&packed, log.len(), reference).as_deref(), Ok(log));
    let other_size = unpack_uefi(&packed, log.len() + 1, reference);
    assert_eq!(other_size, Err(CompactError::Malformed("a log of another size")));
    if let Some(less) = log.len().checked_sub(1) {
        assert!(unpack_uefi(&packed, less, reference).is_err());
    }
    packed.len()
}

#[test]
fn how_far_a_log_can_be_read_is_told() {
    for log in UEFI_LOGS {
        let whole = shape_of_uefi(log).unwrap();
        assert!(whole.events > 10 && whole.left == 0, "{whole:?}");
        let cut = shape_of_uefi(&log[..log.len() - 1]).unwrap();
        assert!(cut.left > 0, "{cut:?}");
        assert_eq!(cut.events, whole.events - 1);
    }
    assert_eq!(shape_of_uefi(b"not a log"), None::<UefiShape>);
}

#[test]
fn recorded_logs_come_back_with_and_without_a_reference() {
    for log in UEFI_LOGS {
        restored(log, None);
        for golden in UEFI_LOGS {
            restored(log, Some(&reference(&[], golden)));
        }
        restored(log, Some(&reference(&[], b"not a log")));
        restored(log, Some(&reference(&[], &[])));
    }
}

#[test]
fn a_log_that_is_cut_or_goes_on_with_something_else_comes_back() {
    for log in UEFI_LOGS {
        for size in (0..log.len()).step_by(211) {
            restored(&log[..size], None);
        }
        restored(&[log, b"\xff\xff\xff\xff trailing"].concat(), None);
        restored(&[log, &[0; 500]].concat(), None);
        restored(&[log, log].concat(), None);
    }
}

#[test]
fn a_log_too_large_for_the_highest_level_comes_back_and_uses_its_reference() {
    let rest: Vec<u8> = (0..10_000u32).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect();
    let log = [SECURE, rest.as_slice()].concat();
    restored(&log, None);
    let own = restored(&log, Some(&reference(&[], &log)));
    assert!(own < log.len() / 2, "{own} of {} bytes", log.len());
}

#[test]
fn what_is_no_log_comes_back() {
    for bytes in [b"".as_slice(), b"\0", b"no log", &[0; 10_000], SECURE.get(1..).unwrap()] {
        restored(bytes, None);
    }
}

const BANKS: [(u16, usize); 5] = [(0x0004, 20), (0x000B, 32), (0x000C, 48), (0x000D, 64), (0x0012, 32)];

fn hash(algorithm: u16, data: &[u8]) -> Vec<u8> {
    match algorithm {
        0x0004 => Sha1::digest(data).to_vec(),
        0x000B => Sha256::digest(data).to_vec(),
        0x000C => Sha384::digest(data).to_vec(),
        0x000D => Sha512::digest(data).to_vec(),
        // SM3 is not computed here
        _ => vec![0x5A; 32],
    }
}

/// What an event measures: its data, a part of them, or something else.
fn measured(what: u8, data: &[u8]) -> Vec<u8> {
    match what {
        0 => data.to_vec(),
        1 => data.strip_suffix(b"\0").unwrap_or(data).to_vec(),
        2 => data.strip_suffix(b"\0\0").unwrap_or(data).to_vec(),
        3 => data
            .strip_prefix(b"grub_cmd: ")
            .and_then(|text| text.strip_suffix(b"\0"))
            .unwrap_or(data)
            .to_vec(),
        4 => Vec::new(),
        5 => data.get(34..).unwrap_or_default().to_vec(),
        _ => vec![what],
    }
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    let variable = [&[1; 16], 1u64.to_le_bytes().as_slice(), &4u64.to_le_bytes(), b"B\0", b"data"].concat();
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "grub_cmd: [a-z :]{0,20}".prop_map(|text| [text.as_bytes(), b"\0"].concat()),
        Just(variable),
        Just(vec![0; 4]),
        Just(vec![0; 2]),
    ]
}

fn any_event() -> impl Strategy<Value = (u32, u32, u8, Vec<u8>)> {
    (0..24u32, prop_oneof![0..15u32, 0x8000_0001..0x8000_0010u32], 0..10u8, any_data())
}

prop_compose! {
    /// A log of some banks, and what its events measure.
    fn any_log()(
        banks in prop::sample::subsequence(BANKS.to_vec(), 1..=5),
        events in prop::collection::vec(any_event(), 0..30),
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
        spec.extend_from_slice(&u32::try_from(banks.len()).unwrap().to_le_bytes());
        for (algorithm, size) in &banks {
            spec.extend_from_slice(&algorithm.to_le_bytes());
            spec.extend_from_slice(&u16::try_from(*size).unwrap().to_le_bytes());
        }
        spec.push(0);
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let mut log = [&[0; 4], 3u32.to_le_bytes().as_slice(), &[0; 20], &size(&spec), &spec].concat();
        for (pcr, kind, what, data) in events {
            log.extend_from_slice(&pcr.to_le_bytes());
            log.extend_from_slice(&kind.to_le_bytes());
            log.extend_from_slice(&u32::try_from(banks.len()).unwrap().to_le_bytes());
            for (algorithm, _) in &banks {
                log.extend_from_slice(&algorithm.to_le_bytes());
                log.extend_from_slice(&hash(*algorithm, &measured(what, &data)));
            }
            log.extend_from_slice(&size(&data));
            log.extend_from_slice(&data);
        }
        [log, tail].concat()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_log_comes_back_as_it_was(log in any_log(), golden in any_log()) {
        restored(&log, None);
        restored(&log, Some(&reference(&[], &golden)));
        restored(&log, Some(&reference(&[], SECURE)));
    }

    #[test]
    fn a_changed_log_comes_back_changed(
        which in 0..3usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut log = UEFI_LOGS[which].to_vec();
        for (place, byte) in changes {
            let place = place.index(log.len());
            log[place] = byte;
        }
        restored(&log, None);
        restored(&log, Some(&reference(&[], UEFI_LOGS[which])));
    }
}

#[test]
fn digests_that_follow_from_their_event_take_no_bytes() {
    for log in [NO_LOADER, TWO_BANKS] {
        let packed = pack_uefi(log, None);
        // a digest of the log that is a hash of its event's data: that of the first separator
        let separator = Sha256::digest([0; 4]);
        assert!(log.windows(32).any(|window| window == separator.as_slice()));
        assert!(!packed.windows(32).any(|window| window == separator.as_slice()));
    }
}
