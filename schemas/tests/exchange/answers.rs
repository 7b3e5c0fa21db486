//! Every answer that Keylime can give has its reaction: what the device is told, what is asked next, and that the device
//! passes afterwards without anybody touching it.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{
    Activated, Done, Notice, Offered, Proven, Registered, Session, Status, Submitted, Unavailable,
};
use keylime_mqtt_schemas::messages::{LaterReason, RefusedReason, Verdict};

use super::device::Device;
use super::keylime::{INTERVAL, Policy};
use super::world::World;

const SILENT: Unavailable = Unavailable { retry_after: None };
const BUSY: Unavailable = Unavailable { retry_after: Some(Duration::from_secs(17)) };

fn new_device() -> World {
    World::new(Device::new("device-1", 1), Policy::default(), BTreeMap::new())
}

/// A device that has passed twice and is resting.
fn passing() -> World {
    let mut world = new_device();
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
    world.asked.clear();
    world.waiting.clear();
    world
}

/// Gives the answer once, and runs until the device passes again.
fn answered(mut world: World, command: &'static str, answer: Done) -> World {
    world.scripted.push((command, answer));
    let passes = world.passes();
    let limit = world.now + Duration::from_secs(700);
    let back = world.run_until(limit, |world| world.scripted.is_empty() && world.passes() > passes);
    assert!(back, "after {command}: {:?}\n{}", world.reports, world.tail());
    assert!(!world.verdicts().contains(&Verdict::Fail));
    assert_eq!(world.keylime.foreign_nonces, 0);
    world
}

fn told(world: &World) -> Vec<LaterReason> {
    world.waiting.iter().map(|(_, reason)| *reason).collect()
}

/// What was asked of Keylime, from the first command of this kind on.
fn asked_after(world: &World, command: &str) -> Vec<&'static str> {
    world.asked.iter().map(|(_, kind)| *kind).skip_while(|kind| *kind != command).skip(1).collect()
}

/// From the scripted answer to the next command of its kind.
fn wait_after(world: &World, command: &str) -> Time {
    let mut times = world.asked.iter().filter(|(_, kind)| *kind == command).map(|(at, _)| *at);
    let first = times.next().unwrap();
    times.next().unwrap().saturating_sub(first)
}

#[test]
fn a_registrar_that_does_not_answer_is_asked_again_when_the_device_comes_back() {
    for unavailable in [SILENT, BUSY] {
        let world =
            answered(new_device(), "Register", Done::Registered(Registered::Unavailable(unavailable)));
        assert_eq!(told(&world), [LaterReason::Keylime]);
        assert!(wait_after(&world, "Register") >= unavailable.retry_after.unwrap_or_default(), "Retry-After");
    }
    let world = answered(new_device(), "Activate", Done::Activated(Activated::Unavailable(SILENT)));
    assert_eq!(asked_after(&world, "Activate").first(), Some(&"Activate"), "the same tag for the same blob");
}

#[test]
fn a_refused_registration_is_told_with_its_reason_and_tried_again_later() {
    for reason in [RefusedReason::UnknownCa, RefusedReason::NotAdmitted, RefusedReason::OtherTpm] {
        let world = answered(new_device(), "Register", Done::Registered(Registered::Refused(reason)));
        assert_eq!(world.refusals, [reason]);
        assert!(wait_after(&world, "Register") >= Duration::from_secs(300));
    }
}

#[test]
fn an_activation_that_the_registrar_refuses_leads_to_a_new_enrolment() {
    for answer in [Activated::WrongTag, Activated::Unknown] {
        let world = answered(new_device(), "Activate", Done::Activated(answer));
        assert!(asked_after(&world, "Activate").contains(&"Register"), "{answer:?}");
    }
}

#[test]
fn a_session_that_cannot_be_had_makes_the_device_wait_as_long_as_is_said() {
    let world = answered(new_device(), "OpenSession", Done::Session(Session::Wait(Duration::from_secs(42))));
    assert_eq!(told(&world), [LaterReason::Busy]);
    assert!(wait_after(&world, "OpenSession") >= Duration::from_secs(42));

    let world = answered(new_device(), "OpenSession", Done::Session(Session::Unavailable(BUSY)));
    assert_eq!(told(&world), [LaterReason::Keylime]);
    assert!(wait_after(&world, "OpenSession") >= Duration::from_secs(17), "Retry-After");
}

