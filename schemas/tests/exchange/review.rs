//! What a reader of the exchange found by trying to break it, each held by a test.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::compact::{pack_ima, unpack_ima};
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{
    Command, Done, Offer, Offered, Output, Proven, Report, Requested, Session, Status, Token,
};
use keylime_mqtt_schemas::messages::limits::MAX_PART_LINES;
use keylime_mqtt_schemas::messages::{
    Blob, Evidence, LaterReason, LogKind, Nonce, NotYet, NotYetReason, Outcome, Prove, Question, Up, Verdict,
};

use super::device::{Device, dense_log};
use super::hand::{AT, Hand, STATED_AT, standing};
use super::keylime::Policy;
use super::world::World;

fn passed(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Report(Report { verdict: Verdict::Pass, .. })))
}

#[test]
fn a_device_that_cannot_answer_for_half_an_hour_is_asked_all_the_time_and_breaks_nothing() {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    let mut asked = 0;
    let mut now = AT(100);
    // as an agent does after a power cut, until its TPM's clock is safe
    while now < offer.expires_at {
        let not_yet = NotYet { tag: offer.nonce.tag(), reason: NotYetReason::ClockNotSafe, seconds: 10 };
        hand.says(Up::NotYet(not_yet), now);
        now = hand.relay.poll_timeout().unwrap();
        hand.relay.handle_timeout(now);
        asked += hand.outputs().iter().filter(|output| matches!(output, Output::Send(..))).count();
    }
    assert!(asked > 170, "{asked}");
}

#[test]
fn a_device_that_speaks_up_while_its_evidence_is_judged_is_not_told_the_former_verdict() {
    let mut hand = Hand::new();
    let first = hand.challenged(AT(100));
    hand.submitted(&first, AT(101));
    hand.relay.handle_timeout(AT(102));
    assert!(passed(&hand.read(Verdict::Pass, 1, AT(102))));
    hand.relay.handle_timeout(AT(112));
    hand.outputs();
    let second = hand.offer(AT(112));
    hand.done(Done::Offered(Offered::Opened(second.clone())), AT(112));
    hand.submitted(&second, AT(113));
    let said = hand.speaks_up(AT(113));
    assert_eq!(accepted(&said), [], "nobody has judged it yet");
    hand.relay.handle_timeout(AT(114));
    assert_eq!(accepted(&hand.read(Verdict::Fail, 1, AT(114))), [Outcome::Fail]);
}

fn accepted(outputs: &[Output]) -> Vec<Outcome> {
    let outcome = |output: &Output| match output {
        Output::Send(down, _) => match down.question {
            Question::Accepted(accepted) => Some(accepted.outcome),
            _ => None,
        },
        _ => None,
    };
    outputs.iter().filter_map(outcome).collect()
}

/// The verdict on the first evidence was not read, so nothing says that a later advance is not its own.
fn reads_the_standing_anew(hand: &mut Hand, outputs: Vec<Output>, now: Time) {
    let asks = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::Command(Command::ReadStatus { .. })))
    };
    let mut outputs = outputs;
    for _ in 0..6 {
        assert!(!outputs.iter().any(|output| matches!(output, Output::Command(Command::Offer { .. }))));
        if asks(&outputs) {
            return;
        }
        outputs = match outputs.iter().find_map(|output| match output {
            Output::Command(command) => Some(command.clone()),
            _ => None,
        }) {
            Some(Command::CheckStatement { .. }) => hand.done(Done::StatementChecked(Some(STATED_AT)), now),
            Some(Command::OpenSession { .. }) => {
                let (session, nonce) = ("t".to_owned(), Nonce::from([201; 16]));
                hand.done(Done::Session(Session::Opened { session, nonce, good_for: AT(50) }), now);
                let Worked::Proved(proof) = hand.device.work(Work::Prove(Prove { nonce })) else {
                    unreachable!()
                };
                hand.says(Up::Proof(proof), now);
                let token = Token::new("token 2".to_owned());
                let certified = hand.device.ak();
                hand.done(Done::Proven(Proven::Token { token, certified, ticket: None }), now)
            }
            other => panic!("{other:?}"),
        };
    }
    panic!("the standing was not read");
}

#[test]
fn an_outcome_that_was_not_read_because_the_device_rebooted_is_not_taken_for_the_next_one() {
    let mut hand = Hand::new();
    let first = hand.challenged(AT(100));
    hand.submitted(&first, AT(101));
    hand.device.reboot();
    let outputs = hand.speaks_up(AT(101));
    reads_the_standing_anew(&mut hand, outputs, AT(101));
}

