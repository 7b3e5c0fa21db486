//! Types and grammar held against each other by a CDDL validator that knows nothing of our code (cddl-cat).
//!
//! Two directions. Whatever the types encode, the grammar accepts. And whatever is changed about a message, the codec
//! accepts the changed bytes exactly when the grammar does: the changes keep the encoding deterministic, so the
//! codec's other rules do not come in between.
//!
//! What cddl-cat lacks: it searches a `.regexp` in the text where RFC 8610 §3.8.3 wants the whole text to match, so
//! the test anchors the expressions as it loads the grammar. What CDDL cannot say is prose there and in `vectors`:
//! the order of keys, the size of a whole message, an index below its count, and that PCR values are as many as their
//! mask says: a change that breaks only this is held against the codec alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says so by panicking"
)]

mod samples;

use std::time::Duration;

use cddl_cat::context::BasicContext;
use cddl_cat::flatten::flatten_from_str;
use ciborium::Value;
use keylime_mqtt_schemas::codec::{CodecError, decode, encode};
use keylime_mqtt_schemas::fragment::{MAX_PAYLOAD, MIN_PAYLOAD, Reassembly, split};
use keylime_mqtt_schemas::messages::{AttestationResult, BridgeStatus, Down, Presence, Up, Verdict};
use keylime_mqtt_schemas::wire::unpack_up;
use proptest::prelude::*;

use crate::samples::{FILLS, Fill, any_down, any_up, downs, ups};

struct Grammar(BasicContext);

impl Grammar {
    fn load() -> Self {
        let text = include_str!("../keylime-mqtt.cddl");
        let anchored: String = text
            .split_inclusive('\n')
            .map(|line| match line.split_once(".regexp \"") {
                None => line.to_owned(),
                Some((before, after)) => {
                    let (expression, rest) = after.split_once('"').expect("a closing quote");
                    format!("{before}.regexp \"^({expression})$\"{rest}")
                }
            })
            .collect();
        Self(BasicContext::new(flatten_from_str(&anchored).expect("the grammar parses")))
    }

    /// Why the rule refuses the bytes, if it does.
    fn refuses(&self, rule: &str, bytes: &[u8]) -> Option<String> {
        let value: Value = ciborium::from_reader(bytes).expect("well-formed CBOR");
        let rule = self.0.rules.get(rule).expect("a rule of the grammar");
        cddl_cat::validate_cbor(rule, &value, &self.0).err().map(|error| error.to_string())
    }

    fn refuses_json(&self, rule: &str, document: &serde_json::Value) -> Option<String> {
        let rule = self.0.rules.get(rule).expect("a rule of the grammar");
        cddl_cat::validate_json(rule, document, &self.0).err().map(|error| error.to_string())
    }
}

/// Every message with the payload rule it falls under, encoded.
fn encoded_samples(fill: Fill) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let ups = ups(fill).into_iter().map(|up| ("evidence-payload", up.kind(), encode(&up).unwrap()));
    let downs = downs(fill)
        .into_iter()
        .map(|down| ("challenge-payload", down.question.kind(), encode(&down).unwrap()));
    let presence = Presence { online: fill != Fill::Minimal };
    ups.chain(downs).chain([("presence-payload", "Presence", encode(&presence).unwrap())]).collect()
}

/// Why the codec refuses the bytes, if it does.
fn codec_refuses(rule: &str, bytes: &[u8]) -> Option<CodecError> {
    match rule {
        "evidence-payload" => decode::<Up>(bytes).err(),
        "challenge-payload" => decode::<Down>(bytes).err(),
        "presence-payload" => decode::<Presence>(bytes).err(),
        other => unreachable!("{other} is not decoded alone"),
    }
}

/// What was done to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// A key is gone, or an item of an array.
    Missing,
    /// A key more, or an item.
    Extra,
    /// Another value, of this or another type.
    Replaced,
    /// A string longer by one.
    Grown,
}

