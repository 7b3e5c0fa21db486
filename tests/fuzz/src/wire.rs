//! Payloads and topics, as a broker gives them.

use std::time::Duration;

use keylime_mqtt_schemas::codec::{MAX_MESSAGE, decode, encode};
use keylime_mqtt_schemas::fragment::{Reassembly, split};
use keylime_mqtt_schemas::messages::{Presence, Up};
use keylime_mqtt_schemas::topics::{MAX_TOPIC_BYTES, MAX_TOPIC_SLASHES, Topic, Topics, Via};
use keylime_mqtt_schemas::wire::{pack_down, pack_up, unpack_down, unpack_up};

use crate::bytes::Bytes;

/// One payload from a device: what is read has one encoding, and can be sent as it is.
pub(crate) fn up(payload: &[u8]) {
    let mut reassembly = Reassembly::default();
    if let Ok(Some(message)) = unpack_up(payload.to_vec(), &mut reassembly, Duration::ZERO) {
        if let Up::Ready(ready) = &message {
            ready.tag();
        }
        let encoded = encode(&message).expect("what was read can be written");
        // a message whole in one fragment is read too
        assert!(encoded == payload || payload.starts_with(&[0x84]), "{message:?} has two encodings");
    }
    assert!(reassembly.held() <= MAX_MESSAGE, "one device holds {}", reassembly.held());
}

/// One payload from a bridge.
pub(crate) fn down(payload: &[u8]) {
    if let Ok(message) = unpack_down(payload) {
        assert_eq!(pack_down(&message).as_deref(), Ok(payload), "{message:?} has two encodings");
    }
}

/// What a device, or its last will, leaves with the broker.
pub(crate) fn presence(payload: &[u8]) {
    if let Ok(presence) = decode::<Presence>(payload) {
        assert_eq!(encode(&presence).as_deref(), Ok(payload), "{presence:?} has two encodings");
    }
}

/// Payloads one after the other, with time between them; then a message cut, shuffled and put together again.
pub(crate) fn fragments(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut reassembly = Reassembly::default();
    let mut now = Duration::ZERO;
    let message = bytes.piece().to_vec();
    let mut pieces = split(message.clone(), 7, 0).expect("a short message can be cut");
    let first = usize::from(bytes.byte()) % pieces.len();
    pieces.rotate_left(first);
    if pieces.len() > 1 {
        let mut whole = None;
        for piece in pieces.clone() {
            assert_eq!(whole, None, "whole before the last part");
            whole = reassembly.accept(piece, now).expect("a part of ours");
        }
        assert_eq!(whole, Some(message), "not what was cut");
    }
    while !bytes.is_empty() {
        now += Duration::from_secs(bytes.byte().into());
        let choice = bytes.byte();
        let payload = match pieces.get(usize::from(choice)) {
            Some(piece) => piece.clone(),
            None => bytes.piece().to_vec(),
        };
        if let Ok(Some(whole)) = reassembly.accept(payload, now) {
            assert!(whole.len() <= MAX_MESSAGE, "a message of {} bytes", whole.len());
        }
        assert!(reassembly.held() <= MAX_MESSAGE, "one device holds {}", reassembly.held());
    }
    reassembly.expire(now + Duration::from_secs(3600));
    assert_eq!(reassembly.held(), 0, "an unfinished message outlives its time");
}

/// A topic, a prefix and a name: what is parsed is built again the same, and nothing built passes a broker's limits.
pub(crate) fn topics(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (prefix, topic) = text.split_once('\n').unwrap_or(("", &text));
    let topics = Topics::new(prefix).unwrap_or_default();
    if let Ok(name) = topic.parse::<Via>() {
        assert_eq!(name.as_str(), topic);
    }
    let Ok(parsed) = topics.parse(topic) else { return };
    let built = match parsed {
        Topic::Evidence(id, via) => topics.evidence(&id, via.as_ref()),
        Topic::Challenge(id) => topics.challenge(&id),
        Topic::Result(id) => topics.result(&id),
        Topic::Presence(id) => topics.presence(&id),
    };
    assert_eq!(built, topic, "a topic with two spellings");
    assert!(built.len() <= MAX_TOPIC_BYTES && built.matches('/').count() <= MAX_TOPIC_SLASHES);
    assert!(!built.contains(['+', '#', '\0']), "a wildcard in {built:?}");
}

/// What one half says can be sent.
pub(crate) fn sendable(up: &Up) -> Vec<u8> {
    let payloads = pack_up(up, 1, MAX_MESSAGE);
    assert!(payloads.is_ok(), "the device says what cannot be sent: {up:?}");
    encode(up).expect("packed before")
}
