//! Flows without faults, with every single fault at every step, and with many at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::messages::{LaterReason, Outcome, Question, RefusedReason, Verdict};

use super::device::{Device, dense_log};
use super::keylime::Policy;
use super::logs::reference;
use super::world::{FAULTS, Fault, Lossy, World};

/// PASS is back so long after the last fault: the device's silence (80 s), its first retries, and two intervals.
const BACK_WITHIN: Duration = Duration::from_secs(240);

/// What happens in a flow beside attestations, after the second pass if nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    /// From the start: sessions are shorter than the interval.
    ShortSessions,
    /// A reboot, with the operator adding the device again where Keylime needs it.
    Reboot,
    /// A reboot after which the TPM's clock is not safe for a while.
    PowerCut,
    /// The device connects for each attestation and is as it was.
    Sleeps,
    /// A changed log: the device states it, Keylime fails it, and the operator acts.
    Tampering,
    /// From the start: the operator adds the device once it has waited for a while.
    Waits,
    /// Both records are removed, and the device enrols again.
    Removed,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    name: &'static str,
    ima_lines: usize,
    uefi_bytes: usize,
    turn: Turn,
    /// New IMA lines after each pass.
    grows: bool,
    /// Both sides have the same reference file.
    reference: bool,
    /// One bridge of several, which answers are sent to by name.
    via: bool,
}

const PLAIN: Flow = Flow {
    name: "quote only",
    ima_lines: 0,
    uefi_bytes: 0,
    turn: Turn::Nothing,
    grows: false,
    reference: false,
    via: false,
};

const FLOWS: [Flow; 14] = [
    PLAIN,
    Flow { name: "IMA and UEFI", ima_lines: 20, uefi_bytes: 40_000, grows: true, ..PLAIN },
    Flow { name: "a UEFI log in several batches", uefi_bytes: 100_000, ..PLAIN },
    Flow { name: "bulk IMA in several batches", ima_lines: 1330, grows: true, ..PLAIN },
    Flow { name: "reboot, quote only", turn: Turn::Reboot, ..PLAIN },
    Flow { name: "reboot with IMA", ima_lines: 20, turn: Turn::Reboot, ..PLAIN },
    Flow { name: "sessions shorter than the interval", turn: Turn::ShortSessions, ..PLAIN },
    Flow { name: "a device that sleeps", ima_lines: 20, turn: Turn::Sleeps, grows: true, ..PLAIN },
    Flow { name: "a power cut", turn: Turn::PowerCut, ..PLAIN },
    Flow {
        name: "tampering, and what the operator does then",
        ima_lines: 20,
        turn: Turn::Tampering,
        ..PLAIN
    },
    Flow { name: "waiting for the operator", turn: Turn::Waits, ..PLAIN },
    Flow { name: "removed from both services", turn: Turn::Removed, ..PLAIN },
    Flow { name: "a reference", ima_lines: 400, grows: true, reference: true, ..PLAIN },
    Flow { name: "one of several bridges", ima_lines: 20, grows: true, via: true, ..PLAIN },
];

fn world(flow: Flow, faults: BTreeMap<u64, Fault>) -> World {
    let mut device = Device::new("device-1", 1);
    if flow.ima_lines > 0 {
        device.grow(flow.ima_lines);
    }
    device.uefi = (flow.uefi_bytes > 0).then(|| dense_log(flow.uefi_bytes));
    device.sleep = (flow.turn == Turn::Sleeps).then_some(12);
    device.via = flow.via.then(|| "north".parse().unwrap());
    // an hour has too many events for a fault at each
    device.enrol_again_after = Duration::from_secs(if flow.turn == Turn::Removed { 30 } else { 3600 });
    let mut references: Arc<[Reference]> = Arc::new([]);
    if flow.reference {
        let reference = Arc::new(reference(300));
        device.reference = Some(reference.digest());
        device.reference_file = Some(reference);
        references = Arc::new([self::reference(300)]);
    }
    let policy = Policy { ima: flow.ima_lines > 0, uefi: flow.uefi_bytes > 0 };
    let mut world = World::new(device, policy, faults).with_references(references);
    world.operator = flow.turn != Turn::Waits;
    if flow.turn == Turn::ShortSessions {
        world.keylime.session_lifetime = Duration::from_secs(5);
    }
    world
}

