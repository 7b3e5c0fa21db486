//! A device in good standing: it passed lately, so what a broker says in its name, or to it, keeps it out for two intervals
//! after the last lie at most.

use std::collections::BTreeMap;

use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{
    Command, Done, Offered, Output, Requested, Session, StatedAt, Status, Submitted,
};
use keylime_mqtt_schemas::messages::{
    Blob, Later, LaterReason, Question, Ready, ReadyTag, Unchanged, Up, Verdict,
};

use super::device::Device;
use super::hand::{AT, Hand, STATED_AT, standing};
use super::keylime::{INTERVAL, Policy};
use super::world::World;

/// A device with an IMA policy that has passed twice.
fn passing() -> World {
    let mut world = World::new(with_a_log(), Policy { ima: true, uefi: false }, BTreeMap::new());
    assert!(world.run_until(AT(300), |world| world.passes() == 2));
    world
}

fn with_a_log() -> Device {
    let mut device = Device::new("device-1", 1);
    device.grow(20);
    device
}

fn silence(question: &mut Question) {
    *question = Question::Later(Later { seconds: u32::MAX, reason: LaterReason::Busy });
}

fn goes_on(world: &mut World, within: Time) {
    world.on_the_way_up = None;
    world.on_the_way_down = None;
    let since = world.now;
    let back = world.run_until(since + within, |world| world.passes_since(since) > 0);
    assert!(back, "{:?}\n{}", world.dropped, world.tail());
    assert!(!world.verdicts().contains(&Verdict::Fail));
}

#[test]
fn the_device_is_asked_by_itself_after_lies_of_five_intervals() {
    let mut world = passing();
    // they begin when the next attestation is due
    let due = world.now + INTERVAL * 9 / 10;
    world.run_until(due, |_| false);
    world.on_the_way_up = Some(|_| Vec::new());
    world.on_the_way_down = Some(silence);
    let until = world.now + INTERVAL * 5;
    world.run_until(until, |_| false);
    goes_on(&mut world, INTERVAL * 2);
}

/// Lies may begin before an attestation and last for five intervals; for ever nobody is asked.
#[test]
fn it_is_asked_at_least_once_in_an_interval_for_eight_of_them() {
    let mut hand = passed();
    let (mut asked, mut timeouts) = (vec![AT(102)], 0);
    while let Some(now) = hand.relay.poll_timeout().filter(|now| *now < AT(102) + INTERVAL * 20) {
        hand.relay.handle_timeout(now);
        let mut outputs = hand.outputs();
        while let Some(output) = outputs.pop() {
            match output {
                Output::Send(down, _) if matches!(down.question, Question::Challenge(_)) => asked.push(now),
                Output::Command(Command::Offer { .. }) => {
                    let offer = hand.offer(now);
                    outputs.extend(hand.done(Done::Offered(Offered::Opened(offer)), now));
                }
                Output::Command(Command::ReadStatus { .. }) => {
                    outputs.extend(hand.read(Verdict::Timeout, 1, now));
                }
                Output::Report(report) => timeouts += u32::from(report.verdict == Verdict::Timeout),
                _ => {}
            }
        }
    }
    let apart = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap();
    assert!(apart <= INTERVAL, "{asked:?}");
    let last = asked.last().unwrap().saturating_sub(AT(102));
    assert!(last >= INTERVAL * 7 && last <= INTERVAL * 9, "{asked:?}");
    assert_eq!(timeouts, 1);
}

/// Not only those that end where a batch ends.
#[test]
fn lines_that_the_log_never_had_are_not_asked_for_ever_after() {
    let told: [fn(Up) -> Vec<Up>; 2] = [|up| longer(up, 1000), |up| longer(up, 5000)];
    for (told, restart) in told.into_iter().flat_map(|told| [(told, false), (told, true)]) {
        let mut world = passing();
        world.on_the_way_up = Some(told);
        world.restart_agent();
        if restart {
            world.restart_bridge();
        }
        let until = world.now + INTERVAL * 3;
        world.run_until(until, |_| false);
        assert!(world.asked_device.iter().any(|(question, _)| matches!(question, Question::Need(_))));
        // the device speaks up within two minutes, its silence
        goes_on(&mut world, AT(130));
    }
}

