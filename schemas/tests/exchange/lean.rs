//! Nothing is said that the other side holds, and whatever was left out wrongly costs one full answer.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::exchange::Delivery;
use keylime_mqtt_schemas::exchange::relay::{Command, Done, Notice, Output, Session};
use keylime_mqtt_schemas::messages::{
    Brief, Challenge, Digest, Evidence, LaterReason, Nonce, Question, Quote, ReadyTag, Unchanged, Up, Verdict,
};

use super::device::{Device, dense_log};
use super::hand::{AT, Hand};
use super::keylime::Policy;
use super::world::World;

const POLICIES: [Policy; 3] =
    [Policy { ima: false, uefi: false }, Policy { ima: true, uefi: false }, Policy { ima: true, uefi: true }];

/// A device that has passed twice, and what is said from now on is heard.
fn steady(policy: Policy) -> World {
    let mut device = Device::new("device-1", 1);
    if policy.ima {
        device.grow(20);
    }
    device.uefi = policy.uefi.then(|| dense_log(30_000));
    let mut world = World::new(device, policy, BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
    world.listen_anew();
    world
}

/// Runs for so many passes.
fn pass(world: &mut World, passes: usize) {
    let wanted = world.passes() + passes;
    let limit = world.now + Duration::from_secs(60 * passes as u64);
    let done = world.run_until(limit, |world| world.passes() == wanted);
    assert!(done, "{:?}\n{}", world.dropped, world.tail());
    assert!(!world.verdicts().contains(&Verdict::Fail));
    assert_eq!((world.keylime.foreign_nonces, world.refused), (0, 0));
}

fn evidence(world: &World) -> Vec<&Evidence> {
    let said = world.said.iter().map(|(up, _)| up);
    said.filter_map(|up| if let Up::Evidence(evidence) = up { Some(evidence) } else { None }).collect()
}

fn challenges(world: &World) -> Vec<&Challenge> {
    let asked = world.asked_device.iter().map(|(question, _)| question);
    asked.filter_map(|asked| if let Question::Challenge(one) = asked { Some(one) } else { None }).collect()
}

/// Whether each evidence was in full.
fn in_full(world: &World) -> Vec<bool> {
    evidence(world).iter().map(|evidence| matches!(evidence.quote, Quote::Full(_))).collect()
}

/// Challenges that ask for the full form.
fn asked_in_full(world: &World) -> usize {
    challenges(world).iter().filter(|challenge| challenge.full).count()
}

fn said_kinds(world: &World) -> Vec<&'static str> {
    world.said.iter().map(|(up, _)| up.kind()).collect()
}

fn asked_kinds(world: &World) -> Vec<&'static str> {
    world.asked_device.iter().map(|(question, _)| question.kind()).collect()
}

/// How everything was sent, up and down.
fn deliveries(world: &World) -> [Vec<Delivery>; 2] {
    let up = world.said.iter().map(|(_, delivery)| *delivery).collect();
    [up, world.asked_device.iter().map(|(_, delivery)| *delivery).collect()]
}

#[test]
fn a_steady_attestation_is_one_lean_challenge_and_one_lean_brief_evidence_without_values_or_lines() {
    for policy in POLICIES {
        let mut world = steady(policy);
        pass(&mut world, 20);
        assert_eq!(said_kinds(&world), ["Evidence"; 20], "{policy:?}");
        assert_eq!(asked_kinds(&world), ["Challenge"; 20], "{policy:?}");
        for evidence in evidence(&world) {
            let brief = matches!(evidence.quote, Quote::Brief(Brief { restart_count: None, .. }));
            assert!(brief && evidence.pcrs.is_none() && evidence.ima.is_none(), "{policy:?}: {evidence:?}");
        }
        for challenge in challenges(&world) {
            let lean = challenge.held.is_some() && !challenge.full && challenge.ticket.is_none();
            assert!(lean, "{policy:?}: {challenge:?}");
        }
        assert_eq!(deliveries(&world), [vec![Delivery::Lean; 20], vec![Delivery::Lean; 20]], "{policy:?}");
    }
}

#[test]
fn a_repeated_challenge_and_a_repeated_evidence_are_assured_and_the_same_as_before() {
    let mut world = steady(POLICIES[1]);
    world.on_the_way_up = Some(|_| Vec::new());
    let limit = world.now + Duration::from_secs(60);
    // the second one is on its way when the network is good again
    assert!(world.run_until(limit, |world| world.said.len() == 2));
    world.on_the_way_up = None;
    pass(&mut world, 1);
    let (asked, sent) = (challenges(&world), evidence(&world));
    assert_eq!((asked.len(), sent.len()), (2, 2));
    assert_eq!(asked[0].nonce, asked[1].nonce, "a new nonce would kill the evidence on its way");
    assert_eq!(sent[0], sent[1]);
    let expected = vec![Delivery::Lean, Delivery::Assured];
    assert_eq!(deliveries(&world), [expected.clone(), expected]);
}

