//! Parts come late, twice, out of order, mixed and forged; a device's reassembly stays within its bounds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says so by panicking"
)]

use std::time::Duration;

use ciborium::Value;
use keylime_mqtt_schemas::codec::{CodecError, MAX_MESSAGE};
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::fragment::{
    DEFAULT_PAYLOAD, FragmentError, LIFETIME, MAX_PAYLOAD, MIN_PAYLOAD, Reassembly, is_fragment, split,
};
use proptest::prelude::*;
use proptest::sample::Index;

const START: Time = Duration::from_secs(1);
const TICK: Time = Duration::from_secs(1);

/// An encoded message for the purposes of this test: a map's head, then bytes that differ from part to part.
fn message(size: usize) -> Vec<u8> {
    let counted = (0..u32::MAX).flat_map(u32::to_be_bytes);
    [0xa1].into_iter().chain(counted).take(size).collect()
}

/// A fragment as the grammar has it, built without our encoder.
fn fragment(message: u32, index: u16, count: u16, part: &[u8]) -> Vec<u8> {
    let items = vec![message.into(), index.into(), count.into(), Value::Bytes(part.to_vec())];
    let mut encoded = Vec::new();
    ciborium::into_writer(&Value::Array(items), &mut encoded).unwrap();
    encoded
}

#[test]
fn a_message_that_fits_travels_as_it_is() {
    let encoded = message(DEFAULT_PAYLOAD);
    assert_eq!(split(encoded.clone(), 1, DEFAULT_PAYLOAD), Ok(vec![encoded.clone()]));
    assert_eq!(Reassembly::default().accept(encoded.clone(), START), Ok(Some(encoded)));
}

#[test]
fn the_largest_message_travels_in_the_smallest_and_in_the_largest_payloads() {
    let encoded = message(MAX_MESSAGE);
    for payload in [0, MIN_PAYLOAD, DEFAULT_PAYLOAD, MAX_PAYLOAD, usize::MAX] {
        let payloads = split(encoded.clone(), u32::MAX, payload).unwrap();
        let allowed = payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
        assert!(payloads.iter().all(|one| one.len() <= allowed && is_fragment(one)), "{payload}");
        // of what is allowed, nearly all is used
        assert!(
            payloads.len() <= MAX_MESSAGE.div_ceil(allowed - 20),
            "{} payloads of {payload}",
            payloads.len()
        );
        let (last, others) = payloads.split_last().unwrap();
        let mut reassembly = Reassembly::default();
        for one in others {
            assert_eq!(reassembly.accept(one.clone(), START), Ok(None));
        }
        assert_eq!(reassembly.accept(last.clone(), START), Ok(Some(encoded.clone())));
        assert_eq!(reassembly.held(), 0);
    }
}

#[test]
fn what_is_not_whole_in_time_is_forgotten() {
    let payloads = split(message(40_000), 1, DEFAULT_PAYLOAD).unwrap();
    let mut reassembly = Reassembly::default();
    for one in &payloads[1..] {
        assert_eq!(reassembly.accept(one.clone(), START), Ok(None));
    }
    assert!(reassembly.held() > 0);
    assert!(!reassembly.expire(START + LIFETIME), "in time");
    assert!(reassembly.expire(START + LIFETIME + TICK), "too late");
    assert_eq!(reassembly.held(), 0);
    assert!(!reassembly.expire(START + LIFETIME + TICK), "nothing is left to expire");
    assert_eq!(
        reassembly.accept(payloads[0].clone(), START + LIFETIME + TICK),
        Ok(None),
        "the others are gone"
    );
}

#[test]
fn a_part_that_comes_too_late_expires_the_others_by_itself() {
    let payloads = split(message(40_000), 1, DEFAULT_PAYLOAD).unwrap();
    let mut reassembly = Reassembly::default();
    for one in &payloads[1..] {
        assert_eq!(reassembly.accept(one.clone(), START), Ok(None));
    }
    let late = START + LIFETIME + TICK;
    assert_eq!(reassembly.accept(payloads[0].clone(), late), Ok(None));
    assert!(reassembly.held() < DEFAULT_PAYLOAD, "only the late part is held");
}

#[test]
fn parts_that_trickle_in_do_not_prolong_the_life_of_a_message() {
    let mut reassembly = Reassembly::default();
    for (index, at) in (0..10_u16).zip([0, 100, 200, 300, 400, 500, 600, 601, 602, 603]) {
        let now = START + Duration::from_secs(at);
        assert_eq!(reassembly.accept(fragment(1, index, 2000, &[0; 100]), now), Ok(None));
    }
    // the first seven had ten minutes; the eighth began anew
    assert_eq!(reassembly.held(), 300);
}

