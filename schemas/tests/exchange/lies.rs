//! What a broker can change on the way costs time at most: no false FAIL, no false PASS, no foreign nonce.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::compact::{pack_ima, unpack_ima};
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{Command, Done, Output, Registered};
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    Blob, BootTag, Brief, Enrol, Evidence, LogKind, PcrMask, PcrValues, Proof, Question, Quote, Ready,
    Signed, Statement, Unchanged, Up, Verdict,
};

use super::device::{Device, dense_log};
use super::hand::{AT, Hand};
use super::keylime::Policy;
use super::world::World;

fn altered(signed: &Signed) -> Signed {
    let mut attest = signed.attest.as_slice().to_vec();
    *attest.last_mut().unwrap() ^= 1;
    Signed { attest: attest.try_into().unwrap(), signature: signed.signature.clone() }
}

fn altered_quote(quote: &Quote) -> Quote {
    match quote {
        Quote::Full(signed) => Quote::Full(altered(signed)),
        Quote::Brief(brief) => Quote::Brief(Brief { clock: brief.clock ^ 1, ..brief.clone() }),
    }
}

fn altered_signature(quote: &Quote) -> Quote {
    match quote {
        Quote::Full(signed) => {
            let signature = changed(signed.signature.as_slice()).try_into().unwrap();
            Quote::Full(Signed { signature, ..signed.clone() })
        }
        Quote::Brief(brief) => {
            let signature = changed(brief.signature.as_slice()).try_into().unwrap();
            Quote::Brief(Brief { signature, ..brief.clone() })
        }
    }
}

/// The value of PCR 0 is another, whether it was sent or not.
fn altered_values(pcrs: Option<&PcrValues>) -> PcrValues {
    let lie = PcrValues::new(PcrMask::try_from(1).unwrap(), vec![[0xee; 32]]).unwrap();
    pcrs.cloned().unwrap_or_default().overlaid(&lie)
}

fn changed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.first_mut() {
        *byte ^= 1;
    }
    bytes
}

/// What arrives instead of what was sent.
type Lie = fn(Up) -> Vec<Up>;

const LIES: [(&str, Lie); 14] = [
    ("an edited boot time", |up| match up {
        Up::Ready(ready) => vec![Up::Ready(Ready { boot_time: ready.boot_time + 1_000_000, ..ready })],
        other => vec![other],
    }),
    ("another AK in Ready", |up| match up {
        Up::Ready(ready) => {
            let other = Device::new("other", 9).work(Work::Describe);
            let Worked::Described(other) = other else { unreachable!() };
            vec![Up::Ready(Ready { ak_public: other.ak_public, ..ready })]
        }
        other => vec![other],
    }),
    ("an edited quote", |up| match up {
        Up::Evidence(evidence) => {
            vec![Up::Evidence(Evidence { quote: altered_quote(&evidence.quote), ..evidence })]
        }
        other => vec![other],
    }),
    ("an edited signature", |up| match up {
        Up::Evidence(evidence) => {
            vec![Up::Evidence(Evidence { quote: altered_signature(&evidence.quote), ..evidence })]
        }
        other => vec![other],
    }),
    ("a restart of the TPM that was none", |up| match up {
        Up::Evidence(Evidence { quote: Quote::Brief(brief), tag, pcrs, ima }) => {
            let quote = Quote::Brief(Brief { restart_count: Some(77), ..brief });
            vec![Up::Evidence(Evidence { quote, tag, pcrs, ima })]
        }
        other => vec![other],
    }),
    ("edited PCR values", |up| match up {
        Up::Evidence(evidence) => {
            let pcrs = Some(altered_values(evidence.pcrs.as_ref()));
            vec![Up::Evidence(Evidence { pcrs, ..evidence })]
        }
        other => vec![other],
    }),
    ("no PCR values", |up| match up {
        Up::Evidence(evidence) => vec![Up::Evidence(Evidence { pcrs: None, ..evidence })],
        other => vec![other],
    }),
    ("edited IMA lines", |up| match up {
        Up::Evidence(Evidence { ima: Some(mut ima), tag, quote, pcrs }) => {
            let lines = unpack_ima(ima.packed.as_slice(), MAX_INLINE_IMA, None).unwrap();
            ima.packed = pack_ima(&changed(&lines), None).try_into().unwrap();
            vec![Up::Evidence(Evidence { ima: Some(ima), tag, quote, pcrs })]
        }
        other => vec![other],
    }),
    ("packed IMA lines with another byte", |up| match up {
        Up::Evidence(Evidence { ima: Some(mut ima), tag, quote, pcrs }) => {
            ima.packed = changed(ima.packed.as_slice()).try_into().unwrap();
            vec![Up::Evidence(Evidence { ima: Some(ima), tag, quote, pcrs })]
        }
        other => vec![other],
    }),
    ("no IMA lines", |up| match up {
        Up::Evidence(evidence) => vec![Up::Evidence(Evidence { ima: None, ..evidence })],
        other => vec![other],
    }),
    ("an edited UEFI part", |up| match up {
        Up::Blob(blob) if blob.log == LogKind::Uefi => {
            let part = changed(blob.part.as_slice()).try_into().unwrap();
            vec![Up::Blob(Blob { part, ..blob })]
        }
        other => vec![other],
    }),
    ("an edited proof", |up| match up {
        Up::Proof(proof) => vec![Up::Proof(Proof { signed: altered(&proof.signed), ..proof })],
        other => vec![other],
    }),
    ("an edited statement", |up| match up {
        Up::Statement(statement) => {
            vec![Up::Statement(Statement { signed: altered(&statement.signed), ..statement })]
        }
        other => vec![other],
    }),
    ("everything twice", |up| vec![up.clone(), up]),
];

