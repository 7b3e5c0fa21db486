//! What a broker can change on the way costs time at most: no false FAIL, no false PASS, no foreign nonce.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::compact::{pack_ima, unpack_ima};
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    Blob, Brief, Evidence, LogKind, PcrMask, PcrValues, Proof, Quote, Ready, Signed, Statement, Up, Verdict,
};

use super::device::{Device, dense_log};
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
            let other =
                Device::new("other", 9).work(keylime_mqtt_schemas::exchange::attester::Work::Describe);
            let keylime_mqtt_schemas::exchange::attester::Done::Described(other) = other else {
                unreachable!()
            };
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

fn assert_ends_well(mut world: World, name: &str) {
    world.on_the_way_up = None;
    let since = world.now;
    // a refused device is told to come again after five minutes
    let back = world.run_until(since + Duration::from_secs(700), |world| world.passes_since(since) >= 2);
    assert!(back, "{name}: {:?} {:?}", world.reports, world.dropped);
    assert!(!world.verdicts().contains(&Verdict::Fail), "{name}: a false FAIL");
    assert_eq!(world.keylime.foreign_nonces, 0, "{name}: a foreign nonce");
    assert_eq!(world.bad_notices, [], "{name}");
}
