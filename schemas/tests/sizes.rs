//! What the steady state costs on the wire: a message that grows is seen here before it is seen on a bill.

#![allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]

use keylime_mqtt_schemas::fragment::DEFAULT_PAYLOAD;
use keylime_mqtt_schemas::messages::{
    BootTag, Bounded, Brief, Challenge, Down, Evidence, ImaSegment, Nonce, PcrMask, PcrTag, Question, Quote,
    ReadyTag, Unchanged, Up,
};
use keylime_mqtt_schemas::wire::{pack_down, pack_up};

fn size(up: &Up) -> usize {
    let payloads = pack_up(up, 0, DEFAULT_PAYLOAD).unwrap();
    assert_eq!(payloads.len(), 1);
    payloads.concat().len()
}

/// An AK of 2048 bits on a device that has been up for some days.
fn steady() -> Evidence {
    let quote = Quote::Brief(Brief {
        clock: 1_234_567_890,
        signature: Bounded::try_from(vec![0xa5; 256]).unwrap(),
        restart_count: None,
    });
    Evidence { tag: Nonce::from([0x17; 16]).tag(), quote, pcrs: None, ima: None }
}

#[test]
fn a_steady_challenge_fits_56_bytes() {
    let challenge = Challenge {
        nonce: Nonce::from([0x17; 16]),
        boot: BootTag::from([0xb0; 4]),
        // as many as a policy may name, and a log that has grown long
        pcrs: PcrMask::ALL,
        good_for: 1800,
        silence: 900,
        ima_offset: Some(100_000),
        held: Some(PcrTag::from([0x9e; 4])),
        ticket: None,
        full: false,
        reference: false,
    };
    let size = pack_down(&Down { question: Question::Challenge(challenge), via: None }).unwrap().len();
    assert!(size <= 56, "a steady challenge has {size} bytes");
}

#[test]
fn a_steady_evidence_fits_285_bytes() {
    let size = size(&Up::Evidence(steady()));
    assert!(size <= 285, "a steady evidence has {size} bytes, 256 of them the signature");
}

#[test]
fn ima_lines_cost_16_bytes_and_what_they_are_packed_in() {
    let ima = |length| Some(ImaSegment { offset: 100_000, packed: vec![0x5a; length].try_into().unwrap() });
    let alone = size(&Up::Evidence(steady()));
    let with = size(&Up::Evidence(Evidence { ima: ima(700), ..steady() }));
    assert!(with <= alone + 700 + 16, "{} bytes around the lines", with - alone - 700);
}

#[test]
fn an_unchanged_fits_20_bytes() {
    let unchanged = Unchanged { ready: ReadyTag::from([0x4e; 8]), ima_entries: Some(100_000) };
    let size = size(&Up::Unchanged(unchanged));
    assert!(size <= 20, "an unchanged has {size} bytes");
}