/// Plays the flow to its end and on until the device passes after the last fault.
fn play(flow: Flow, faults: BTreeMap<u64, Fault>) -> World {
    let label = format!("{} with {faults:?}", flow.name);
    let mut world = world(flow, faults);
    if flow.turn == Turn::Waits {
        takes_its_turn(&mut world, flow.turn, &label);
    }
    let mut wanted = 0;
    for round in 0..4 {
        wanted += 1;
        let limit = world.now + BACK_WITHIN;
        let passed = world.run_until(limit, |world| world.passes() >= wanted);
        assert!(passed, "{label}: no pass {wanted} by {limit:?}: {:?}\n{}", world.dropped, world.tail());
        if flow.grows {
            world.device.grow(2);
        }
        if round == 1 || flow.turn == Turn::Sleeps {
            takes_its_turn(&mut world, flow.turn, &label);
            wanted = world.passes();
        }
    }
    // a fault may have struck after the last pass that was counted
    let since = world.last_fault;
    let limit = world.now.max(since + BACK_WITHIN);
    assert!(
        world.run_until(limit, |world| world.passes_since(since) > 0),
        "{label}: no pass after the fault"
    );
    check(&world, flow, &label);
    world
}

/// Runs until it is so, which is long before the time is up.
fn until(world: &mut World, label: &str, what: &str, done: impl Fn(&World) -> bool) {
    let limit = world.now + BACK_WITHIN;
    assert!(world.run_until(limit, done), "{label}: not {what}: {:?}\n{}", world.dropped, world.tail());
}

fn operator_adds(world: &mut World, label: &str) {
    let policy = world.policy;
    assert!(world.keylime.add(policy), "{label}: the registrar does not know the device");
}

fn takes_its_turn(world: &mut World, turn: Turn, label: &str) {
    let waits = |world: &World, reason| world.waiting.iter().any(|(_, told)| *told == reason);
    match turn {
        Turn::Nothing | Turn::ShortSessions => {}
        Turn::Reboot | Turn::PowerCut => {
            world.device.reboot();
            world.device.clock_unsafe = if turn == Turn::PowerCut { 3 } else { 0 };
            world.restart_agent();
            if world.policy.ima {
                until(world, label, "held after the reboot", |world| waits(world, LaterReason::Rebooted));
                operator_adds(world, label);
            }
        }
        Turn::Sleeps => {
            // told the outcome, it goes
            let told = world.accepted.len();
            until(world, label, "told the outcome", |world| world.accepted.len() >= told.max(1));
            world.disconnect();
            let limit = world.now + Duration::from_secs(12);
            world.run_until(limit, |_| false);
            world.connect();
        }
        Turn::Tampering => {
            world.device.tampered = true;
            until(world, label, "failed", |world| world.verdicts().contains(&Verdict::Fail));
            assert!(world.up_messages.contains_key("Statement"), "{label}: failed without its own statement");
            world.device.tampered = false;
            operator_adds(world, label);
        }
        Turn::Waits => {
            until(world, label, "waiting", |world| waits(world, LaterReason::NotEnrolled));
            operator_adds(world, label);
            world.operator = true;
        }
        Turn::Removed => {
            world.keylime.delete();
            world.keylime.regdelete();
            until(world, label, "enrolled again", |world| world.keylime.is_added());
        }
    }
}

fn check(world: &World, flow: Flow, label: &str) {
    assert_eq!(world.keylime.foreign_nonces, 0, "{label}: a PATCH with a foreign nonce");
    assert_eq!(world.bad_notices, [], "{label}: logged as an error");
    assert_eq!(world.refused, 0, "{label}: an honest device was refused");
    let failed = world.verdicts().contains(&Verdict::Fail);
    assert_eq!(
        failed,
        flow.turn == Turn::Tampering,
        "{label}: a false FAIL, or a hidden one: {:?}",
        world.reports
    );
}

#[test]
fn every_flow_passes_without_faults_and_drops_nothing() {
    for flow in FLOWS {
        let world = play(flow, BTreeMap::new());
        assert_eq!(world.dropped, [], "{}", flow.name);
        assert!(!world.verdicts().contains(&Verdict::Timeout), "{}", flow.name);
    }
}

#[test]
fn the_flows_have_in_them_what_they_are_named_for() {
    let said = |turn: Turn, kind: &str| {
        let flow = *FLOWS.iter().find(|flow| flow.turn == turn).unwrap();
        play(flow, BTreeMap::new()).up_messages.get(kind).copied().unwrap_or(0)
    };
    assert_eq!(said(Turn::Sleeps, "Unchanged"), 3);
    assert_eq!(said(Turn::PowerCut, "NotYet"), 3);
    assert!(said(Turn::Tampering, "Statement") >= 1);
    assert_eq!(said(Turn::Removed, "Enrol"), 2);
    assert!(said(Turn::Waits, "Ready") >= 2);
    let with_reference = FLOWS.iter().find(|flow| flow.reference).unwrap();
    let world = play(*with_reference, BTreeMap::new());
    let in_use = |asked: &Question| matches!(asked, Question::Need(need) if need.reference);
    assert!(world.asked_device.iter().any(|(asked, _)| in_use(asked)));
}