/// Every single change at every place of a value. Keys stay in ascending order.
fn changes(value: &Value) -> Vec<(Change, Value)> {
    let mut changed: Vec<(Change, Value)> = replacements()
        .into_iter()
        .filter(|other| other != value)
        .map(|other| (Change::Replaced, other))
        .collect();
    match value {
        Value::Bytes(bytes) => {
            changed.push((Change::Grown, Value::Bytes([&bytes[..], &[0]].concat())));
            changed
                .extend(bytes.split_last().map(|(_, rest)| (Change::Replaced, Value::Bytes(rest.to_vec()))));
        }
        Value::Text(text) => changed.push((Change::Grown, Value::Text(format!("{text}a")))),
        Value::Map(entries) => {
            for at in 0..entries.len() {
                let (key, inner) = entries[at].clone();
                let mut fewer = entries.clone();
                fewer.remove(at);
                changed.push((Change::Missing, Value::Map(fewer.clone())));
                fewer.push((Value::from(99), inner.clone()));
                changed.push((Change::Replaced, Value::Map(fewer)));
                changed.extend(changes(&inner).into_iter().map(|(change, inner)| {
                    let mut other = entries.clone();
                    other[at] = (key.clone(), inner);
                    (change, Value::Map(other))
                }));
            }
            // RFC 8949 §4.2.1: unsigned keys sort before negative ones, those before strings
            let next = entries
                .iter()
                .filter_map(|(key, _)| key.as_integer())
                .max()
                .map_or(0, |key| i128::from(key) + 1);
            for key in [
                Value::from(i64::try_from(next).unwrap()),
                Value::from(99),
                Value::from(-1),
                Value::from("x"),
            ] {
                for inner in [Value::from(0), Value::Bytes(vec![0; 32])] {
                    let mut more = entries.clone();
                    more.push((key.clone(), inner));
                    changed.push((Change::Extra, Value::Map(more)));
                }
            }
        }
        Value::Array(items) => {
            for at in 0..items.len() {
                let mut fewer = items.clone();
                let inner = fewer.remove(at);
                changed.push((Change::Missing, Value::Array(fewer)));
                changed.extend(changes(&inner).into_iter().map(|(change, inner)| {
                    let mut other = items.clone();
                    other[at] = inner;
                    (change, Value::Array(other))
                }));
            }
            changed.push((Change::Extra, Value::Array([&items[..], &[Value::from(0)]].concat())));
        }
        _ => {}
    }
    changed
}

/// A value of every type, and numbers and lengths where some field ends.
fn replacements() -> Vec<Value> {
    let numbers =
        [0, 1, 2, 3, 4, 7, 10, 255, 256, 0xff_ffff, 0x100_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
    let strings = [0, 4, 16, 32, 48].map(|length| Value::Bytes(vec![7; length]));
    let texts = ["", "a", "bridge-1", "a/b", "+", "a\n", "0123456789abcdefg"];
    let others = [
        Value::from(-1),
        Value::Null,
        Value::from(true),
        Value::from(false),
        Value::from(1.5),
        Value::Array(vec![]),
    ];
    let maps = [Value::Map(vec![]), Value::Map(vec![(Value::from(0), Value::from(0))])];
    numbers
        .map(Value::from)
        .into_iter()
        .chain(strings)
        .chain(texts.map(Value::from))
        .chain(others)
        .chain(maps)
        .collect()
}

fn value_of(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).unwrap()
}

