//! Logs that lie, do not unpack, or stop half-way: never kept, never submitted, asked for again, and only what is
//! missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder, pack_uefi};
use keylime_mqtt_schemas::messages::{
    Blob, Bounded, Digest, Evidence, LogKind, Need, Question, Ready, RefusedReason, UefiLog, Up, Verdict,
};

use super::device::{Device, LINE, NOT_PACKED, dense_log};
use super::keylime::Policy;
use super::world::World;

const UEFI: Policy = Policy { ima: false, uefi: true };
const IMA: Policy = Policy { ima: true, uefi: false };
const BOTH: Policy = Policy { ima: true, uefi: true };

fn device(ima_lines: usize, uefi_bytes: usize) -> Device {
    let mut device = Device::new("device-1", 1);
    if ima_lines > 0 {
        device.grow(ima_lines);
    }
    device.uefi = (uefi_bytes > 0).then(|| dense_log(uefi_bytes));
    device
}

fn world(device: Device, policy: Policy) -> World {
    World::new(device, policy, BTreeMap::new())
}

fn needs(world: &World) -> Vec<Need> {
    let need = |question: &Question| if let Question::Need(need) = question { Some(*need) } else { None };
    world.asked_device.iter().filter_map(|(question, _)| need(question)).collect()
}

fn submitted(world: &World) -> bool {
    world.asked.iter().any(|(_, command)| *command == "Submit")
}

/// The device passes once nobody lies any more, and was never failed for what others did.
fn ends_well(world: &mut World, name: &str) {
    world.on_the_way_up = None;
    let since = world.now;
    let back = world.run_until(since + Duration::from_secs(700), |world| world.passes_since(since) >= 2);
    assert!(back, "{name}: {:?}\n{}", world.dropped, world.tail());
    assert!(!world.verdicts().contains(&Verdict::Fail), "{name}");
    assert_eq!((world.keylime.foreign_nonces, &world.bad_notices[..]), (0, &[][..]), "{name}");
}

type Lie = fn(Up) -> Vec<Up>;

fn uefi_blob(up: Up, lie: impl Fn(Blob) -> Blob) -> Vec<Up> {
    match up {
        Up::Blob(blob) if blob.log == LogKind::Uefi => vec![Up::Blob(lie(blob))],
        other => vec![other],
    }
}

fn bounded<const MAX: usize>(bytes: Vec<u8>) -> Bounded<MAX> {
    bytes.try_into().unwrap()
}

const UEFI_LIES: [(&str, Lie); 9] = [
    ("a total below what its parts have", |up| uefi_blob(up, |blob| Blob { total: Some(10_000), ..blob })),
    ("a total of the first part", |up| {
        uefi_blob(up, |blob| Blob { total: Some(blob.part.as_slice().len() as u32), ..blob })
    }),
    ("no total", |up| uefi_blob(up, |blob| Blob { total: None, ..blob })),
    ("a total of nothing", |up| uefi_blob(up, |blob| Blob { total: Some(0), ..blob })),
    ("a total above any log", |up| uefi_blob(up, |blob| Blob { total: Some(u32::MAX), ..blob })),
    ("a total that changes", |up| {
        uefi_blob(up, |blob| Blob { total: blob.total.map(|total| total + blob.offset as u32 + 1), ..blob })
    }),
    ("parts that do not unpack", |up| {
        uefi_blob(up, |blob| Blob { part: bounded(vec![0xff; blob.part.as_slice().len()]), ..blob })
    }),
    ("another log, well packed", |up| {
        uefi_blob(up, |blob| {
            let other = pack_uefi(&vec![7; 40_000], None);
            let part = other.get(blob.offset as usize..).unwrap_or_default();
            let part = part.get(..12_000).unwrap_or(part).to_vec();
            Blob { part: bounded(part), total: Some(other.len() as u32), ..blob }
        })
    }),
    ("an end at once", |up| uefi_blob(up, |blob| Blob { part: bounded(Vec::new()), ..blob })),
];

#[test]
fn a_uefi_log_that_is_not_the_one_announced_is_never_kept_and_asked_for_again() {
    for (name, lie) in UEFI_LIES {
        let mut world = world(device(0, 40_000), UEFI);
        world.on_the_way_up = Some(lie);
        let limit = world.now + Duration::from_secs(300);
        world.run_until(limit, |_| false);
        assert_eq!(world.uefi_cache, [], "{name}: kept");
        assert!(!submitted(&world), "{name}");
        let asked = needs(&world).len();
        assert!((2..200).contains(&asked), "{name}: asked {asked} times\n{}", world.tail());
        assert!(world.held() <= 64 * 1024, "{name}: {} bytes held", world.held());
        ends_well(&mut world, name);
        assert_eq!(world.uefi_cache, [Digest::of(&[&dense_log(40_000)])], "{name}");
    }
}

#[test]
fn the_statement_of_a_boot_is_good_for_one_uefi_log_only() {
    let lies: [(&str, Lie); 2] = [
        ("another", |up| match up {
            Up::Ready(ready) => {
                let uefi = Some(UefiLog { digest: Digest::of(&[b"another"]), size: 7 });
                vec![Up::Ready(Ready { uefi, ..ready })]
            }
            other => vec![other],
        }),
        ("none", |up| match up {
            Up::Ready(ready) => vec![Up::Ready(Ready { uefi: None, ..ready })],
            other => vec![other],
        }),
    ];
    for (name, lie) in lies {
        let mut world = world(device(0, 40_000), UEFI);
        world.on_the_way_up = Some(lie);
        assert!(world.run_until(Duration::from_secs(400), |world| world.refused > 0), "{name}");
        assert_eq!(world.refusals, [RefusedReason::Boot], "{name}");
        assert_eq!(world.keylime.offers, 0, "{name}: it is not even offered");
        ends_well(&mut world, name);
    }
}