#[test]
fn a_proof_has_a_reaction_for_each_answer() {
    let world = answered(new_device(), "Prove", Done::Proven(Proven::NotEnrolled));
    assert_eq!(told(&world), [LaterReason::NotEnrolled]);

    let world = answered(new_device(), "Prove", Done::Proven(Proven::BadProof));
    assert_eq!(world.refusals, [RefusedReason::OtherAk]);

    for answer in [Proven::SessionGone, Proven::Unavailable(SILENT)] {
        let world = answered(new_device(), "Prove", Done::Proven(answer));
        assert_eq!(
            asked_after(&world, "Prove").first(),
            Some(&"OpenSession"),
            "a session is good for one proof"
        );
    }
}

#[test]
fn a_refused_token_costs_one_proof() {
    let world = answered(passing(), "Offer", Done::Offered(Offered::TokenRejected));
    assert_eq!(asked_after(&world, "Offer")[..3], ["OpenSession", "Prove", "Offer"]);

    let world = answered(passing(), "ReadStatus", Done::Status(Status::TokenRejected));
    assert!(asked_after(&world, "ReadStatus").contains(&"OpenSession"));
}

#[test]
fn a_token_refused_with_the_evidence_costs_one_proof_and_the_same_evidence_goes_to_the_same_index() {
    let world = answered(passing(), "Submit", Done::Submitted(Submitted::TokenRejected));
    assert_eq!(asked_after(&world, "Submit")[..3], ["OpenSession", "Prove", "Submit"]);
}

#[test]
fn a_verdict_that_was_lost_with_a_restarted_verifier_is_not_waited_for_longer_than_the_interval() {
    // taken, and never judged
    let world = answered(passing(), "Submit", Done::Submitted(Submitted::Accepted(INTERVAL)));
    assert!(world.verdicts().contains(&Verdict::Pending));
    // a look at the verdict every two seconds, and the exchange itself
    assert!(wait_after(&world, "Submit") <= INTERVAL + Duration::from_secs(4), "{:?}", world.asked);
}

#[test]
fn a_token_refused_right_after_it_was_given_is_not_asked_for_in_a_loop() {
    let mut world = passing();
    for _ in 0..6 {
        world.scripted.push(("Offer", Done::Offered(Offered::TokenRejected)));
    }
    let sessions = world.keylime.sessions_opened;
    let limit = world.now + Duration::from_secs(20);
    world.run_until(limit, |_| false);
    assert!(world.keylime.sessions_opened - sessions <= 5, "{}", world.keylime.sessions_opened - sessions);
}

#[test]
fn an_offer_has_a_reaction_for_each_answer() {
    let world = answered(passing(), "Offer", Done::Offered(Offered::NotEnrolled));
    assert_eq!(told(&world), [LaterReason::NotEnrolled]);

    let world = answered(passing(), "Offer", Done::Offered(Offered::NothingRequested));
    assert_eq!(told(&world), [LaterReason::NoPolicy]);

    let world = answered(passing(), "Offer", Done::Offered(Offered::Early(Duration::from_secs(9))));
    assert!(wait_after(&world, "Offer") >= Duration::from_secs(9), "Retry-After");
    assert_eq!(told(&world), [], "the device need not know");

    let world = answered(passing(), "Offer", Done::Offered(Offered::Conflict));
    assert!(wait_after(&world, "Offer") >= Duration::from_secs(1));

    for unavailable in [SILENT, BUSY] {
        let world = answered(passing(), "Offer", Done::Offered(Offered::Unavailable(unavailable)));
        assert!(wait_after(&world, "Offer") >= unavailable.retry_after.unwrap_or_default());
    }

    let world =
        answered(passing(), "Offer", Done::Offered(Offered::Invalid("ima_log is required".to_owned())));
    assert_eq!(world.refusals, [RefusedReason::Offer]);
    assert!(matches!(world.bad_notices[..], [Notice::Invalid { what: "capabilities", .. }]));
}

