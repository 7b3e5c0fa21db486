//! Every byte from the network is hostile: whatever arrives is refused or understood in exactly one way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says so by panicking"
)]

mod samples;

use std::time::Duration;

use keylime_mqtt_schemas::codec::{CodecError, MAX_DEPTH, MAX_ITEMS, MAX_MESSAGE, decode, encode};
use keylime_mqtt_schemas::fragment::{DEFAULT_PAYLOAD, FragmentError, MAX_PAYLOAD, MIN_PAYLOAD, Reassembly};
use keylime_mqtt_schemas::messages::limits::MAX_FIRST_CONTACT;
use keylime_mqtt_schemas::messages::{Down, Enrol, Presence, Up};
use keylime_mqtt_schemas::wire::{WireError, pack_down, pack_up, unpack_down, unpack_up};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::samples::{FILLS, Fill, any_down, any_up, bytes, downs, ups};

const START: Duration = Duration::from_secs(1);

/// All payloads of one message, given to a bridge that knows nothing yet.
fn delivered(payloads: Vec<Vec<u8>>) -> Result<Option<Up>, WireError> {
    let mut reassembly = Reassembly::default();
    let mut last = Ok(None);
    for payload in payloads {
        assert_eq!(last, Ok(None), "understood before it was whole");
        last = unpack_up(payload, &mut reassembly, START);
    }
    last
}

fn is_first_contact(up: &Up) -> bool {
    matches!(up, Up::Enrol(_) | Up::Ready(_))
}

#[test]
fn a_skipped_optional_field_leaves_the_keys_of_later_fields_alone() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sparse {
        first: u8,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        second: Option<u8>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        third: Option<u8>,
    }
    let sparse = Sparse { first: 5, second: None, third: Some(7) };
    let encoded = encode(&sparse).unwrap();
    assert_eq!(hex::encode(&encoded), "a200050207", "{{0: 5, 2: 7}}");
    assert_eq!(decode::<Sparse>(&encoded), Ok(sparse));
    assert_eq!(decode::<Sparse>(&[0xa2, 0x00, 0x05, 0x03, 0x07]), Err(CodecError::Shape), "key 3 is unknown");
}

#[test]
fn no_message_carries_a_word_as_its_kind_or_key() {
    // a text string's head is 0x60 to 0x7f; among the samples only names of bridges are text, and these have none
    for up in ups(Fill::Minimal) {
        let value: ciborium::Value = ciborium::from_reader(&*encode(&up).unwrap()).unwrap();
        assert_without_text(&value);
    }
    for down in downs(Fill::Minimal) {
        let value: ciborium::Value = ciborium::from_reader(&*encode(&down).unwrap()).unwrap();
        assert_without_text(&value);
    }
}

fn assert_without_text(value: &ciborium::Value) {
    match value {
        ciborium::Value::Text(text) => panic!("{text:?} travels as text"),
        ciborium::Value::Map(entries) => entries.iter().for_each(|(key, inner)| {
            assert!(key.is_integer(), "{key:?} is a key");
            assert_without_text(inner);
        }),
        ciborium::Value::Array(items) => items.iter().for_each(assert_without_text),
        _ => {}
    }
}

#[test]
fn the_largest_message_of_every_kind_arrives_or_is_refused_before_it_is_sent() {
    for up in ups(Fill::Maximal) {
        // one payload, of whatever size payloads may have
        if let Up::Hello(_) = up {
            let size = encode(&up).unwrap().len();
            assert_eq!(pack_up(&up, 7, MAX_PAYLOAD), Err(CodecError::TooLarge(size)));
            continue;
        }
        let payloads = pack_up(&up, 7, DEFAULT_PAYLOAD).unwrap();
        assert!(payloads.iter().all(|payload| payload.len() <= DEFAULT_PAYLOAD), "{}", up.kind());
        assert_eq!(delivered(payloads), Ok(Some(up)));
    }
    for down in downs(Fill::Maximal) {
        assert_eq!(unpack_down(&pack_down(&down).unwrap()), Ok(down));
    }
}

#[test]
fn a_first_contact_that_no_bridge_would_take_is_not_sent() {
    for up in ups(Fill::Maximal).into_iter().filter(is_first_contact) {
        let size = encode(&up).unwrap().len();
        assert!(size <= MAX_FIRST_CONTACT, "the largest {} has {size} bytes", up.kind());
        assert_eq!(
            pack_up(&up, 7, MIN_PAYLOAD),
            Err(CodecError::TooLarge(size)),
            "{} in fragments",
            up.kind()
        );
        assert_eq!(pack_up(&up, 7, size), Ok(vec![encode(&up).unwrap()]));
    }
}

