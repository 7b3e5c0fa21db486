//! Every byte from the network is hostile, and one bad or absent device costs the others nothing.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::{BrokerKind, OBSERVER};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::observe::{Observer, Seen};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{World, WorldSettings};
use std::time::Duration;

/// Messages of each kind of rubbish.
const ROUNDS: usize = 50;
/// Times between passes that are looked at.
const GAPS: usize = 6;
/// So many times its own longest gap is none: a machine that is busy with another test is allowed for.
const SLOWER: u32 = 3;

fn passing(broker: BrokerKind) -> Result<(World, Device)> {
    let world = World::start(&WorldSettings { broker, ..WorldSettings::default() })?;
    let device = world.passing_device("honest", DeviceSettings::default(), &Policies::quote_only())?;
    Ok((world, device))
}

/// Payloads that are no message: truncated, trailing, nested, unknown, oversized, in fragments without an end.
fn rubbish() -> Vec<Vec<u8>> {
    let mut nested = vec![0x81; 20_000];
    nested.push(0);
    vec![
        Vec::new(),
        b"{}".to_vec(),
        vec![0xff; 40],
        // RFC 8949: an array that says it has 2^63 items, an indefinite map, a map with a key twice
        vec![0x9b, 0x80, 0, 0, 0, 0, 0, 0, 0],
        vec![0xbf, 0x01, 0x02],
        vec![0xa2, 0x01, 0x02, 0x01, 0x03],
        nested,
        vec![0x82, 0x18, 0xee, 0xa0],
        vec![0x58; 100 * 1024],
        // two fields of a fragment and no more
        vec![0x84, 0x00, 0x01, 0x19, 0xff],
    ]
}

#[test]
fn rubbish_from_a_device_is_counted_and_dropped_and_others_go_on_passing() -> Result<()> {
    let (mut world, device) = passing(BrokerKind::Mosquitto)?;
    let intruder = world.pki.issue("intruder", &[])?;
    let logs = world.scratch.logs();
    let topic = "keylime/v1/intruder/evidence";
    let client = Observer::connect(
        world.broker.port(),
        &world.pki.ca(),
        &intruder,
        &["keylime/v1/intruder/challenge"],
        &logs,
    )?;
    for _ in 0..ROUNDS {
        for payload in rubbish() {
            client.publish(topic, false, &payload)?;
        }
    }
    // All of it: as no message of the protocol, or as more than a device may send.
    let sent = u64::try_from(ROUNDS * rubbish().len())?;
    eventually("the bridge has counted all that it refused", &logs, || {
        Ok((refused(&world, "message")? >= sent).then_some(()))
    })?;
    world.passes_anew(&device)?;
    world.never_failed(&device)?;
    assert!(world.bridge.process()?.is_running());
    Ok(())
}

/// What the bridge has refused of this kind so far.
fn refused(world: &World, kind: &str) -> Result<u64> {
    let (succeeded, said) = world.bridge.ask(&["waiting", "--json"])?;
    ensure!(succeeded, "{said}");
    let status: serde_json::Value = serde_json::from_str(&said)?;
    let counters = status.get("refused").and_then(serde_json::Value::as_array).context("no counters")?;
    // Kind, reason, how often.
    let of_kind = counters.iter().filter(|counter| counter.get(0).is_some_and(|named| named == kind));
    Ok(of_kind.filter_map(|counter| counter.get(2)?.as_u64()).sum())
}

