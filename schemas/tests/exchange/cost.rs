//! What one device may cost a bridge, and a bridge a device: each is bounded, whatever the other side does.

use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{Command, Done, Offer, Offered, Output, Requested};
use keylime_mqtt_schemas::messages::{Blob, LogKind, Question, Up};

use super::device::NOT_PACKED;
use super::hand::{AT, Hand};

/// From an open challenge to a question for the first part of an IMA log of 700 lines.
fn gathering(hand: &mut Hand, now: Time) {
    hand.device.grow(700);
    let mut outputs = hand.speaks_up(now);
    if !outputs.iter().any(|output| matches!(output, Output::Command(Command::Offer { .. }))) {
        hand.relay.handle_timeout(now + AT(10));
        outputs = hand.outputs();
    }
    assert!(
        outputs.iter().any(|output| matches!(output, Output::Command(Command::Offer { .. }))),
        "{outputs:?}"
    );
    let offer = hand.offer(now);
    let requested = vec![Requested::Quote, Requested::Ima { offset: 0 }];
    let outputs = hand.done(Done::Offered(Offered::Opened(Offer { requested, ..offer })), now);
    let asked = |output: &Output| matches!(output, Output::Send(down, _) if matches!(down.question, Question::Need(_)));
    assert!(outputs.iter().any(asked), "{outputs:?}");
}

#[test]
fn parts_of_a_log_that_cannot_be_unpacked_are_taken_a_few_times_and_not_without_end() {
    let mut hand = Hand::new();
    hand.challenged(AT(100));
    hand.relay.handle_timeout(AT(3000));
    hand.outputs();
    gathering(&mut hand, AT(3000));
    let boot = hand.device.marker().tag();
    let bad = || {
        let part = NOT_PACKED.to_vec().try_into().unwrap();
        Up::Blob(Blob { log: LogKind::Ima, boot, offset: 0, part, total: None })
    };
    let mut outputs = Vec::new();
    for _ in 0..250 {
        outputs.extend(hand.says(bad(), AT(3001)));
    }
    let unpacked = hand.unpacked;
    assert!((1..=3).contains(&unpacked), "{unpacked} parts were unpacked for nothing");
    let later = outputs
        .iter()
        .any(|output| matches!(output, Output::Send(down, _) if matches!(down.question, Question::Later(_))));
    assert!(later, "the device is told to come again");
}
