//! What one device may cost a bridge, and a bridge a device: each is bounded, whatever the other side does.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{
    Activated, Command, Done, Input, Offer, Offered, Output, Registered, Requested, Submitted, Unavailable,
};
use keylime_mqtt_schemas::messages::{Blob, Enrol, LogKind, Question, RefusedReason, Up};

use super::device::{Device, NOT_PACKED};
use super::hand::{AT, Hand};
use super::keylime::Policy;
use super::world::World;

const HOUR: Time = Duration::from_secs(3600);
const SILENT: Unavailable = Unavailable { retry_after: None };

fn enrol(hand: &mut Hand) -> Enrol {
    let Worked::Introduced(enrol) = hand.device.work(Work::Introduce) else { unreachable!() };
    enrol
}

fn registrations(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Command(Command::Register(_)))).count()
}

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

#[test]
fn a_device_that_enrols_while_the_registrar_is_away_asks_less_and_less_often() {
    let mut world = World::new(Device::new("device-1", 1), Policy::default(), BTreeMap::new());
    for _ in 0..2000 {
        world.scripted.push(("Register", Done::Registered(Registered::Unavailable(SILENT))));
    }
    let limit = world.now + HOUR;
    world.run_until(limit, |_| false);
    let asked = world.up_messages["Enrol"];
    // the longest wait of a device that is not enrolled is a minute
    assert!((60..=130).contains(&asked), "{asked} times in an hour");
}

#[test]
fn a_device_whose_record_is_gone_at_each_activation_enrols_less_and_less_often() {
    let mut world = World::new(Device::new("device-1", 1), Policy::default(), BTreeMap::new());
    for _ in 0..2000 {
        world.scripted.push(("Activate", Done::Activated(Activated::Unknown)));
    }
    let limit = world.now + HOUR;
    world.run_until(limit, |_| false);
    let asked = world.up_messages["Enrol"];
    assert!((10..=30).contains(&asked), "{asked} times in an hour on a metered link");
}

#[test]
fn a_device_that_enrols_without_a_pause_does_not_register_at_will() {
    let mut hand = Hand::new();
    let first = enrol(&mut hand);
    let mut registered = 0;
    let mut now = AT(100);
    for n in 0..3000_u32 {
        now += Duration::from_millis(10);
        // each with another certificate, so none is a repetition
        let ek_certificate = Some(n.to_be_bytes().to_vec().try_into().unwrap());
        let mut outputs = hand.says(Up::Enrol(Enrol { ek_certificate, ..first.clone() }), now);
        if hand.relay.poll_timeout().is_some_and(|at| at <= now) {
            hand.relay.handle_timeout(now);
            outputs.extend(hand.outputs());
        }
        if outputs.iter().any(|output| matches!(output, Output::Command(Command::Withdraw))) {
            outputs.extend(hand.done(Done::Withdrawn, now));
        }
        if registrations(&outputs) > 0 {
            registered += 1;
            hand.done(Done::Registered(Registered::Credential(vec![1; 336])), now);
        }
    }
    assert!((2..=7).contains(&registered), "{registered} registrations in 30 s");
}

#[test]
fn a_refused_device_that_does_not_wait_is_refused_again_without_anybody_being_asked() {
    let mut hand = Hand::new();
    let same = enrol(&mut hand);
    assert_eq!(registrations(&hand.says(Up::Enrol(same.clone()), AT(100))), 1);
    let refused = Done::Registered(Registered::Refused(RefusedReason::NotAdmitted));
    hand.done(refused.clone(), AT(100));
    let mut reports = 0;
    for second in 101..400 {
        let outputs = hand.says(Up::Enrol(same.clone()), AT(second));
        assert_eq!(registrations(&outputs), 0);
        reports += outputs.iter().filter(|output| matches!(output, Output::Report(_))).count();
        let told = outputs.iter().find_map(|output| match output {
            Output::Send(down, _) => match &down.question {
                Question::Refused(refused) => Some((refused.reason, u64::from(refused.seconds))),
                _ => None,
            },
            _ => None,
        });
        assert_eq!(told, Some((RefusedReason::NotAdmitted, 400 - second)));
    }
    assert_eq!(reports, 0, "the result says it already");
    assert_eq!(registrations(&hand.says(Up::Enrol(same.clone()), AT(400))), 1, "its time has come");
    hand.done(refused, AT(400));
    // what the operator has changed may admit it at once
    hand.relay.reconsider();
    assert_eq!(registrations(&hand.says(Up::Enrol(same), AT(410))), 1);
}

#[test]
fn evidence_that_waits_for_a_silent_verifier_is_counted_and_given_back() {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    let lines = 20_000_000;
    hand.bound(&offer, Some(vec![b'\n'; lines]), AT(101));
    assert!(hand.relay.held() >= lines, "while it is submitted: {}", hand.relay.held());
    hand.done(Done::Submitted(Submitted::Unavailable(SILENT)), AT(101));
    assert!(hand.relay.held() >= lines, "while it waits: {}", hand.relay.held());
    assert!(hand.relay.shed());
    assert_eq!(hand.relay.held(), 0);
    let outputs = hand.outputs();
    assert!(matches!(&outputs[..], [Output::Send(down, _)] if matches!(down.question, Question::Later(_))));
    hand.relay.handle_timeout(AT(200));
    assert_eq!(hand.outputs(), [], "nothing is submitted any more");
}

#[test]
fn a_bridge_without_room_lets_go_of_a_challenged_device_for_which_only_the_shell_holds_a_log() {
    let mut hand = Hand::new();
    hand.challenged(AT(100));
    assert!(hand.relay.shed());
    hand.outputs();
    assert!(!hand.relay.shed(), "there is nothing left to give back");
    assert!(!hand.told(Input::Present, AT(101)).iter().any(|output| matches!(output, Output::Command(_))));
}

#[test]
fn lines_of_evidence_that_was_superseded_do_not_travel_again() {
    let mut device = Device::new("device-1", 1);
    device.grow(1330);
    let mut world = World::new(device, Policy { ima: true, uefi: false }, BTreeMap::new());
    world.scripted.push(("Submit", Done::Submitted(Submitted::Superseded)));
    assert!(world.run_until(AT(300), |world| world.scripted.is_empty()));
    assert!(world.held() >= 1330 * super::device::LINE, "{}", world.held());
    let parts = world.up_messages["Blob"];
    assert!(world.run_until(AT(300), |world| world.passes() == 1), "{}", world.tail());
    assert_eq!(world.up_messages["Blob"], parts);
    assert_eq!(world.held(), 0);
}