#[test]
fn an_outcome_that_was_not_read_because_the_token_ran_out_is_not_taken_for_the_next_one() {
    let mut hand = Hand::new();
    let first = hand.challenged(AT(100));
    hand.submitted(&first, AT(101));
    hand.relay.handle_timeout(AT(102));
    hand.outputs();
    hand.done(Done::Status(Status::TokenRejected), AT(102));
    hand.relay.handle_timeout(AT(112));
    let outputs = hand.outputs();
    reads_the_standing_anew(&mut hand, outputs, AT(112));
}

fn with_bulk_ima() -> World {
    let mut device = Device::new("device-1", 1);
    device.grow(700);
    World::new(device, Policy { ima: true, uefi: false }, BTreeMap::new())
}

#[test]
fn a_part_of_the_ima_log_that_was_changed_on_the_way_is_taken_up_again() {
    for lie in [changed_line as fn(Up) -> Vec<Up>, lines_from_nowhere] {
        let mut world = with_bulk_ima();
        world.on_the_way_up = Some(lie);
        let limit = world.now + AT(100);
        world.run_until(limit, |_| false);
        assert_eq!(world.passes(), 0);
        world.on_the_way_up = None;
        let limit = world.now + AT(300);
        assert!(world.run_until(limit, |world| world.passes() > 1), "{:?}\n{}", world.dropped, world.tail());
        assert!(!world.verdicts().contains(&Verdict::Fail));
    }
}

fn changed_line(up: Up) -> Vec<Up> {
    match up {
        Up::Blob(blob) if blob.log == LogKind::Ima && blob.offset == 0 => {
            let mut lines = lines_of(&blob);
            lines[5] = b'f';
            vec![Up::Blob(with_lines(&blob, &lines))]
        }
        other => vec![other],
    }
}

fn lines_from_nowhere(up: Up) -> Vec<Up> {
    match up {
        Up::Blob(blob) if blob.log == LogKind::Ima => {
            let mut lines = lines_of(&blob);
            lines.extend(b"10 00 ima-ng sha256:00 /nowhere\n".repeat(300));
            vec![Up::Blob(with_lines(&blob, &lines))]
        }
        other => vec![other],
    }
}

fn lines_of(blob: &Blob) -> Vec<u8> {
    unpack_ima(blob.part.as_slice(), MAX_PART_LINES, None).unwrap()
}

fn with_lines(blob: &Blob, lines: &[u8]) -> Blob {
    Blob { part: pack_ima(lines, None).try_into().unwrap(), ..blob.clone() }
}

#[test]
fn an_ima_log_that_grew_beyond_one_message_between_two_attestations_is_taken_up_in_parts() {
    let mut device = Device::new("device-1", 1);
    device.grow(20);
    let mut world = World::new(device, Policy { ima: true, uefi: false }, BTreeMap::new());
    assert!(world.run_until(AT(300), |world| world.passes() == 2));
    // an upgrade of the whole system
    world.device.grow(6000);
    let limit = world.now + AT(120);
    assert!(world.run_until(limit, |world| world.passes() == 4), "{}", world.tail());
}

#[test]
fn a_uefi_log_that_never_has_its_digest_is_asked_for_less_and_less_often() {
    let mut device = Device::new("device-1", 1);
    device.uefi = Some(dense_log(30_000));
    let mut world = World::new(device, Policy { ima: false, uefi: true }, BTreeMap::new());
    world.on_the_way_up = Some(|up| match up {
        Up::Blob(blob) => {
            let mut part = blob.part.as_slice().to_vec();
            if let Some(byte) = part.first_mut() {
                *byte ^= 1;
            }
            vec![Up::Blob(Blob { part: part.try_into().unwrap(), ..blob })]
        }
        other => vec![other],
    });
    let limit = world.now + AT(600);
    world.run_until(limit, |_| false);
    assert!(world.keylime.offers < 30, "{} offers in ten minutes", world.keylime.offers);
}

#[test]
fn a_verifier_that_says_early_without_a_wait_is_not_asked_in_a_loop() {
    let mut world = World::new(Device::new("device-1", 1), Policy::default(), BTreeMap::new());
    assert!(world.run_until(AT(300), |world| world.passes() == 2));
    for _ in 0..50 {
        world.scripted.push(("Offer", Done::Offered(Offered::Early(Duration::ZERO))));
    }
    world.asked.clear();
    let limit = world.now + AT(20);
    world.run_until(limit, |_| false);
    let offers = world.asked.iter().filter(|(_, kind)| *kind == "Offer").count();
    assert!((5..=20).contains(&offers), "{offers} offers in 20 s");
}

#[test]
fn a_device_that_waits_for_a_session_does_not_ask_every_second() {
    let mut world = World::new(Device::new("device-1", 1), Policy::default(), BTreeMap::new());
    for _ in 0..500 {
        world.scripted.push(("OpenSession", Done::Session(Session::Wait(Duration::from_millis(1500)))));
    }
    let limit = world.now + AT(600);
    world.run_until(limit, |_| false);
    let asked = world.up_messages["Ready"];
    assert!(asked < 30, "{asked} messages in ten minutes on a metered link");
}