fn bytes_of(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_kind_of_message_is_in_the_grammar_at_its_smallest_usual_and_largest() {
    let grammar = Grammar::load();
    for fill in FILLS {
        let samples = encoded_samples(fill);
        // evidence comes in two forms
        assert_eq!(samples.len(), 10 + 1 + 10 + 1);
        for (rule, kind, bytes) in samples {
            assert_eq!(grammar.refuses(rule, &bytes), None, "{fill:?} {kind}");
        }
    }
}

#[test]
fn the_codec_accepts_a_changed_message_exactly_when_the_grammar_does() {
    let grammar = Grammar::load();
    let mut uncounted = 0;
    for fill in FILLS {
        for (rule, kind, bytes) in encoded_samples(fill) {
            let mut refused = std::collections::BTreeMap::new();
            for (change, value) in changes(&value_of(&bytes)) {
                // a changed maximal message takes long, and only its growth tells something new
                if fill == Fill::Maximal && change != Change::Grown {
                    continue;
                }
                let mutant = bytes_of(&value);
                let refusal = grammar.refuses(rule, &mutant);
                let error = codec_refuses(rule, &mutant);
                if refusal.is_none() && values_differ(&value) {
                    // beyond CDDL: no rule there counts the bits of a number
                    assert_eq!(error, Some(CodecError::Shape), "{fill:?} {kind} {change:?}");
                    uncounted += 1;
                    continue;
                }
                assert_eq!(
                    error.is_none(),
                    refusal.is_none(),
                    "{fill:?} {kind} {change:?}: grammar says {refusal:?} of {}",
                    hex::encode(&mutant[..mutant.len().min(200)]),
                );
                // every type knows its keys by itself, not only by what is missing from its new encoding
                let unknown_key = change == Change::Extra && error.is_some();
                assert!(!unknown_key || error != Some(CodecError::NotDeterministic), "{fill:?} {kind}");
                *refused.entry(change).or_insert(0) += usize::from(refusal.is_some());
            }
            if fill != Fill::Maximal {
                for change in [Change::Missing, Change::Extra, Change::Replaced] {
                    assert!(
                        refused[&change] > 0,
                        "{fill:?} {kind}: no change of the sort {change:?} was refused"
                    );
                }
            }
        }
    }
    assert!(uncounted > 10, "masks and values were not set against each other: {uncounted}");
}

/// Evidence whose PCR values are of another number than its mask has bits.
fn values_differ(message: &Value) -> bool {
    const EVIDENCE: u8 = 4;
    const PCRS: u8 = 2;
    let Some(pcrs) = entry(message, EVIDENCE).and_then(|evidence| entry(evidence, PCRS)) else {
        return false;
    };
    let mask = entry(pcrs, 0).and_then(Value::as_integer).and_then(|mask| u32::try_from(mask).ok());
    let values = entry(pcrs, 1).and_then(Value::as_bytes);
    mask.zip(values).is_some_and(|(mask, values)| values.len() != mask.count_ones() as usize * 32)
}

/// What a map has under a key.
fn entry(value: &Value, key: u8) -> Option<&Value> {
    value.as_map()?.iter().find_map(|(other, inner)| (*other == Value::from(key)).then_some(inner))
}

#[test]
fn every_bounded_field_is_refused_by_both_when_it_is_one_byte_too_long() {
    let grammar = Grammar::load();
    let mut fields = 0;
    for (rule, kind, bytes) in encoded_samples(Fill::Maximal) {
        for (_, value) in
            changes(&value_of(&bytes)).into_iter().filter(|(change, _)| *change == Change::Grown)
        {
            let mutant = bytes_of(&value);
            assert!(
                grammar.refuses(rule, &mutant).is_some(),
                "{kind}: the grammar accepts a field that is too long"
            );
            assert!(
                codec_refuses(rule, &mutant).is_some(),
                "{kind}: the codec accepts a field that is too long"
            );
            fields += 1;
        }
    }
    // 42 byte strings of the messages and 10 names of bridges; another number means that some were not tried
    assert_eq!(fields, 42 + 10);
}

#[test]
fn fragments_are_in_the_grammar_and_changed_ones_that_it_refuses_are_refused() {
    let grammar = Grammar::load();
    let encoded: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for payload in [MIN_PAYLOAD, 15_000] {
        let fragments = split(encoded.clone(), u32::MAX, payload).unwrap();
        for fragment in [fragments.first().unwrap(), fragments.last().unwrap()] {
            assert_eq!(grammar.refuses("fragment", fragment), None);
            assert_eq!(grammar.refuses("evidence-payload", fragment), None);
            let mut refused = 0;
            for (_, value) in changes(&value_of(fragment)) {
                let mutant = bytes_of(&value);
                if grammar.refuses("evidence-payload", &mutant).is_some() {
                    let outcome = unpack_up(mutant.clone(), &mut Reassembly::default(), Duration::ZERO);
                    assert!(
                        outcome.is_err(),
                        "{outcome:?} of {}",
                        hex::encode(&mutant[..mutant.len().min(60)])
                    );
                    refused += 1;
                }
            }
            assert!(refused > 100, "only {refused} changes were refused");
        }
    }
    let largest = Value::Array(vec![0.into(), 2199.into(), 2200.into(), Value::Bytes(vec![0; MAX_PAYLOAD])]);
    assert_eq!(grammar.refuses("fragment", &bytes_of(&largest)), None);
}

#[test]
fn results_and_bridge_status_are_in_the_grammar_and_changed_ones_are_refused() {
    let grammar = Grammar::load();
    let verdicts = [Verdict::Pass, Verdict::Fail, Verdict::Timeout, Verdict::Pending, Verdict::Unknown];
    for verdict in verdicts {
        let minimal = AttestationResult {
            agent_id: "gateway_7.site-3".parse().unwrap(),
            verdict,
            time: 1_760_000_000,
            valid_until: 1_760_000_600,
            nonce_sha256: None,
            attestation_count: None,
            reason: None,
        };
        let full = AttestationResult {
            nonce_sha256: Some("0f".repeat(32)),
            attestation_count: Some(u64::MAX),
            reason: Some("rebooted, needs re-adding".to_owned()),
            ..minimal.clone()
        };
        for result in [minimal, full] {
            let json = serde_json::to_value(&result).unwrap();
            assert_eq!(grammar.refuses_json("result-payload", &json), None, "{json}");
            json_changes_are_refused::<AttestationResult>(&grammar, "result-payload", &json);
        }
    }
    for status in
        [BridgeStatus { online: true, since: 1_760_000_000 }, BridgeStatus { online: false, since: 0 }]
    {
        let json = serde_json::to_value(status).unwrap();
        assert_eq!(grammar.refuses_json("bridge-payload", &json), None, "{json}");
        json_changes_are_refused::<BridgeStatus>(&grammar, "bridge-payload", &json);
    }
}

/// A key missing, a key more, a value of another type: both refuse, save that optional keys may be missing.
fn json_changes_are_refused<T: serde::de::DeserializeOwned>(
    grammar: &Grammar,
    rule: &str,
    json: &serde_json::Value,
) {
    let document = json.as_object().unwrap();
    let mut refused = 0;
    let mut compare = |changed: serde_json::Map<String, serde_json::Value>| {
        let changed = serde_json::Value::Object(changed);
        let accepted = serde_json::from_value::<T>(changed.clone()).is_ok();
        assert_eq!(accepted, grammar.refuses_json(rule, &changed).is_none(), "{changed}");
        refused += usize::from(!accepted);
    };
    for key in document.keys() {
        let mut fewer = document.clone();
        fewer.remove(key);
        compare(fewer);
        for other in
            [serde_json::json!(-1), serde_json::json!(1.5), serde_json::json!([]), serde_json::json!({})]
        {
            let mut replaced = document.clone();
            replaced.insert(key.clone(), other);
            compare(replaced);
        }
    }
    let mut more = document.clone();
    more.insert("token".to_owned(), serde_json::json!("x"));
    compare(more);
    assert!(refused > 4 * document.len());
}

#[test]
fn a_result_for_an_id_that_could_escape_its_topic_is_refused() {
    let grammar = Grammar::load();
    for id in ["", "a/b", "+", "#", "a b", "a\n", &"a".repeat(81)] {
        let json = serde_json::json!({"agent_id": id, "verdict": "PASS", "time": 1, "valid_until": 2});
        assert!(grammar.refuses_json("result-payload", &json).is_some(), "{id:?}");
        assert!(serde_json::from_value::<AttestationResult>(json).is_err(), "{id:?}");
    }
}

proptest! {
    #[test]
    fn whatever_a_device_says_is_in_the_grammar(up in any_up()) {
        prop_assert_eq!(Grammar::load().refuses("evidence-payload", &encode(&up).unwrap()), None);
    }

    #[test]
    fn whatever_a_bridge_says_is_in_the_grammar(down in any_down()) {
        prop_assert_eq!(Grammar::load().refuses("challenge-payload", &encode(&down).unwrap()), None);
    }
}