#[test]
fn a_steady_attestation_is_one_message_down_and_one_up_and_no_session() {
    let mut world = world(PLAIN, BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(200), |world| world.passes() == 2));
    let (before, sessions, offers) =
        (world.up_messages.clone(), world.keylime.sessions_opened, world.keylime.offers);
    assert!(world.run_until(Duration::from_secs(900), |world| world.passes() == 22));
    let mut expected = before;
    *expected.get_mut("Evidence").unwrap() += 20;
    assert_eq!(world.up_messages, expected);
    assert_eq!((world.keylime.sessions_opened, world.keylime.offers), (sessions, offers + 20));
}

/// Plays the flow once for every fault at every step.
fn every_single_fault(flow: Flow) {
    let steps = play(flow, BTreeMap::new()).events;
    assert!(steps > 40, "{steps} steps are not a whole flow");
    for step in 1..=steps {
        for fault in FAULTS {
            play(flow, BTreeMap::from([(step, fault)]));
        }
    }
}

macro_rules! every_single_fault_is_repaired {
    ($($name:ident: $flow:literal,)*) => {
        mod every_single_fault_at_every_step_is_repaired {
            $(#[test]
            fn $name() {
                super::every_single_fault(super::FLOWS[$flow]);
            })*

            #[test]
            fn in_each_of_the_flows() {
                assert_eq!(super::FLOWS.len(), [$($flow),*].len());
            }
        }
    };
}

every_single_fault_is_repaired! {
    of_a_quote_only_device: 0,
    with_ima_and_uefi_logs: 1,
    while_a_uefi_log_comes_in_batches: 2,
    while_a_long_ima_log_comes_in_batches: 3,
    over_a_reboot: 4,
    over_a_reboot_with_ima: 5,
    when_sessions_are_shorter_than_the_interval: 6,
    of_a_device_that_sleeps: 7,
    over_a_power_cut: 8,
    while_tampering_is_stated_and_failed: 9,
    while_the_operator_is_waited_for: 10,
    while_a_removed_device_enrols_again: 11,
    with_a_reference: 12,
    of_one_bridge_of_several: 13,
}

#[test]
fn seeded_combinations_of_faults_are_repaired() {
    let mut state = 0x5eed_u64;
    let mut draw = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for seed in 0..600 {
        let flow = FLOWS[seed % FLOWS.len()];
        // from the first contact into steady attestations
        let faults = (0..4)
            .map(|_| (1 + draw(250), FAULTS[usize::try_from(draw(FAULTS.len() as u64)).unwrap()]))
            .collect();
        play_with_patience(flow, faults, draw(u64::MAX), 60 + draw(60));
    }
}

/// Several faults may hide each other's repair, and lean messages get lost all the while, so only the time after the last one counts.
/// Half the flows reboot after so many events.
fn play_with_patience(flow: Flow, faults: BTreeMap<u64, Fault>, seed: u64, reboot_after: u64) {
    let label =
        format!("{} with {faults:?}, reboot after {reboot_after}, lean messages lost from {seed}", flow.name);
    let last = faults.keys().copied().max().unwrap_or(0).max(reboot_after);
    let mut world = world(flow, faults);
    world.operator = true;
    world.adds_again = true;
    world.lossy = Some(Lossy { seed, until: last });
    let limit = Duration::from_secs(7200);
    if seed.is_multiple_of(2) {
        assert!(world.run_until(limit, |world| world.events > reboot_after), "{label}: it never got so far");
        world.device.reboot();
        world.restart_agent();
    }
    while world.events <= last {
        // a device that sleeps says nothing unasked
        let next = world.now + Duration::from_secs(30);
        if !world.run_until(next.min(limit), |world| world.events > last) && flow.turn == Turn::Sleeps {
            world.disconnect();
            world.connect();
        }
        assert!(world.now < limit, "{label}: it never got so far");
    }
    let since = world.last_fault.max(world.now);
    let within = if flow.turn == Turn::Sleeps { BACK_WITHIN / 2 } else { BACK_WITHIN };
    let mut back = world.run_until(since + within, |world| world.passes_since(since) >= 2);
    if flow.turn == Turn::Sleeps {
        // wakes until it has been told twice
        for _ in 0..8 {
            world.disconnect();
            world.connect();
            let next = world.now + Duration::from_secs(30);
            back = back || world.run_until(next, |world| world.passes_since(since) >= 2);
        }
    }
    assert!(back, "{label}: {:?}\n{}", world.dropped, world.tail());
    check(&world, Flow { turn: Turn::Nothing, ..flow }, &label);
}