#[test]
fn a_newer_message_takes_the_place_of_an_unfinished_one() {
    let (old, new) = (message(40_000), message(30_000));
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.accept(split(old, 1, DEFAULT_PAYLOAD).unwrap()[0].clone(), START), Ok(None));
    let payloads = split(new.clone(), 2, DEFAULT_PAYLOAD).unwrap();
    let (last, others) = payloads.split_last().unwrap();
    for one in others {
        assert_eq!(reassembly.accept(one.clone(), START), Ok(None));
    }
    assert_eq!(reassembly.accept(last.clone(), START), Ok(Some(new)));
}

#[test]
fn a_whole_message_between_the_parts_of_another_disturbs_nothing() {
    let encoded = message(20_000);
    let payloads = split(encoded.clone(), 1, DEFAULT_PAYLOAD).unwrap();
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.accept(payloads[0].clone(), START), Ok(None));
    assert_eq!(reassembly.accept(message(100), START), Ok(Some(message(100))));
    assert_eq!(reassembly.accept(payloads[1].clone(), START), Ok(Some(encoded)));
}

#[test]
fn impossible_fragments_are_refused_and_what_was_gathered_stays() {
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.accept(fragment(1, 0, 3, &[1; 50]), START), Ok(None));
    let refused = [
        (fragment(1, 3, 3, &[1; 50]), FragmentError::Count, "an index that is the count"),
        (fragment(2, 0, 0, &[1; 50]), FragmentError::Count, "no parts at all"),
        (fragment(2, 0, 2201, &[1; 50]), FragmentError::Count, "more parts than any message has"),
        (fragment(2, 0, u16::MAX, &[1; 50]), FragmentError::Count, "as many as the number can say"),
        (fragment(2, 1, 3, &[]), FragmentError::Count, "an empty part"),
        (fragment(1, 1, 4, &[1; 50]), FragmentError::Unequal, "another count"),
        (fragment(1, 1, 3, &[1; 49]), FragmentError::Unequal, "a shorter part in the middle"),
        (fragment(1, 1, 3, &[1; 51]), FragmentError::Unequal, "a longer part in the middle"),
        (fragment(1, 2, 3, &[1; 51]), FragmentError::Unequal, "a last part longer than the others"),
        (vec![0x80], FragmentError::Codec(CodecError::Shape), "an empty array"),
        (vec![0x84, 1, 0, 2], FragmentError::Codec(CodecError::Truncated), "no part"),
        (vec![0x83, 1, 0, 2], FragmentError::Codec(CodecError::Shape), "an array of three"),
        (
            vec![0x84, 1, 0, 2, 0x81, 0],
            FragmentError::Codec(CodecError::NotDeterministic),
            "an array as the part",
        ),
        (
            vec![0x84, 1, 0, 2, 0x61, b'a'],
            FragmentError::Codec(CodecError::NotDeterministic),
            "text as the part",
        ),
        (vec![0x9f, 1, 0, 2, 0x41, 0, 0xff], FragmentError::Codec(CodecError::Form), "an indefinite array"),
        (vec![0x84; MAX_PAYLOAD + 1], FragmentError::TooLarge(MAX_PAYLOAD + 1), "larger than a payload"),
    ];
    for (payload, error, what) in refused {
        assert_eq!(reassembly.accept(payload, START), Err(error), "{what}");
        assert_eq!(reassembly.held(), 50, "{what}");
    }
    assert_eq!(reassembly.accept(fragment(1, 1, 3, &[2; 50]), START), Ok(None));
    let whole = [vec![1; 50], vec![2; 50], vec![3; 10]].concat();
    assert_eq!(reassembly.accept(fragment(1, 2, 3, &[3; 10]), START), Ok(Some(whole)));
}

#[test]
fn a_last_part_longer_than_the_others_is_refused_in_whatever_order_they_come() {
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.accept(fragment(1, 2, 3, &[3; 51]), START), Ok(None));
    assert_eq!(reassembly.accept(fragment(1, 0, 3, &[1; 50]), START), Err(FragmentError::Unequal));
    assert_eq!(reassembly.held(), 51);
}

#[test]
fn parts_that_add_up_to_more_than_a_message_are_refused() {
    let part = vec![7; 100_000];
    let mut reassembly = Reassembly::default();
    for index in 0..10 {
        assert_eq!(reassembly.accept(fragment(1, index, 2200, &part), START), Ok(None));
    }
    assert_eq!(reassembly.accept(fragment(1, 10, 2200, &part), START), Err(FragmentError::MessageTooLarge));
    assert_eq!(reassembly.held(), 1_000_000);
}