#[test]
fn topics_that_name_no_agent_are_dropped() -> Result<()> {
    // rumqttd has no ACL, so that everything reaches the bridge.
    let (mut world, device) = passing(BrokerKind::Embedded)?;
    let own = format!("keylime/v1/{}/evidence", device.id());
    let said = world.observer()?.collect_from(0, |seen| (seen.topic == own).then(|| seen.payload.clone()));
    ensure!(!said.is_empty(), "the device said nothing");
    // Those of one level are what the bridge subscribes to; the others must not match.
    let read = ["keylime/v1/../evidence", "keylime/v1//evidence", "keylime/v1/%2e%2e%2fagents/evidence"];
    let read = read.iter().chain(&["keylime/v1/x y/evidence", "keylime/v1/ü/evidence"]);
    let unread = ["keylime/v1/a/b/c/evidence", "keylime/v1/a/evidence/../../.."];
    let payloads: Vec<Vec<u8>> = rubbish().into_iter().chain(said).collect();
    let counted = u64::try_from(read.clone().count() * payloads.len())?;
    for topic in read.chain(&unread) {
        // What a device really said, so that nothing but the topic speaks against it.
        for payload in &payloads {
            world.observer()?.publish(topic, false, payload)?;
        }
    }
    eventually("the bridge has counted the topics", &world.scratch.logs(), || {
        Ok((refused(&world, "topic")? >= counted).then_some(()))
    })?;
    world.passes_anew(&device)?;
    world.never_failed(&device)?;
    assert!(world.bridge.process()?.is_running());
    let asked = world.keylime.verifier_log();
    assert!(!asked.contains("%2e") && !asked.contains("x y"), "{OBSERVER}'s topic reached a URL");
    Ok(())
}

#[test]
fn replayed_evidence_changes_nothing() -> Result<()> {
    let (world, device) = passing(BrokerKind::Embedded)?;
    world.passes_anew(&device)?;
    let topic = format!("keylime/v1/{}/evidence", device.id());
    // All that the device ever said, said again by somebody else, in both orders.
    let said: Vec<_> = world.observer()?.seen().into_iter().filter(|seen| seen.topic == topic).collect();
    ensure!(said.len() >= 4, "too little was said");
    for seen in said.iter().chain(said.iter().rev()) {
        world.observer()?.publish(&topic, false, &seen.payload)?;
    }
    world.passes_anew(&device)?;
    world.passes_anew(&device)?;
    world.never_failed(&device)
}

/// The longest time between two passes of the device, of those that come from now on.
fn longest_gap(world: &World, device: &Device) -> Result<Duration> {
    let observer = world.observer()?;
    let mark = observer.mark();
    let passes = eventually("some passes", &world.scratch.logs(), || {
        let judged_well = |seen: &Seen| {
            let result = seen.result().filter(|_| !seen.retained)?;
            let of_it = result.agent_id.as_str() == device.id() && result.verdict == Verdict::Pass;
            of_it.then_some((result.nonce_sha256, seen.at))
        };
        let mut passes = observer.collect_from(mark, judged_well);
        // a pass is published again while nothing new is known
        passes.dedup_by(|later, earlier| later.0 == earlier.0);
        Ok((passes.len() > GAPS).then_some(passes))
    })?;
    let gaps = passes.iter().zip(passes.iter().skip(1)).map(|((_, earlier), (_, later))| *later - *earlier);
    gaps.max().context("no gap")
}

#[test]
fn an_absent_device_and_a_hanging_one_delay_no_other() -> Result<()> {
    let (world, device) = passing(BrokerKind::Mosquitto)?;
    let mut absent = world.passing_device("absent", DeviceSettings::default(), &Policies::quote_only())?;
    let mut hanging = world.passing_device("hanging", DeviceSettings::default(), &Policies::quote_only())?;
    let before = longest_gap(&world, &device)?;
    absent.kill_agent();
    hanging.agent()?.freeze();
    let beside = longest_gap(&world, &device)?;
    ensure!(beside < before * SLOWER, "{beside:?} between two passes, {before:?} before\n{}", world.tails());
    hanging.agent()?.thaw();
    absent.start_agent()?;
    world.passes_anew(&hanging)?;
    world.passes_anew(&absent)?;
    for device in [&device, &absent, &hanging] {
        world.never_failed(device)?;
    }
    Ok(())
}