#[test]
fn a_value_that_changed_travels_alone() {
    for policy in POLICIES {
        let mut world = steady(policy);
        world.device.extended.insert(1, 0x77);
        pass(&mut world, 2);
        assert_eq!(in_full(&world), [false, false], "{policy:?}");
        let sent = evidence(&world);
        let first = sent[0].pcrs.as_ref().unwrap();
        assert_eq!(first.iter().collect::<Vec<_>>(), [(1, &[0x77; 32])], "{policy:?}");
        assert_eq!(sent[1].pcrs, None, "{policy:?}: the bridge holds it now");
    }
}

#[test]
fn new_ima_lines_travel_alone_and_pcr_10_is_what_they_lead_to() {
    let mut world = steady(POLICIES[1]);
    world.device.grow(10);
    pass(&mut world, 2);
    assert_eq!(in_full(&world), [false, false]);
    let sent = evidence(&world);
    assert_eq!((&sent[0].pcrs, &sent[1].pcrs), (&None, &None));
    assert_eq!(sent[0].ima.as_ref().unwrap().offset, 20);
    assert_eq!(sent[1].ima, None);
}

#[test]
fn a_suspend_is_told_in_a_few_bytes() {
    let mut world = steady(POLICIES[1]);
    world.device.restarts += 1;
    pass(&mut world, 3);
    for evidence in evidence(&world) {
        // each time, since it is not in the statement of this boot
        let told = matches!(evidence.quote, Quote::Brief(Brief { restart_count: Some(1), .. }));
        assert!(told, "{evidence:?}");
    }
    assert_eq!(asked_in_full(&world), 0);
}

#[test]
fn a_wrong_guess_is_repaired_by_one_full_answer_and_the_next_is_brief_again() {
    type Change = fn(&mut Device);
    let changes: [(&str, Change); 2] = [
        ("the bridge holds another value", |device| {
            device.extended.insert(1, 0x77);
        }),
        ("a suspend that was not told", |device| device.restarts += 1),
    ];
    for (policy, (name, change)) in POLICIES.into_iter().flat_map(|policy| changes.map(|one| (policy, one))) {
        let mut world = steady(policy);
        change(&mut world.device);
        world.device.careless = 1;
        pass(&mut world, 3);
        assert_eq!(in_full(&world), [false, true, false, false], "{name} {policy:?}");
        assert_eq!(asked_in_full(&world), 1, "{name} {policy:?}");
    }
}

#[test]
fn an_agent_that_does_not_know_what_it_sent_last_answers_once_in_full_unasked() {
    for policy in POLICIES {
        let mut world = steady(policy);
        world.restart_agent();
        pass(&mut world, 3);
        assert_eq!(in_full(&world), [true, false, false], "{policy:?}");
        assert_eq!(asked_in_full(&world), 0, "{policy:?}");
    }
}

#[test]
fn a_bridge_that_holds_no_values_is_answered_once_in_full() {
    for policy in POLICIES {
        let mut world = steady(policy);
        world.restart_bridge();
        pass(&mut world, 3);
        assert_eq!(in_full(&world), [true, false, false], "{policy:?}");
        // where the IMA log stands at the line that the verifier names is known once it has passed what was stated
        let statements = said_kinds(&world).iter().filter(|kind| **kind == "Statement").count();
        assert_eq!(statements, usize::from(policy.ima), "{policy:?}");
    }
}

#[test]
fn a_broker_that_corrupts_every_brief_answer_costs_one_full_answer_per_attestation_and_never_a_fail() {
    fn with_brief(up: Up, lie: impl Fn(Brief) -> Brief) -> Vec<Up> {
        match up {
            Up::Evidence(Evidence { quote: Quote::Brief(brief), tag, pcrs, ima }) => {
                vec![Up::Evidence(Evidence { quote: Quote::Brief(lie(brief)), tag, pcrs, ima })]
            }
            other => vec![other],
        }
    }
    let lies: [fn(Up) -> Vec<Up>; 2] = [
        |up| with_brief(up, |brief| Brief { clock: brief.clock + 1, ..brief }),
        |up| {
            with_brief(up, |brief| {
                let mut signature = brief.signature.clone().into_vec();
                signature[0] ^= 1;
                Brief { signature: signature.try_into().unwrap(), ..brief }
            })
        },
    ];
    for (policy, lie) in POLICIES.into_iter().flat_map(|policy| lies.map(|lie| (policy, lie))) {
        let mut world = steady(policy);
        world.on_the_way_up = Some(lie);
        pass(&mut world, 10);
        let mut per_nonce: BTreeMap<Nonce, usize> = BTreeMap::new();
        for challenge in challenges(&world) {
            *per_nonce.entry(challenge.nonce).or_default() += usize::from(challenge.full);
        }
        assert_eq!(per_nonce.into_values().max(), Some(1), "{policy:?}");
        assert_eq!(in_full(&world).iter().filter(|full| **full).count(), 10, "{policy:?}");
        assert_eq!(world.bad_notices, [], "{policy:?}");
    }
}