#[test]
fn a_part_that_comes_again_with_another_content_changes_nothing() {
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.accept(fragment(1, 0, 2, &[1; 50]), START), Ok(None));
    assert_eq!(reassembly.accept(fragment(1, 0, 2, &[9; 50]), START), Ok(None));
    assert_eq!(reassembly.held(), 50);
    let whole = [[1; 50], [2; 50]].concat();
    assert_eq!(reassembly.accept(fragment(1, 1, 2, &[2; 50]), START), Ok(Some(whole)));
}

/// What a hostile device may send.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let sizes =
        prop_oneof![Just(1), Just(100), Just(10_000), Just(60_000), Just(MAX_PAYLOAD - 20), 0..MAX_PAYLOAD];
    let counts = prop_oneof![Just(0), Just(1), Just(2), Just(100), Just(2200), Just(2201), any::<u16>()];
    let indices = prop_oneof![0..20_u16, any::<u16>()];
    let part = (0..3_u32, indices, counts, sizes, any::<u8>())
        .prop_map(|(message, index, count, size, byte)| fragment(message, index, count, &vec![byte; size]));
    prop_oneof![
        8 => part,
        1 => proptest::collection::vec(any::<u8>(), 0..50),
        1 => proptest::collection::vec(any::<u8>(), 0..50).prop_map(|bytes| [vec![0x84], bytes].concat()),
    ]
}

proptest! {
    #[test]
    fn parts_in_any_order_with_any_repeated_give_the_message(
        size in MIN_PAYLOAD + 1..100_000_usize,
        number in any::<u32>(),
        payload in MIN_PAYLOAD..20_000_usize,
        order in proptest::collection::vec(any::<Index>(), 0..400),
    ) {
        let encoded = message(size.max(payload + 1));
        let payloads = split(encoded.clone(), number, payload).unwrap();
        prop_assert!(payloads.len() > 1);
        prop_assert!(payloads.iter().all(|one| one.len() <= payload));
        let mut reassembly = Reassembly::default();
        let mut missing: std::collections::BTreeSet<usize> = (0..payloads.len()).collect();
        // at random, with repetitions, then what is left from the end
        let arrivals: Vec<usize> =
            order.iter().map(|index| index.index(payloads.len())).chain((0..payloads.len()).rev()).collect();
        for arrived in arrivals {
            missing.remove(&arrived);
            let outcome = reassembly.accept(payloads[arrived].clone(), START);
            if missing.is_empty() {
                prop_assert_eq!(outcome, Ok(Some(encoded)));
                prop_assert_eq!(reassembly.held(), 0);
                return Ok(());
            }
            prop_assert_eq!(outcome, Ok(None));
        }
        prop_assert!(false, "never whole");
    }

    #[test]
    fn without_one_part_a_message_is_never_whole_and_in_the_end_gone(
        size in MIN_PAYLOAD + 1..30_000_usize,
        lost in any::<Index>(),
        rounds in 1..4,
    ) {
        let payloads = split(message(size), 5, MIN_PAYLOAD).unwrap();
        let lost = lost.index(payloads.len());
        let mut reassembly = Reassembly::default();
        for _ in 0..rounds {
            for (_, one) in payloads.iter().enumerate().filter(|(index, _)| *index != lost) {
                prop_assert_eq!(reassembly.accept(one.clone(), START), Ok(None));
            }
        }
        prop_assert!(reassembly.held() > 0 && reassembly.held() < size);
        prop_assert!(reassembly.expire(START + LIFETIME + TICK));
        prop_assert_eq!(reassembly.held(), 0);
    }

    #[test]
    fn whatever_arrives_a_device_holds_no_more_than_one_message(
        arrivals in proptest::collection::vec((any_payload(), 0..400_u64), 0..60),
    ) {
        let mut reassembly = Reassembly::default();
        let mut now = START;
        let mut sent = 0;
        for (payload, later) in arrivals {
            now += Duration::from_secs(later);
            sent += payload.len();
            let before = reassembly.held();
            let was_fragment = is_fragment(&payload);
            match reassembly.accept(payload, now) {
                Ok(Some(whole)) => {
                    prop_assert!(whole.len() <= MAX_MESSAGE);
                    prop_assert!(!was_fragment || reassembly.held() == 0);
                }
                Ok(None) => {}
                Err(_) => prop_assert!(reassembly.held() == before || reassembly.held() == 0, "only time takes away"),
            }
            prop_assert!(reassembly.held() <= MAX_MESSAGE.min(sent));
        }
        reassembly.expire(now + LIFETIME + TICK);
        prop_assert_eq!(reassembly.held(), 0);
    }
}
