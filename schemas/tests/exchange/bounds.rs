//! What fills up has its bound.

use std::time::Duration;

use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::exchange::Attester;
use keylime_mqtt_schemas::exchange::attester::{Done, Input, Output, Report, Settings, Work};
use keylime_mqtt_schemas::exchange::relay::{self, Command, Notice, Offer, Offered, Requested, Status};
use keylime_mqtt_schemas::messages::limits::{MAX_PART, MAX_UEFI_LOG};
use keylime_mqtt_schemas::messages::{
    Blob, Down, Hello, HelloTag, LogKind, Need, Nonce, Prove, Question, Ready, RefusedReason, Up, Verdict,
};

use super::device::Device;
use super::group::overdue;
use super::hand::{AT, Hand, standing};

/// As in the attester, with the question that is being worked on.
const QUESTIONS_HELD: usize = 4 + 1;
/// As in the relay: IMA lines of one device, and parts that wait until the one before them is unpacked.
const MAX_HELD_IMA: usize = 32 * 1024 * 1024;
const MAX_AHEAD: usize = 256 * 1024;
const MOST_AHEAD: usize = 128;
/// As in the relay: messages that wait while the standing of an overdue device is read.
const MOST_UNHEARD: usize = 4;
/// A log longer than any bridge holds.
const LINES: u64 = 100_000;

#[test]
fn a_flood_of_questions_takes_a_few_places_and_the_others_are_dropped_and_counted() {
    let mut device = Device::new("device-1", 1);
    let mut attester = Attester::new(Settings::default(), true);
    let now = Duration::from_secs(1);
    attester.handle(Input::Connected, now);
    let Some(Output::Work(Work::Describe)) = attester.poll_output() else { panic!("no description") };
    for n in 0..200_u8 {
        let question = Question::Prove(Prove { nonce: Nonce::from([n; 16]) });
        attester.handle(Input::Received(Down { question, via: None }), now);
    }
    let ignored = std::iter::from_fn(|| attester.poll_output())
        .filter(|output| matches!(output, Output::Report(Report::Ignored(_))))
        .count();
    assert!(ignored >= 200 - QUESTIONS_HELD, "{ignored}");
    // the TPM is asked for no more than what was kept
    attester.handle(Input::Done(device.work(Work::Describe)), now);
    let mut worked = 0;
    while let Some(output) = attester.poll_output() {
        if let Output::Work(_) = output {
            worked += 1;
            attester.handle(Input::Done(Done::Failed), now);
        }
    }
    assert!(worked <= QUESTIONS_HELD, "{worked}");
}

/// The verifier asks for evidence of this kind.
fn offered(hand: &mut Hand, requested: Requested) {
    hand.offering(AT(100));
    let offer = hand.offer(AT(100));
    let offer = Offer { requested: vec![Requested::Quote, requested], ..offer };
    hand.done(relay::Done::Offered(Offered::Opened(offer)), AT(100));
}

/// Asked for the lines of a long IMA log, from the first one on.
fn asked_for_lines(hand: &mut Hand) -> Need {
    offered(hand, Requested::Ima { offset: 0 });
    let ready = Ready { ima_entries: Some(LINES), ..hand.described() };
    needed(&hand.says(Up::Ready(ready), AT(101))).unwrap()
}

fn questions(outputs: &[relay::Output]) -> Vec<&Question> {
    let mut questions = Vec::new();
    for output in outputs {
        if let relay::Output::Send(down, _) = output {
            questions.push(&down.question);
        }
    }
    questions
}

fn needed(outputs: &[relay::Output]) -> Option<Need> {
    questions(outputs)
        .iter()
        .find_map(|question| if let Question::Need(need) = question { Some(*need) } else { None })
}

fn refused(outputs: &[relay::Output]) -> bool {
    let refused =
        |question: &&Question| matches!(question, Question::Refused(no) if no.reason == RefusedReason::Offer);
    questions(outputs).iter().any(refused)
}

fn dropped(outputs: &[relay::Output], said: &str) -> usize {
    let dropped = |output: &&relay::Output| matches!(output, relay::Output::Notice(Notice::Dropped { why, .. }) if *why == said);
    outputs.iter().filter(dropped).count()
}