pub(crate) fn reference(lines: usize) -> Reference {
    let mut builder = ReferenceBuilder::new();
    builder.ima_log(device(lines, 0).ima.as_deref().unwrap()).uefi_log(&dense_log(5_000));
    Reference::parse(&builder.build().unwrap()).unwrap()
}

/// Whether each question about a log says that the bridge has the reference.
fn said_reference(world: &World) -> Vec<bool> {
    let said = |question: &Question| match question {
        Question::Need(need) => Some(need.reference),
        Question::Challenge(challenge) if challenge.ima_offset.is_some() => Some(challenge.reference),
        _ => None,
    };
    world.asked_device.iter().filter_map(|(question, _)| said(question)).collect()
}

#[test]
fn a_reference_that_both_have_is_used_for_every_log() {
    let mut device = device(700, 40_000);
    device.reference = Some(reference(700).digest());
    device.reference_file = Some(Arc::new(reference(700)));
    let mut world = world(device, BOTH).with_references(Arc::new([reference(10), reference(700)]));
    assert!(world.run_until(Duration::from_secs(400), |world| world.passes() == 3), "{}", world.tail());
    let said = said_reference(&world);
    assert!(said.len() >= 5 && said.iter().all(|said| *said), "{said:?}");
    assert_eq!(world.dropped, []);
}

#[test]
fn a_device_with_an_unknown_reference_or_none_is_asked_without_one() {
    for named in [None, Some(Digest::of(&[b"another file"]))] {
        let mut device = device(700, 40_000);
        device.reference = named;
        let mut world = world(device, BOTH).with_references(Arc::new([reference(700)]));
        assert!(world.run_until(Duration::from_secs(400), |world| world.passes() == 3), "{}", world.tail());
        let said = said_reference(&world);
        assert!(said.len() >= 5 && !said.contains(&true), "{named:?}: {said:?}");
        assert_eq!(world.dropped, [], "{named:?}");
    }
}

/// What the device packs with the reference it names does not unpack with the bridge's file of that name.
#[test]
fn what_does_not_unpack_with_a_reference_is_asked_for_again_without() {
    for (lines, uefi_bytes, policy) in [(700, 0, IMA), (20, 0, IMA), (0, 40_000, UEFI), (700, 40_000, BOTH)] {
        let name = format!("{lines} lines, {uefi_bytes} bytes");
        let mut device = device(lines, uefi_bytes);
        device.reference = Some(reference(700).digest());
        let mut world = world(device, policy).with_references(Arc::new([reference(700)]));
        let passed = world.run_until(Duration::from_secs(400), |world| world.passes() == 2);
        assert!(passed, "{name}: {:?}\n{}", world.dropped, world.tail());
        let said = said_reference(&world);
        let with = said.iter().take_while(|said| **said).count();
        assert!(with > 0 && with < said.len(), "{name}: {said:?}");
        assert!(!said[with..].contains(&true), "{name}: never with it again: {said:?}");
        assert!(!world.verdicts().contains(&Verdict::Fail), "{name}");
    }
}

#[test]
fn ima_lines_that_do_not_unpack_are_asked_for_again_and_never_submitted() {
    let garbage: Lie = |up| match up {
        Up::Blob(blob) if blob.log == LogKind::Ima => {
            vec![Up::Blob(Blob { part: bounded(NOT_PACKED.to_vec()), ..blob })]
        }
        Up::Evidence(Evidence { ima: Some(mut ima), tag, quote, pcrs }) => {
            ima.packed = bounded(NOT_PACKED.to_vec());
            vec![Up::Evidence(Evidence { ima: Some(ima), tag, quote, pcrs })]
        }
        other => vec![other],
    };
    for lines in [20, 700] {
        let mut world = world(device(lines, 0), IMA);
        world.on_the_way_up = Some(garbage);
        let limit = world.now + Duration::from_secs(300);
        world.run_until(limit, |_| false);
        assert!(!submitted(&world), "{lines}");
        let asked = said_reference(&world).len();
        assert!((2..200).contains(&asked), "{lines}: asked {asked} times in five minutes");
        ends_well(&mut world, &format!("{lines} lines"));
    }
}

#[test]
fn a_log_of_100_000_lines_goes_on_where_the_connection_was_cut() {
    const LINES: usize = 100_000;
    let mut world = world(device(LINES, 0), IMA);
    for cut in 1..=3 {
        // a quarter of the log further each time
        let limit = world.now + Duration::from_secs(1000);
        assert!(world.run_until(limit, |world| world.held() > cut * LINES / 4 * LINE), "{}", world.tail());
        let held = world.held();
        world.listen_anew();
        if cut == 2 {
            world.restart_agent();
        } else {
            world.disconnect();
            let limit = world.now + Duration::from_secs(60);
            world.run_until(limit, |_| false);
            world.connect();
        }
        let limit = world.now + Duration::from_secs(30);
        assert!(world.run_until(limit, |world| world.held() > held), "{}", world.tail());
        let again = |need: &Need| need.offset < (held / LINE) as u64;
        assert!(!needs(&world).iter().any(again), "what is here is asked for again");
    }
    let limit = world.now + Duration::from_secs(1000);
    assert!(world.run_until(limit, |world| world.passes() == 1), "{:?}\n{}", world.dropped, world.tail());
    assert_eq!(world.held(), 0, "nothing is held once the verifier has it");
    assert_eq!(world.verdicts(), [Verdict::Pass]);
}
