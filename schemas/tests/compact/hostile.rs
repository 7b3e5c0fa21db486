//! Packed bytes are anyone's: they never panic and never become more than was asked for.

use crate::logs::{DIRECT, SECURE, UEFI_LOGS, VIOLATIONS, any_log, lines, reference};
use keylime_mqtt_schemas::compact::{CompactError, Reference, pack_ima, pack_uefi, unpack_ima, unpack_uefi};
use proptest::prelude::*;
use proptest::sample::Index;

const LIMIT: usize = 8 * 1024;

fn bounded(packed: &[u8], reference: Option<&Reference>) {
    if let Ok(lines) = unpack_ima(packed, LIMIT, reference) {
        assert!(lines.len() <= LIMIT && lines.capacity() <= LIMIT);
    }
    if let Ok(log) = unpack_uefi(packed, LIMIT, reference) {
        assert!(log.len() == LIMIT && log.capacity() <= LIMIT);
    }
}

fn changed(mut packed: Vec<u8>, changes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    for (place, byte) in changes {
        if !packed.is_empty() {
            let place = place.index(packed.len());
            packed[place] = *byte;
        }
    }
    if let Some(cut) = cut {
        packed.truncate(cut.index(packed.len() + 1));
    }
    packed
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec((any::<Index>(), any::<u8>()), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn any_bytes_are_refused_or_bounded(packed in prop::collection::vec(any::<u8>(), 0..200), form in 0..8u8) {
        bounded(&packed, None);
        bounded(&[&[form], packed.as_slice()].concat(), None);
    }

    #[test]
    fn changed_ima_columns_are_refused_or_bounded(
        log in any_log(),
        changes in changes(),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let known = reference(&[&log], &[]);
        bounded(&changed(pack_ima(&log, None), &changes, cut), None);
        let packed = changed(pack_ima(&log, Some(&known)), &changes, cut);
        bounded(&packed, Some(&known));
        bounded(&packed, Some(&reference(&[&lines(VIOLATIONS, 0..3)], &[])));
    }

    #[test]
    fn changed_columns_that_no_frame_hides_are_refused_or_bounded(
        runs in prop::collection::vec((0..500u64, any::<u64>()), 0..4),
        tail in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..80),
        small in any::<bool>(),
    ) {
        let mut stream = vec![u8::try_from(runs.len()).unwrap()];
        for (kind, count) in runs {
            stream.extend(number(kind));
            stream.extend(number(if small { count % 4 } else { count }));
        }
        stream.extend(tail);
        let known = reference(&[&lines(DIRECT, 0..5)], &[]);
        for form in [[2].as_slice(), &[&[6], &known.digest().as_bytes()[..2]].concat()] {
            bounded(&[form, &number(stream.len() as u64), &stream, &[7; 64]].concat(), Some(&known));
        }
    }

    #[test]
    fn changed_uefi_columns_are_refused_or_bounded(
        which in 0..3usize,
        changes in changes(),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let known = reference(&[], UEFI_LOGS[which]);
        bounded(&changed(pack_uefi(SECURE, None), &changes, cut), None);
        bounded(&changed(pack_uefi(SECURE, Some(&known)), &changes, cut), Some(&known));
    }

    /// Changes below the frame, where a checksum would otherwise hide what the columns do with them.
    #[test]
    fn uefi_columns_that_say_anything_are_refused_or_bounded(changes in changes(), header in any::<bool>()) {
        // the first event of a log as it is, then anything
        let mut stream = SECURE[..69].to_vec();
        stream.extend([1, 7, 4, 1, 11, 3, 0, 0, 0, 3, 0, 3, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let from = if header { 0 } else { 69 };
        for (place, byte) in &changes {
            let place = from + place.index(stream.len() - from);
            stream[place] = *byte;
        }
        let frame = frame(&stream);
        bounded(&[&[2], number(frame.len() as u64).as_slice(), &frame, &[7; 32]].concat(), None);
    }
}

/// LEB128, by hand.
fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

/// A zstd frame as packed bytes hold it: without its magic number.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(bytes, 1).unwrap();
    frame[4..].to_vec()
}

#[test]
fn a_frame_that_expands_past_its_bound_is_refused_before_it_does() {
    let bomb = frame(&vec![b'\n'; 100_000_000]);
    assert!(bomb.len() < 20_000);
    let size = number(bomb.len() as u64);
    for packed in [[&[1], bomb.as_slice()].concat(), [&[3], size.as_slice(), &bomb].concat()] {
        assert_eq!(unpack_ima(&packed, LIMIT, None), Err(CompactError::TooLarge(LIMIT)));
    }
    for packed in [[&[1], bomb.as_slice()].concat(), [&[2], size.as_slice(), &bomb].concat()] {
        assert_eq!(unpack_uefi(&packed, LIMIT, None), Err(CompactError::TooLarge(LIMIT)));
    }
}

#[test]
fn a_frame_that_lies_about_its_size_is_refused() {
    let mut lie = frame(&[b'\n'; 200]);
    // one byte of content size (RFC 8878, 3.1.1.1) after the descriptor
    assert_eq!(lie[..2], [0x20, 200]);
    lie[1] = 100;
    let refused = Err(CompactError::Malformed("not a zstd frame with its size"));
    assert_eq!(unpack_ima(&[&[1], lie.as_slice()].concat(), LIMIT, None), refused);
}

#[test]
fn a_few_bytes_that_say_endless_lines_are_refused() {
    let known = reference(&[DIRECT], &[]);
    let digest = known.digest();
    let tag = &digest.as_bytes()[..2];
    let endless = number(u64::MAX >> 1);
    // a run of lines the reference knows, each the one after the other
    let stream = [&[1, 3], endless.as_slice(), &[0; 100]].concat();
    let size = number(stream.len() as u64);
    let packed = [&[6], tag, &size, &stream].concat();
    assert_eq!(unpack_ima(&packed, LIMIT, Some(&known)), Err(CompactError::TooLarge(LIMIT)));
    // a run of empty lines that are not there
    let stream = [&[1, 0], endless.as_slice(), b"\n\n"].concat();
    let packed = [&[2], number(stream.len() as u64).as_slice(), &stream].concat();
    assert_eq!(unpack_ima(&packed, LIMIT, None), Err(CompactError::Malformed("a column ends early")));
}

#[test]
fn columns_of_unequal_length_are_refused() {
    let log = lines(DIRECT, 0..10);
    let packed = pack_ima(&log, None);
    assert!(unpack_ima(&packed, LIMIT, None).is_ok());
    let longer = [packed.as_slice(), b"x"].concat();
    assert_eq!(unpack_ima(&longer, LIMIT, None), Err(CompactError::Malformed("bytes are left over")));
    let shorter = &packed[..packed.len() - 1];
    assert_eq!(unpack_ima(shorter, LIMIT, None), Err(CompactError::Malformed("a column ends early")));
    let packed = pack_uefi(SECURE, None);
    let longer = [packed.as_slice(), b"x"].concat();
    let refused = Err(CompactError::Malformed("bytes are left over"));
    assert_eq!(unpack_uefi(&longer, SECURE.len(), None), refused);
}