#[test]
fn a_first_contact_in_fragments_is_refused_however_small_it_is() {
    let smallest = Up::Enrol(Enrol { ek_public: bytes(0, 0), ak_public: bytes(0, 0), ek_certificate: None });
    for up in ups(Fill::Full).into_iter().filter(is_first_contact).chain([smallest]) {
        let encoded = encode(&up).unwrap();
        for count in [1, 2, 3] {
            let size = encoded.len().div_ceil(count);
            let parts: Vec<_> = encoded.chunks(size).collect();
            let payloads =
                parts.iter().enumerate().map(|(index, part)| fragment(index, parts.len(), part)).collect();
            assert_eq!(delivered(payloads), Err(WireError::FirstContact), "{} in {count}", up.kind());
        }
    }
}

/// A fragment as the grammar has it, built without our encoder.
fn fragment(index: usize, count: usize, part: &[u8]) -> Vec<u8> {
    let number = |number: usize| ciborium::Value::from(u64::try_from(number).unwrap());
    let value = vec![number(7), number(index), number(count), ciborium::Value::Bytes(part.to_vec())];
    let mut encoded = Vec::new();
    ciborium::into_writer(&ciborium::Value::Array(value), &mut encoded).unwrap();
    encoded
}

#[test]
fn a_question_above_8_kib_is_refused_unread() {
    let mut payload = pack_down(&downs(Fill::Full)[0]).unwrap();
    payload.resize(MAX_FIRST_CONTACT + 1, 0);
    assert_eq!(unpack_down(&payload), Err(CodecError::TooLarge(MAX_FIRST_CONTACT + 1)));
    payload.truncate(MAX_FIRST_CONTACT);
    assert_eq!(unpack_down(&payload), Err(CodecError::Trailing));
}

#[test]
fn a_payload_above_120_kib_is_refused_unread() {
    let mut payload = encode(&ups(Fill::Full)[0]).unwrap();
    payload.resize(MAX_PAYLOAD + 1, 0);
    let refused = unpack_up(payload, &mut Reassembly::default(), START);
    assert_eq!(refused, Err(WireError::Fragment(FragmentError::TooLarge(MAX_PAYLOAD + 1))));
}

#[test]
fn every_truncation_and_every_byte_behind_a_message_is_refused() {
    for fill in [Fill::Minimal, Fill::Full] {
        for encoded in ups(fill).iter().map(|up| encode(up).unwrap()) {
            for end in 0..encoded.len() {
                assert_eq!(decode::<Up>(&encoded[..end]), Err(CodecError::Truncated));
            }
            assert_eq!(decode::<Up>(&[&encoded[..], &[0]].concat()), Err(CodecError::Trailing));
        }
        for encoded in downs(fill).iter().map(|down| encode(down).unwrap()) {
            for end in 0..encoded.len() {
                assert_eq!(decode::<Down>(&encoded[..end]), Err(CodecError::Truncated));
            }
            assert_eq!(decode::<Down>(&[&encoded[..], &[0]].concat()), Err(CodecError::Trailing));
        }
    }
}

/// The work of the walk is bounded by items and depth, not by what a length or a count claims.
#[test]
fn claimed_counts_and_lengths_cost_nothing() {
    // arrays and maps in arrays and maps, each claiming 2^64 - 1 entries
    for head in [0x9b, 0xbb] {
        let bomb = [&[head][..], &[0xff; 8]].concat().repeat(1000);
        let claimed = if head == 0xbb { CodecError::TooManyItems } else { CodecError::TooDeep };
        assert_eq!(decode::<Up>(&bomb), Err(claimed));
    }
    // a string that claims 2^63 bytes; a count of 2^32 with nothing behind it
    assert_eq!(decode::<Up>(&[0x5b, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(CodecError::Truncated));
    assert_eq!(decode::<Up>(&[0x9a, 0xff, 0xff, 0xff, 0xff]), Err(CodecError::Truncated));
    // a megabyte of items is given up at the first few
    let mut wide = vec![0; MAX_MESSAGE];
    wide[..5].copy_from_slice(&[0x9a, 0x00, 0x0f, 0xff, 0xfb]);
    assert_eq!(decode::<Up>(&wide), Err(CodecError::TooManyItems));
}

#[test]
fn no_message_comes_near_the_limits_on_depth_and_items() {
    let (mut deepest, mut most) = (0, 0);
    let encodings = FILLS.into_iter().flat_map(|fill| {
        let ups = ups(fill).into_iter().map(|up| encode(&up).unwrap());
        ups.chain(downs(fill).into_iter().map(|down| encode(&down).unwrap())).collect::<Vec<_>>()
    });
    for encoded in encodings {
        let (depth, items) = measured(&ciborium::from_reader(&*encoded).unwrap());
        deepest = deepest.max(depth);
        most = most.max(items);
    }
    assert_eq!(deepest, 4, "a limit of {MAX_DEPTH} leaves room for what is appended");
    assert!(most * 4 < MAX_ITEMS, "{most} items of {MAX_ITEMS}");
}

/// Depth below the outermost value, and items in all.
fn measured(value: &ciborium::Value) -> (usize, usize) {
    let below: Vec<_> = match value {
        ciborium::Value::Map(entries) => {
            entries.iter().flat_map(|(k, v)| [measured(k), measured(v)]).collect()
        }
        ciborium::Value::Array(items) => items.iter().map(measured).collect(),
        _ => return (0, 1),
    };
    let depth = below.iter().map(|(depth, _)| depth + 1).max().unwrap_or(0);
    (depth, 1 + below.iter().map(|(_, items)| items).sum::<usize>())
}

/// Bytes that look like CBOR more often than chance would have it: heads of every sort, and what messages are made of.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let heads = prop_oneof![
        Just(vec![0xa1]),
        Just(vec![0xa2]),
        (0_u8..=9).prop_map(|key| vec![key]),
        Just(vec![0x44, 1, 2, 3, 4]),
        Just([&[0x50][..], &[9; 16]].concat()),
        Just(vec![0x40]),
        Just(vec![0x82]),
        Just(vec![0x84]),
        Just(vec![0xf4]),
        Just(vec![0xf5]),
        Just(vec![0x61, b'a']),
        (0x18_u8..=0x1b, any::<[u8; 8]>()).prop_map(|(head, argument)| {
            let width = 1 << (head - 0x18);
            [&[head][..], &argument[..width]].concat()
        }),
        any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        proptest::collection::vec(heads, 0..30).prop_map(|parts| parts.concat()),
    ]
}