fn honest() -> World {
    let mut device = Device::new("device-1", 1);
    device.grow(20);
    device.uefi = Some(dense_log(30_000));
    World::new(device, Policy { ima: true, uefi: true }, BTreeMap::new())
}

#[test]
fn no_lie_from_the_first_message_on_makes_a_false_fail_and_the_device_passes_after_it_stops() {
    for (name, lie) in LIES {
        let mut world = honest();
        world.on_the_way_up = Some(lie);
        world.run_until(Duration::from_secs(1200), |_| false);
        assert_ends_well(world, name);
    }
}

#[test]
fn no_lie_in_the_middle_makes_a_false_fail_and_the_device_passes_after_it_stops() {
    for (name, lie) in LIES {
        for also_restart in [false, true] {
            let mut world = honest();
            assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
            world.on_the_way_up = Some(lie);
            world.device.grow(2);
            if also_restart {
                world.restart_bridge();
            }
            let limit = world.now + Duration::from_secs(600);
            world.run_until(limit, |_| false);
            assert_ends_well(world, name);
        }
    }
}

type Edit = fn(&mut Question);

/// What a device is asked, so that it states truthfully what is not so of what it was to be asked.
const QUESTIONS: [(&str, Edit); 5] = [
    ("no line of the IMA log asked for", |question| {
        if let Question::Challenge(challenge) = question {
            challenge.ima_offset = None;
        }
    }),
    ("no line asked for, and none to be stated", |question| match question {
        Question::Challenge(challenge) => challenge.ima_offset = None,
        Question::State(state) => state.ima_from = None,
        _ => {}
    }),
    ("a later line asked for", |question| {
        if let Question::Challenge(challenge) = question {
            challenge.ima_offset = challenge.ima_offset.map(|from| from + 2);
        }
    }),
    ("a later line asked for, and to be stated", |question| match question {
        Question::Challenge(challenge) => challenge.ima_offset = challenge.ima_offset.map(|from| from + 2),
        Question::State(state) => state.ima_from = state.ima_from.map(|from| from + 2),
        _ => {}
    }),
    ("a later line to be stated", |question| {
        if let Question::State(state) = question {
            state.ima_from = state.ima_from.map(|from| from + 2);
        }
    }),
];

