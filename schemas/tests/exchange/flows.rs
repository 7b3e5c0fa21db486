//! Flows without faults, with every single fault at every step, and with many at once.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::messages::{LaterReason, Outcome, RefusedReason, Verdict};

use super::device::{Device, dense_log};
use super::keylime::Policy;
use super::world::{FAULTS, Fault, Lossy, World};

/// PASS is back so long after the last fault: the device's silence (80 s), its first retries, and two intervals.
const BACK_WITHIN: Duration = Duration::from_secs(240);

#[derive(Debug, Clone, Copy)]
struct Flow {
    name: &'static str,
    ima_lines: usize,
    uefi_bytes: usize,
    /// A reboot after the second pass, with the operator adding the device again where Keylime needs it.
    reboot: bool,
    /// New IMA lines after each pass.
    grows: bool,
    short_session: bool,
}

const PLAIN: Flow = Flow {
    name: "quote only",
    ima_lines: 0,
    uefi_bytes: 0,
    reboot: false,
    grows: false,
    short_session: false,
};

const FLOWS: [Flow; 7] = [
    PLAIN,
    Flow { name: "IMA and UEFI", ima_lines: 20, uefi_bytes: 40_000, grows: true, ..PLAIN },
    Flow { name: "a UEFI log in several batches", uefi_bytes: 100_000, ..PLAIN },
    Flow { name: "bulk IMA in several batches", ima_lines: 1330, grows: true, ..PLAIN },
    Flow { name: "reboot, quote only", reboot: true, ..PLAIN },
    Flow { name: "reboot with IMA", ima_lines: 20, reboot: true, ..PLAIN },
    Flow { name: "sessions shorter than the interval", short_session: true, ..PLAIN },
];

fn world(flow: Flow, faults: BTreeMap<u64, Fault>) -> World {
    let mut device = Device::new("device-1", 1);
    if flow.ima_lines > 0 {
        device.grow(flow.ima_lines);
    }
    device.uefi = (flow.uefi_bytes > 0).then(|| dense_log(flow.uefi_bytes));
    let policy = Policy { ima: flow.ima_lines > 0, uefi: flow.uefi_bytes > 0 };
    let mut world = World::new(device, policy, faults);
    if flow.short_session {
        world.keylime.session_lifetime = Duration::from_secs(5);
    }
    world
}

/// Plays the flow to its end and on until the device passes after the last fault.
fn play(flow: Flow, faults: BTreeMap<u64, Fault>) -> World {
    let label = format!("{} with {faults:?}", flow.name);
    let mut world = world(flow, faults);
    let mut wanted = 0;
    for round in 0..4 {
        wanted += 1;
        let limit = world.now + BACK_WITHIN;
        let passed = world.run_until(limit, |world| world.passes() >= wanted);
        assert!(passed, "{label}: no pass {wanted} by {limit:?}: {:?}\n{}", world.dropped, world.tail());
        if flow.grows {
            world.device.grow(2);
        }
        if flow.reboot && round == 1 {
            world.device.reboot();
            world.restart_agent();
            if flow.ima_lines > 0 {
                let limit = world.now + BACK_WITHIN;
                let held = world.run_until(limit, |world| {
                    world.waiting.iter().any(|(_, reason)| *reason == LaterReason::Rebooted)
                });
                assert!(held, "{label}: not held after the reboot");
                let policy = world.policy;
                assert!(world.keylime.add(policy), "{label}");
            }
        }
    }
    // a fault may have struck after the last pass that was counted
    let since = world.last_fault;
    let limit = world.now.max(since + BACK_WITHIN);
    assert!(
        world.run_until(limit, |world| world.passes_since(since) > 0),
        "{label}: no pass after the fault"
    );
    check(&world, &label);
    world
}

fn check(world: &World, label: &str) {
    assert_eq!(world.keylime.foreign_nonces, 0, "{label}: a PATCH with a foreign nonce");
    assert_eq!(world.bad_notices, [], "{label}: logged as an error");
    assert_eq!(world.refused, 0, "{label}: an honest device was refused");
    assert!(!world.verdicts().contains(&Verdict::Fail), "{label}: a false FAIL: {:?}", world.reports);
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
        let faults = (0..4)
            .map(|_| (1 + draw(90), FAULTS[usize::try_from(draw(FAULTS.len() as u64)).unwrap()]))
            .collect();
        play_with_patience(flow, faults, draw(u64::MAX));
    }
}

/// Several faults may hide each other's repair, and lean messages get lost all the while, so only the time after the last one counts.
fn play_with_patience(flow: Flow, faults: BTreeMap<u64, Fault>, seed: u64) {
    let label = format!("{} with {faults:?} and lean messages lost from {seed}", flow.name);
    let last = faults.keys().copied().max().unwrap_or(0);
    let mut world = world(Flow { reboot: false, ..flow }, faults);
    world.lossy = Some(Lossy { seed, until: last });
    let limit = Duration::from_secs(7200);
    assert!(world.run_until(limit, |world| world.events > last), "{label}: it never got so far");
    let since = world.last_fault.max(world.now);
    let back = world.run_until(since + BACK_WITHIN, |world| world.passes_since(since) >= 2);
    assert!(back, "{label}: {:?}\n{}", world.dropped, world.tail());
    check(&world, &label);
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