#[test]
fn a_submission_has_a_reaction_for_each_answer() {
    for answer in [Submitted::Gone, Submitted::Superseded] {
        let world = answered(passing(), "Submit", Done::Submitted(answer));
        let next = asked_after(&world, "Submit").into_iter().find(|kind| ["Offer", "Submit"].contains(kind));
        assert_eq!(next, Some("Offer"), "a new nonce");
    }

    let world = answered(passing(), "Submit", Done::Submitted(Submitted::Unavailable(BUSY)));
    assert_eq!(asked_after(&world, "Submit").first(), Some(&"Submit"), "the same PATCH to the same index");
    assert!(wait_after(&world, "Submit") >= Duration::from_secs(17), "Retry-After");

    let world = answered(passing(), "Submit", Done::Submitted(Submitted::Invalid("422".to_owned())));
    assert_eq!(told(&world), [LaterReason::Unusable]);
    assert!(matches!(world.bad_notices[..], [Notice::Invalid { what: "evidence", .. }]));

    // an answer was lost and the evidence had been taken: the outcome is read
    let world = answered(passing(), "Submit", Done::Submitted(Submitted::AlreadyAccepted));
    assert_eq!(asked_after(&world, "Submit").first(), Some(&"ReadStatus"));
}

#[test]
fn a_status_that_cannot_be_read_is_read_again_and_a_device_that_is_gone_waits() {
    let world = answered(passing(), "ReadStatus", Done::Status(Status::Unavailable(SILENT)));
    assert_eq!(asked_after(&world, "ReadStatus").first(), Some(&"ReadStatus"));

    let world = answered(passing(), "ReadStatus", Done::Status(Status::Gone));
    assert_eq!(told(&world), [LaterReason::NotEnrolled]);
}

#[test]
fn a_device_for_which_another_bridge_attests_is_left_to_it_for_longer_and_longer_and_nothing_is_said_of_it() {
    let mut world = passing();
    let early = || ("Offer", Done::Offered(Offered::Early(Duration::from_secs(6))));
    // the first may be a matter of clocks; after the others this bridge has taken no evidence for longer than the interval
    world.scripted.extend((0..4).map(|_| early()));
    let limit = world.now + Duration::from_secs(1200);
    let passes = world.passes();
    assert!(world.run_until(limit, |world| world.scripted.is_empty() && world.passes() > passes));
    let offers: Vec<Time> =
        world.asked.iter().filter(|(_, kind)| *kind == "Offer").map(|(at, _)| *at).collect();
    let waits: Vec<Time> = offers.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    // 10 s doubled, less a half at most for the jitter; then the device, which nobody serves here, speaks up
    for (wait, least) in waits.iter().zip([6, 10, 20]) {
        assert!(*wait >= Duration::from_secs(least), "{waits:?}");
    }
    assert!(!world.verdicts().contains(&Verdict::Timeout), "the other bridge may have said PASS");
    assert_eq!(
        world.bad_notices,
        [Notice::Superseded, Notice::Superseded],
        "of three times the first and the second"
    );
}

#[test]
fn a_device_left_to_another_bridge_that_is_gone_speaks_up_and_is_served_at_once() {
    let mut world = passing();
    world.scripted.push(("Submit", Done::Submitted(Submitted::Superseded)));
    assert!(world.run_until(world.now + Duration::from_secs(60), |world| world.scripted.is_empty()));
    let (passes, now) = (world.passes(), world.now);
    world.restart_agent();
    assert!(
        world.run_until(now + Duration::from_secs(8), |world| world.passes() > passes),
        "{}",
        world.tail()
    );
}

#[test]
fn superseded_evidence_is_said_aloud_since_somebody_else_attests_for_the_device() {
    let world = answered(passing(), "Submit", Done::Submitted(Submitted::Superseded));
    assert_eq!(world.bad_notices, [Notice::Superseded]);
}