fn longer(up: Up, by: u64) -> Vec<Up> {
    match up {
        Up::Ready(ready) => {
            vec![Up::Ready(Ready { ima_entries: ready.ima_entries.map(|lines| lines + by), ..ready })]
        }
        Up::Unchanged(unchanged) => {
            let ima_entries = unchanged.ima_entries.map(|lines| lines + by);
            vec![Up::Unchanged(Unchanged { ima_entries, ..unchanged })]
        }
        Up::Blob(blob) => {
            vec![Up::Blob(Blob { part: pack_ima(&b"\n".repeat(1000), None).try_into().unwrap(), ..blob })]
        }
        Up::Evidence(_) => Vec::new(),
        other => vec![other],
    }
}

/// Its length is not signed, and Keylime wants to be told of no less than it has seen.
#[test]
fn a_log_that_is_said_to_be_gone_or_shorter_delays_nothing() {
    let told: [fn(Up) -> Vec<Up>; 2] = [|up| followed_by(up, None), |up| followed_by(up, Some(1))];
    for told in told {
        let mut world = passing();
        world.on_the_way_up = Some(told);
        let so_far = world.passes();
        assert!(world.run_until(AT(600), |world| world.passes() > so_far));
        goes_on(&mut world, INTERVAL * 2);
        goes_on(&mut world, INTERVAL * 2);
        assert_eq!(world.bad_notices, []);
    }
}

/// The device's Ready once more, right behind its evidence, with another length of its log.
fn followed_by(up: Up, ima_entries: Option<u64>) -> Vec<Up> {
    let mut all = vec![up];
    if matches!(all[..], [Up::Evidence(_)]) {
        let Worked::Described(ready) = with_a_log().work(Work::Describe) else { unreachable!() };
        all.push(Up::Ready(Ready { ima_entries, ..ready }));
    }
    all
}

/// A device that has passed at `AT(102)`.
fn passed() -> Hand {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    hand.submitted(&offer, AT(101));
    hand.relay.handle_timeout(AT(102));
    hand.read(Verdict::Pass, 1, AT(102));
    hand
}

/// What the bridge does next by itself.
fn next_of(hand: &mut Hand) -> (Vec<Output>, Time) {
    let now = hand.relay.poll_timeout().expect("it goes on by itself");
    hand.relay.handle_timeout(now);
    (hand.outputs(), now)
}

#[test]
fn another_who_claims_to_sleep_does_not_end_it() {
    let mut hand = passed();
    let Worked::Described(ready) = Device::new("stranger", 9).work(Work::Describe) else { unreachable!() };
    let outputs = hand.says(Up::Ready(Ready { sleep: Some(0), ..ready }), AT(103));
    assert!(matches!(outputs[..], [Output::Command(Command::OpenSession { .. })]), "{outputs:?}");
    hand.done(Done::Session(Session::Wait(AT(5))), AT(103));
    let (outputs, now) = next_of(&mut hand);
    assert!(now <= AT(103) + INTERVAL * 2);
    let Some(Output::Command(Command::Offer { facts, .. })) = outputs.first() else { panic!("{outputs:?}") };
    assert_eq!(facts.ak, hand.device.ak());
}

/// An agent that was set to sleep, or run once, has stated so in the same boot.
#[test]
fn an_older_statement_of_the_same_boot_is_not_believed() {
    let mut hand = passed();
    let ready = hand.described();
    let outputs = hand.says(Up::Ready(Ready { sleep: Some(0), ..ready.clone() }), AT(103));
    assert!(matches!(outputs[..], [Output::Command(Command::CheckStatement { .. })]), "{outputs:?}");
    let older = StatedAt { clock: STATED_AT.clock - 1, ..STATED_AT };
    let outputs = hand.done(Done::StatementChecked(Some(older)), AT(103));
    let Some(Output::Command(Command::Offer { facts, .. })) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(facts.stated.sleep, None);
    hand.done(Done::Offered(Offered::Early(INTERVAL)), AT(103));
    assert!(hand.relay.poll_timeout().is_some_and(|at| at <= AT(104) + INTERVAL), "it is not let sleep");
    // a newer one is
    hand.says(Up::Ready(Ready { sleep: Some(0), ..ready }), AT(105));
    let newer = StatedAt { resets: STATED_AT.resets, restarts: 1, clock: 0 };
    let outputs = hand.done(Done::StatementChecked(Some(newer)), AT(105));
    assert!(matches!(
        outputs.last(),
        Some(Output::Command(Command::ReadStatus { .. } | Command::Offer { .. }))
    ));
}