#[test]
fn a_device_waits_for_the_operator_and_attests_without_a_restart() {
    let mut world = world(PLAIN, BTreeMap::new());
    world.operator = false;
    assert!(!world.run_until(Duration::from_secs(1000), |world| world.passes() > 0));
    assert!(world.waiting.iter().all(|(_, reason)| *reason == LaterReason::NotEnrolled));
    assert!(world.waiting.len() > 3);
    let policy = world.policy;
    assert!(world.keylime.add(policy));
    let limit = world.now + Duration::from_secs(90);
    assert!(world.run_until(limit, |world| world.passes() > 0));
}

#[test]
fn a_device_whose_registration_was_deleted_enrols_again_by_itself_but_at_most_hourly() {
    let mut world = world(PLAIN, BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() > 0));
    world.operator = false;
    world.keylime.delete();
    world.keylime.regdelete();
    let limit = world.now + Duration::from_secs(3 * 3600);
    assert!(!world.run_until(limit, |world| world.passes() > 1));
    let enrolments = world.up_messages["Enrol"];
    assert!((2..=4).contains(&enrolments), "{enrolments} enrolments in three hours");
    let policy = world.policy;
    assert!(world.keylime.add(policy), "the registrar knows it again");
    let limit = world.now + Duration::from_secs(90);
    assert!(world.run_until(limit, |world| world.passes() > 1));
}

#[test]
fn a_bridge_restart_costs_no_session_thanks_to_the_ticket() {
    let mut world = world(PLAIN, BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 3));
    let sessions = world.keylime.sessions_opened;
    for round in 4..8 {
        world.restart_bridge();
        let limit = world.now + Duration::from_secs(60);
        assert!(world.run_until(limit, |world| world.passes() == round));
    }
    assert_eq!(world.keylime.sessions_opened, sessions);
}

#[test]
fn tampering_on_the_device_is_stated_by_it_and_fails_and_passes_again_after_the_operator_acted() {
    let mut world = world(FLOWS[1], BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
    world.device.tampered = true;
    let limit = world.now + Duration::from_secs(60);
    assert!(world.run_until(limit, |world| world.verdicts().contains(&Verdict::Fail)));
    assert!(world.up_messages["Statement"] > 0);
    world.device.tampered = false;
    let (policy, passes) = (world.policy, world.passes());
    assert!(world.keylime.add(policy));
    let limit = world.now + Duration::from_secs(400);
    assert!(world.run_until(limit, |world| world.passes() > passes), "{:?}", world.reports);
    assert_eq!(world.keylime.foreign_nonces, 0);
}

#[test]
fn a_silent_device_is_reported_as_timed_out_and_as_passing_once_it_is_back() {
    let mut world = world(PLAIN, BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
    world.on_the_way_up = Some(|_| Vec::new());
    let limit = world.now + Duration::from_secs(120);
    assert!(world.run_until(limit, |world| world.verdicts().contains(&Verdict::Timeout)));
    world.on_the_way_up = None;
    let passes = world.passes();
    let limit = world.now + Duration::from_secs(400);
    assert!(world.run_until(limit, |world| world.passes() > passes));
}

#[test]
fn a_device_that_sleeps_longer_than_keylime_waits_is_refused_with_the_remedy() {
    for (sleep, refused) in [(50, &[][..]), (51, &[RefusedReason::Sleep][..])] {
        let mut world = world(PLAIN, BTreeMap::new());
        world.device.sleep = Some(sleep);
        let limit = world.now + Duration::from_secs(60);
        world.run_until(limit, |_| false);
        assert_eq!(world.refusals, refused);
        assert_eq!(world.accepted.is_empty(), !refused.is_empty());
    }
    assert!(RefusedReason::Sleep.to_string().contains("quote_interval"));
}

#[test]
fn a_sleeping_device_is_told_the_outcome_and_is_not_challenged_unasked() {
    let mut world = world(PLAIN, BTreeMap::new());
    world.device.sleep = Some(0);
    assert!(world.run_until(Duration::from_secs(300), |world| !world.accepted.is_empty()));
    assert_eq!(world.accepted, [Outcome::Pass]);
    let offers = world.keylime.offers;
    // until the device's own silence is over it is left alone
    let limit = world.now + Duration::from_secs(55);
    world.run_until(limit, |_| false);
    assert_eq!(world.keylime.offers, offers);
    world.restart_agent();
    assert!(world.run_until(limit + Duration::from_secs(60), |world| world.accepted.len() == 2));
}