fn part_of(need: &Need, part: Vec<u8>) -> Up {
    let part = part.try_into().unwrap();
    Up::Blob(Blob { log: need.log, boot: need.boot, offset: need.offset, part, total: None })
}

#[test]
fn of_one_device_no_more_ima_lines_are_held_than_a_bridge_has_room_for() {
    let mut hand = Hand::new();
    let mut need = asked_for_lines(&mut hand);
    // a batch, and nearly as long as a part may be
    let text = [&[b'a'; 1000][..], b"\n"].concat().repeat(1024);
    let packed = pack_ima(&text, None);
    let mut held = 0;
    let outputs = loop {
        let outputs = hand.says(part_of(&need, packed.clone()), AT(101));
        match needed(&outputs) {
            Some(next) => need = next,
            None => break outputs,
        }
        held += text.len();
        assert_eq!(hand.relay.held(), held);
    };
    assert!((MAX_HELD_IMA - text.len()..=MAX_HELD_IMA).contains(&held), "{held}");
    assert!(refused(&outputs), "{outputs:?}");
    assert_eq!(hand.relay.held(), 0);
}

/// So many parts come while the first one is unpacked: how many there were room for, and what is held then.
fn ahead(parts: usize, part: &[u8]) -> (usize, usize) {
    let mut hand = Hand::new();
    let need = asked_for_lines(&mut hand);
    let first = pack_ima(b"10 00 ima-ng sha256:00 /bin/sh\n", None);
    hand.relay.handle(relay::Input::Received(part_of(&need, first.clone()), None), AT(101));
    let outputs = hand.outputs();
    assert!(matches!(outputs[..], [relay::Output::Command(Command::Unpack(_))]), "{outputs:?}");
    for _ in 0..parts {
        hand.relay.handle(relay::Input::Received(part_of(&need, part.to_vec()), None), AT(101));
    }
    let kept = parts - dropped(&hand.outputs(), "more parts at once than were asked for");
    let held = hand.relay.held();
    // whatever came meanwhile, the next part is taken up
    hand.done(relay::Done::Unpacked(Ok(b"\n".to_vec())), AT(102));
    hand.says(part_of(&Need { offset: need.offset + 1, ..need }, first), AT(103));
    assert_eq!(hand.unpacked, 1);
    (kept, held)
}

#[test]
fn parts_that_come_while_another_is_unpacked_wait_in_a_bound_of_bytes_and_in_one_of_number() {
    let most = MAX_AHEAD / MAX_PART;
    assert_eq!(ahead(10 * most, &vec![7; MAX_PART]), (most, MAX_AHEAD));
    assert_eq!(ahead(10 * MOST_AHEAD, &[7]), (MOST_AHEAD, MOST_AHEAD));
    assert_eq!(ahead(10 * MOST_AHEAD, &[]), (MOST_AHEAD, 0));
}

#[test]
fn a_uefi_log_larger_than_any_firmware_writes_is_refused_before_any_of_it_is_asked_for() {
    for (size, too_large) in [(MAX_UEFI_LOG, false), (MAX_UEFI_LOG + 1, true)] {
        let mut hand = Hand::new();
        hand.device.uefi = Some(vec![7; size as usize]);
        offered(&mut hand, Requested::Uefi);
        let outputs = hand.done(relay::Done::UefiFound(false), AT(101));
        let asked = needed(&outputs).is_some_and(|need| need.log == LogKind::Uefi);
        assert_eq!((refused(&outputs), asked), (too_large, !too_large), "{size}: {outputs:?}");
    }
}

#[test]
fn while_the_standing_of_an_overdue_device_is_read_a_few_messages_wait_and_then_they_are_heard() {
    let (mut hand, _, _) = overdue();
    for _ in 0..50 * MOST_UNHEARD {
        let hello = Hello { tag: HelloTag::from([1; 8]), padding: None };
        assert_eq!(hand.says(Up::Hello(hello), AT(153)), []);
    }
    let outputs = hand.done(relay::Done::Status(Status::Standing(standing(Verdict::Timeout, 1))), AT(153));
    let heard = questions(&outputs).iter().filter(|question| matches!(question, Question::Heard(_))).count();
    assert_eq!(heard, MOST_UNHEARD);
}