#[test]
fn no_lie_in_a_question_has_a_device_state_what_would_fail_it() {
    for (name, lie) in QUESTIONS {
        for also_restart in [false, true] {
            let mut world = honest();
            assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
            world.on_the_way_down = Some(lie);
            if also_restart {
                world.restart_bridge();
            }
            for _ in 0..20 {
                // before each attestation, so that none is explained by the one before
                world.device.grow(2);
                let limit = world.now + Duration::from_secs(10);
                world.run_until(limit, |_| false);
            }
            assert_ends_well(world, name);
        }
    }
}

/// What is taken up of a log that does not exist must not be asked for ever after.
#[test]
fn invented_lines_of_a_log_keep_a_device_out_no_longer_than_they_are_told() {
    let mut world =
        World::new(Device::new("device-1", 1), Policy { ima: true, uefi: false }, BTreeMap::new());
    world.device.grow(20);
    assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
    world.on_the_way_up = Some(|up| match up {
        Up::Ready(ready) => {
            vec![Up::Ready(Ready { ima_entries: ready.ima_entries.map(|lines| lines + 1000), ..ready })]
        }
        Up::Unchanged(unchanged) => {
            let ima_entries = unchanged.ima_entries.map(|lines| lines + 1000);
            vec![Up::Unchanged(Unchanged { ima_entries, ..unchanged })]
        }
        Up::Blob(blob) => {
            let part = pack_ima(&b"\n".repeat(1000), None).try_into().unwrap();
            vec![Up::Blob(Blob { part, ..blob })]
        }
        Up::Evidence(_) => Vec::new(),
        other => vec![other],
    });
    world.restart_bridge();
    world.restart_agent();
    let limit = world.now + Duration::from_secs(100);
    world.run_until(limit, |_| false);
    assert!(world.asked_device.iter().any(|(question, _)| matches!(question, Question::Need(_))));
    world.on_the_way_up = None;
    let since = world.now;
    // the device speaks up by itself
    assert!(world.run_until(since + Duration::from_secs(120), |world| world.passes_since(since) > 0));
    assert!(!world.verdicts().contains(&Verdict::Fail));
}

/// The device of [`honest`] in its first boot.
fn former_boot() -> Device {
    let mut device = Device::new("device-1", 1);
    device.uefi = Some(dense_log(30_000));
    device
}

/// The boot after it.
fn present_boot() -> BootTag {
    let mut device = former_boot();
    device.reboot();
    device.marker().tag()
}

/// A broker keeps a reboot from the bridge, and has the device answer all the same: its quote is good, and its logs are others.
#[test]
fn a_quote_of_another_boot_than_the_one_the_bridge_knows_of_is_never_submitted() {
    let hidden: [(&str, Lie); 2] = [
        ("nothing is heard of the new boot", |up| match up {
            Up::Ready(_) | Up::Unchanged(_) => Vec::new(),
            other => vec![other],
        }),
        ("the former boot's Ready in place of it", |up| match up {
            Up::Ready(_) | Up::Unchanged(_) => {
                let Worked::Described(ready) = former_boot().work(Work::Describe) else { unreachable!() };
                vec![Up::Ready(ready)]
            }
            other => vec![other],
        }),
    ];
    let asked_in: [Edit; 2] = [
        |question| {
            if let Question::Challenge(challenge) = question {
                challenge.boot = present_boot();
            }
        },
        |question| {
            if let Question::Challenge(challenge) = question {
                challenge.boot = present_boot();
                challenge.full = true;
            }
        },
    ];
    for (name, up) in hidden {
        for down in asked_in {
            for also_restart in [false, true] {
                let mut world = World::new(former_boot(), Policy { ima: false, uefi: true }, BTreeMap::new());
                assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
                world.device.reboot();
                world.restart_agent();
                world.on_the_way_up = Some(up);
                world.on_the_way_down = Some(down);
                if also_restart {
                    world.restart_bridge();
                }
                let since = world.now;
                world.run_until(since + Duration::from_secs(300), |_| false);
                assert_eq!(world.passes_since(since), 0, "{name}: a PASS for a boot that is over");
                assert_ends_well(world, name);
            }
        }
    }
}