/// A device that was awake once, and is not connected.
fn sleeping() -> World {
    let mut device = Device::new("device-1", 1);
    device.grow(20);
    device.sleep = Some(0);
    let mut world = World::new(device, POLICIES[1], BTreeMap::new());
    assert!(world.run_until(Duration::from_secs(300), |world| world.accepted.len() == 1));
    asleep(&mut world);
    world
}

fn asleep(world: &mut World) {
    world.disconnect();
    let limit = world.now + Duration::from_secs(60);
    world.run_until(limit, |_| false);
    world.listen_anew();
}

fn awake(world: &mut World) {
    let wanted = world.accepted.len() + 1;
    world.connect();
    let limit = world.now + Duration::from_secs(40);
    assert!(world.run_until(limit, |world| world.accepted.len() == wanted), "{}", world.tail());
    assert!(!world.verdicts().contains(&Verdict::Fail));
}

#[test]
fn a_sleeping_device_that_wakes_as_it_was_is_challenged_upon_a_few_bytes() {
    let mut world = sleeping();
    for _ in 0..4 {
        awake(&mut world);
        assert_eq!(said_kinds(&world), ["Unchanged", "Evidence"]);
        assert_eq!(asked_kinds(&world), ["Challenge", "Accepted"]);
        assert_eq!(in_full(&world), [false]);
        assert_eq!(deliveries(&world), [[Delivery::Lean; 2]; 2]);
        world.device.grow(1);
        asleep(&mut world);
    }
}

#[test]
fn a_device_that_wakes_otherwise_than_it_slept_says_so_in_full() {
    let mut world = sleeping();
    world.device.reference = Some(Digest::of(&[b"a new file"]));
    awake(&mut world);
    assert_eq!(said_kinds(&world), ["Ready", "Evidence"]);
}

#[test]
fn a_bridge_that_lost_its_memory_asks_again_and_gets_a_full_ready() {
    let mut world = sleeping();
    world.restart_bridge();
    let limit = world.now + Duration::from_secs(30);
    world.run_until(limit, |_| false);
    world.listen_anew();
    let sessions = world.keylime.sessions_opened;
    awake(&mut world);
    assert_eq!(said_kinds(&world)[..2], ["Unchanged", "Ready"]);
    let first = &world.asked_device[0].0;
    let again = matches!(first, Question::Later(later) if later.reason == LaterReason::Again);
    assert!(again, "{first:?}");
    assert_eq!(world.keylime.sessions_opened, sessions, "the ticket came with the Ready");
}

#[test]
fn a_few_bytes_that_are_not_answered_are_followed_by_a_full_ready() {
    let mut world = sleeping();
    world.on_the_way_up = Some(|up| if let Up::Unchanged(_) = up { Vec::new() } else { vec![up] });
    awake(&mut world);
    assert_eq!(said_kinds(&world), ["Unchanged", "Ready", "Evidence"]);
    assert_eq!(deliveries(&world)[0][1], Delivery::Assured);
}

/// The proof is asked for once the session is there, and nothing else.
fn goes_on(hand: &mut Hand) {
    let (session, nonce) = ("s".to_owned(), Nonce::from([200; 16]));
    let outputs = hand.done(Done::Session(Session::Opened { session, nonce, good_for: AT(50) }), AT(101));
    let asks = |output: &Output| match output {
        Output::Send(down, _) => matches!(down.question, Question::Prove(_)),
        _ => false,
    };
    assert!(!outputs.is_empty() && outputs.iter().all(asks), "{outputs:?}");
}

#[test]
fn an_unchanged_of_which_nothing_is_known_is_harmless_while_the_bridge_is_busy() {
    let mut hand = Hand::new();
    let outputs = hand.speaks_up(AT(100));
    assert!(matches!(outputs[..], [Output::Command(Command::OpenSession { .. })]), "{outputs:?}");
    let unknown = Unchanged { ready: ReadyTag::from([9; 8]), ima_entries: Some(5) };
    let outputs = hand.says(Up::Unchanged(unknown), AT(100));
    let dropped = matches!(outputs[..], [Output::Notice(Notice::Dropped { kind: "Unchanged", .. })]);
    assert!(dropped, "{outputs:?}");
    goes_on(&mut hand);
}

#[test]
fn an_unchanged_of_the_ready_at_hand_is_as_good_as_that_while_the_bridge_is_busy() {
    let mut hand = Hand::new();
    let ready = hand.described();
    hand.says(Up::Ready(ready.clone()), AT(100));
    let unchanged = Unchanged { ready: ready.tag(), ima_entries: None };
    assert_eq!(hand.says(Up::Unchanged(unchanged), AT(100)), []);
    goes_on(&mut hand);
}