/// A message with a few bytes overwritten, inserted or removed.
fn bent(encoded: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..4);
    (encoded, edits).prop_map(|(mut encoded, edits)| {
        for (at, byte, edit) in edits {
            // heads are in front; the inside of a long string says little
            let at = at.index(encoded.len().clamp(1, 120));
            match edit {
                0 if at < encoded.len() => encoded[at] = byte,
                1 if at < encoded.len() => drop(encoded.remove(at)),
                _ => encoded.insert(at.min(encoded.len()), byte),
            }
        }
        encoded
    })
}

/// Accepted bytes are the one encoding of what they mean.
fn means_one_thing(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(up) = decode::<Up>(bytes) {
        prop_assert_eq!(encode(&up).unwrap(), bytes);
    }
    if let Ok(down) = decode::<Down>(bytes) {
        prop_assert_eq!(encode(&down).unwrap(), bytes);
    }
    if let Ok(presence) = decode::<Presence>(bytes) {
        prop_assert_eq!(encode(&presence).unwrap(), bytes);
    }
    if let Ok(down) = unpack_down(bytes) {
        prop_assert_eq!(pack_down(&down).unwrap(), bytes);
    }
    if let Ok(Some(up)) = unpack_up(bytes.to_vec(), &mut Reassembly::default(), START) {
        // a message in a single fragment is the one other way to say it
        if bytes[0] != 0x84 {
            prop_assert_eq!(pack_up(&up, 0, MAX_PAYLOAD).unwrap(), vec![bytes.to_vec()]);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_a_device_says_is_what_the_bridge_hears(
        up in any_up(),
        message in any::<u32>(),
        payload in MIN_PAYLOAD..=MAX_PAYLOAD,
    ) {
        let encoded = encode(&up).unwrap();
        prop_assert_eq!(decode::<Up>(&encoded), Ok(up.clone()));
        match pack_up(&up, message, payload) {
            Ok(payloads) => {
                prop_assert!(payloads.iter().all(|one| one.len() <= payload));
                prop_assert_eq!(delivered(payloads), Ok(Some(up)));
            }
            Err(error) => {
                prop_assert!(is_first_contact(&up) || matches!(up, Up::Hello(_)));
                prop_assert!(encoded.len() > payload.min(MAX_FIRST_CONTACT));
                prop_assert_eq!(error, CodecError::TooLarge(encoded.len()));
            }
        }
    }

    #[test]
    fn what_a_bridge_says_is_what_the_device_hears(down in any_down()) {
        prop_assert_eq!(unpack_down(&pack_down(&down).unwrap()), Ok(down));
    }

    #[test]
    fn hostile_bytes_never_panic_and_mean_one_thing_if_anything(bytes in hostile_bytes()) {
        means_one_thing(&bytes)?;
    }

    #[test]
    fn bent_messages_never_panic_and_mean_one_thing_if_anything(
        bytes in bent(prop_oneof![
            any_up().prop_map(|up| encode(&up).unwrap()),
            any_down().prop_map(|down| encode(&down).unwrap()),
        ]),
    ) {
        means_one_thing(&bytes)?;
    }
}