/// The verifier keeps what it was asked for, or is asked again and again.
#[test]
fn offers_that_come_to_nothing_are_as_far_apart_as_others() {
    for nothing in [Offered::NothingRequested, Offered::Invalid("no".to_owned())] {
        let mut hand = Hand::new();
        hand.offering(AT(100));
        hand.done(Done::Offered(nothing.clone()), AT(100));
        let mut offers = 0;
        for tenth in 0..200_u32 {
            let now = AT(100) + AT(1) * tenth / 10;
            hand.relay.handle_timeout(now);
            let mut outputs = hand.outputs();
            outputs.extend(hand.speaks_up(now));
            for output in outputs {
                if matches!(output, Output::Command(Command::Offer { .. })) {
                    offers += 1;
                    hand.done(Done::Offered(nothing.clone()), now);
                }
            }
        }
        assert!((3..=4).contains(&offers), "{offers} in 20 s of {nothing:?}");
    }
}

/// A FAIL that stands may be the one before; the success that follows it must not be taken for the next evidence's.
#[test]
fn after_a_fail_of_before_the_standing_is_read_anew() {
    let mut hand = Hand::new();
    hand.offering(AT(100));
    // what was read at first
    hand.done(Done::Offered(Offered::Early(AT(1))), AT(100));
    hand.relay.handle_timeout(AT(101));
    hand.outputs();
    hand.done(Done::Status(Status::Standing(standing(Verdict::Fail, 3))), AT(101));
    let offer = hand.offer(AT(101));
    hand.done(Done::Offered(Offered::Opened(offer.clone())), AT(101));
    hand.bound(&offer, None, AT(102));
    hand.done(Done::Submitted(Submitted::Accepted(INTERVAL)), AT(102));
    let (outputs, now) = next_of(&mut hand);
    assert!(matches!(outputs.last(), Some(Output::Command(Command::ReadStatus { .. }))), "{outputs:?}");
    hand.read(Verdict::Fail, 3, now + AT(2));
    let (outputs, _) = next_of(&mut hand);
    assert!(matches!(outputs.last(), Some(Output::Command(Command::ReadStatus { .. }))), "{outputs:?}");
}

/// Its outcome may not have been seen, and then what the device had said when it passed last is of before.
#[test]
fn lines_that_the_verifier_was_given_are_told_of_whatever_is_said() {
    let mut hand = passed();
    hand.relay.handle_timeout(AT(112));
    hand.outputs();
    let mut offer = hand.offer(AT(112));
    offer.requested.push(Requested::Ima { offset: 5 });
    hand.done(Done::Offered(Offered::Opened(offer.clone())), AT(112));
    hand.bound(&offer, Some(b"\n".repeat(25)), AT(113));
    hand.done(Done::Submitted(Submitted::Accepted(INTERVAL)), AT(113));
    // nobody's tag, so the outcome is not waited for, and the device asked without its word
    hand.says(Up::Unchanged(Unchanged { ready: ReadyTag::from([7; 8]), ima_entries: None }), AT(113));
    let (_, now) = next_of(&mut hand);
    let outputs = hand.read(Verdict::Pass, 2, now);
    let Some(Output::Command(Command::Offer { facts, .. })) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(facts.ima_entries, Some(30));
    hand.done(Done::Offered(Offered::Early(INTERVAL)), now);
    // another story of the same boot
    for (sleep, ima_entries) in [(1, None), (2, Some(1))] {
        let ready = hand.described();
        hand.says(Up::Ready(Ready { sleep: Some(sleep), ima_entries, ..ready }), now);
        hand.done(Done::StatementChecked(Some(STATED_AT)), now);
        let outputs = hand.read(Verdict::Pass, 2, now);
        let Some(Output::Command(Command::Offer { facts, .. })) = outputs.last() else {
            panic!("{outputs:?}")
        };
        assert_eq!(facts.ima_entries, Some(30));
        hand.done(Done::Offered(Offered::Early(INTERVAL)), now);
    }
}