fn assert_ends_well(mut world: World, name: &str) {
    world.on_the_way_up = None;
    world.on_the_way_down = None;
    let since = world.now;
    // a refused device is told to come again after five minutes
    let back = world.run_until(since + Duration::from_secs(700), |world| world.passes_since(since) >= 2);
    assert!(back, "{name}: {:?} {:?}", world.reports, world.dropped);
    assert!(!world.verdicts().contains(&Verdict::Fail), "{name}: a false FAIL");
    assert_eq!(world.keylime.foreign_nonces, 0, "{name}: a foreign nonce");
    assert_eq!(world.bad_notices, [], "{name}");
}

/// The registrar keeps an id for the AK it heard first, active or not.
#[test]
fn an_ak_put_in_place_of_the_devices_own_at_enrolment_does_not_keep_the_device_out() {
    for restart_agent in [false, true] {
        let mut world = honest();
        world.on_the_way_up = Some(|up| match up {
            Up::Enrol(enrol) => {
                let ak_public = Device::new("other", 9).ak_public().try_into().unwrap();
                vec![Up::Enrol(Enrol { ak_public, ..enrol })]
            }
            other => vec![other],
        });
        let limit = Duration::from_secs(200);
        world.run_until(limit, |_| false);
        assert!(world.asked.iter().any(|(_, asked)| *asked == "Register"));
        world.on_the_way_up = None;
        if restart_agent {
            world.restart_agent();
        }
        let back = world.run_until(limit + Duration::from_secs(320), |world| world.passes() > 0);
        assert!(back, "{:?}\n{}", world.dropped, world.tail());
        assert!(world.asked.iter().any(|(_, asked)| *asked == "Withdraw"));
    }
}

#[test]
fn a_device_that_enrols_in_a_loop_reaches_the_registrar_no_oftener_than_every_five_seconds() {
    let mut hand = Hand::new();
    let Worked::Introduced(enrol) = hand.device.work(Work::Introduce) else { unreachable!() };
    let (mut registered, mut later) = (0, 0);
    for number in 0..3000_u16 {
        let now = AT(100) + Duration::from_millis(u64::from(number) * 100);
        // each with a certificate of its own, so that none is the one before
        let ek_certificate = Some(number.to_be_bytes().repeat(100).try_into().unwrap());
        let mut outputs = hand.says(Up::Enrol(Enrol { ek_certificate, ..enrol.clone() }), now);
        while let Some(output) = outputs.pop() {
            match output {
                Output::Command(Command::Register(_)) => {
                    registered += 1;
                    let blob = number.to_be_bytes().to_vec();
                    outputs.extend(hand.done(Done::Registered(Registered::Credential(blob)), now));
                }
                Output::Command(Command::Withdraw) => outputs.extend(hand.done(Done::Withdrawn, now)),
                Output::Send(down, _) => later += u32::from(matches!(down.question, Question::Later(_))),
                _ => {}
            }
        }
    }
    assert!((50..=61).contains(&registered), "{registered} registrations in five minutes");
    assert!(later > 2000, "the others were told to come again: {later}");
}

/// Keylime consumes a session with a wrong proof, and allows few sessions.
#[test]
fn a_proof_that_was_changed_on_the_way_costs_no_session() {
    let mut world = honest();
    world.on_the_way_up = Some(|up| match up {
        Up::Proof(proof) => vec![Up::Proof(Proof { signed: altered(&proof.signed), ..proof })],
        other => vec![other],
    });
    let limit = Duration::from_secs(145);
    world.run_until(limit, |world| world.dropped.iter().filter(|(kind, _)| *kind == "Proof").count() == 2);
    assert!(!world.asked.iter().any(|(_, asked)| *asked == "Submit"));
    assert_eq!((world.keylime.sessions_opened, world.refused), (1, 0), "{:?}", world.dropped);
    world.on_the_way_up = None;
    assert!(world.run_until(limit + Duration::from_secs(60), |world| world.passes() > 0));
    assert_eq!(world.keylime.sessions_opened, 1, "the session of before was proven after all");
}