#[test]
fn a_device_held_after_a_reboot_goes_on_saying_what_it_waits_for() {
    let mut device = Device::new("device-1", 1);
    device.grow(20);
    let mut world = World::new(device, Policy { ima: true, uefi: false }, BTreeMap::new());
    assert!(world.run_until(AT(300), |world| world.passes() == 2));
    world.device.reboot();
    world.restart_agent();
    let limit = world.now + AT(900);
    world.run_until(limit, |_| false);
    let (_, last) = world.reports.last().unwrap();
    assert_eq!(last.reason, Some(LaterReason::Rebooted.to_string()), "{:?}", world.verdicts());
}

#[test]
fn a_bridge_without_room_gives_back_what_it_gathered_and_the_device_comes_again() {
    let mut hand = Hand::new();
    hand.device.grow(700);
    hand.challenged(AT(100));
    // the device is added anew with an IMA policy, and says so much that it is asked for parts
    hand.relay.handle_timeout(AT(3000));
    hand.outputs();
    let gathering = |hand: &mut Hand, now: Time| {
        let mut outputs = hand.speaks_up(now);
        if !outputs.iter().any(|output| matches!(output, Output::Command(Command::Offer { .. }))) {
            outputs = hand.done(Done::StatementChecked(Some(STATED_AT)), now);
        }
        assert!(outputs.iter().any(|output| matches!(output, Output::Command(Command::Offer { .. }))));
        let offer = hand.offer(now);
        let requested = vec![Requested::Quote, Requested::Ima { offset: 0 }];
        let outputs = hand.done(Done::Offered(Offered::Opened(Offer { requested, ..offer })), now);
        let need = outputs.iter().find_map(|output| match output {
            Output::Send(down, _) => match down.question {
                Question::Need(need) => Some(need),
                _ => None,
            },
            _ => None,
        });
        need.unwrap()
    };
    let need = gathering(&mut hand, AT(3000));
    let Worked::Read { blob, .. } = hand.device.work(Work::Read(need)) else { unreachable!() };
    hand.says(Up::Blob(blob), AT(3001));
    assert!(hand.relay.held() > 0);
    hand.relay.shed();
    assert_eq!(hand.relay.held(), 0);
    let outputs = hand.outputs();
    assert!(matches!(&outputs[..], [Output::Send(down, _)] if matches!(down.question, Question::Later(_))));
    assert_eq!(gathering(&mut hand, AT(3060)).offset, 0);
}

#[test]
fn a_device_that_changes_its_story_does_not_open_attestations_without_end() {
    let mut hand = Hand::new();
    hand.challenged(AT(100));
    let mut offers = 0;
    let mut now = AT(101);
    for boot in 2..300 {
        now += Duration::from_millis(100);
        hand.device.boot = boot;
        let mut outputs = hand.speaks_up(now);
        if hand.relay.poll_timeout().is_some_and(|at| at <= now) {
            hand.relay.handle_timeout(now);
            outputs.extend(hand.outputs());
        }
        loop {
            let command = outputs.iter().find_map(|output| match output {
                Output::Command(command) => Some(command.clone()),
                _ => None,
            });
            outputs = match command {
                Some(Command::CheckStatement { .. }) => {
                    hand.done(Done::StatementChecked(Some(STATED_AT)), now)
                }
                Some(Command::ReadStatus { .. }) => {
                    hand.done(Done::Status(Status::Standing(standing(Verdict::Pass, 1))), now)
                }
                Some(Command::Offer { .. }) => {
                    offers += 1;
                    let offer = hand.offer(now);
                    hand.done(Done::Offered(Offered::Opened(offer)), now)
                }
                None => break,
                other => panic!("{other:?}"),
            };
        }
    }
    assert!(offers <= 10, "{offers} attestations opened in 30 s");
    assert!(offers > 1, "and yet a new boot is attested");
}

#[test]
fn evidence_of_another_offer_never_reaches_the_verifier() {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    let other = Nonce::from([77; 16]);
    let foreign = hand.evidence(other, offer.pcrs);
    let outputs = hand.says(Up::Evidence(foreign.clone()), AT(101));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Command(_))));
    // with the right tag it is restored, and there the nonce itself is compared
    let relabelled = Evidence { tag: offer.nonce.tag(), ..foreign };
    let outputs = hand.says(Up::Evidence(relabelled), AT(101));
    let restore = outputs.iter().find_map(|output| match output {
        Output::Command(Command::Restore(restore)) => Some(restore.offer.nonce),
        _ => None,
    });
    assert_eq!(restore, Some(offer.nonce));
}
