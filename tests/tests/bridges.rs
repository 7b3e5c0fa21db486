//! More than one bridge: by mistake, they do not fight over the devices; as intended, one stands in for the other.

use anyhow::{Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::bridge::Bridge;
use keylime_mqtt_tests::broker::{BRIDGE, SECOND_BRIDGE};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::within;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::scratch::Tail;
use keylime_mqtt_tests::world::{World, WorldSettings};
use std::time::Duration;

/// Intervals of the verifier over which bridges by mistake are looked at.
const INTERVALS: usize = 20;
/// Attestations that may be opened for each that passes; few more are than pass. More would be a fight: Keylime keeps every
/// one for ever.
const OPENED_PER_PASS: usize = 2;
/// Sessions for each that passes. A session ends the other bridge's, so that on a busy machine they come at up to three for
/// four passes; a quiet one needs one for each bridge and device.
const SESSIONS_PER_PASS: usize = 1;
/// Passes that are published for each TIMEOUT, at least.
const PASSES_PER_TIMEOUT: usize = 10;
/// These intervals on a busy machine.
const LONG: Duration = Duration::from_secs(200);

fn fleet(world: &World) -> Result<[Device; 2]> {
    let quoting = world.passing_device("quoting", DeviceSettings::default(), &Policies::quote_only())?;
    let full = world.passing_device("full", DeviceSettings::full()?, &Policies::full())?;
    Ok([quoting, full])
}

fn passed(log: &str) -> usize {
    log.lines().filter(|line| line.contains("successfully passed verification")).count()
}

fn opened(log: &str) -> usize {
    log.lines().filter(|line| line.contains("Created attestation")).count()
}

fn sessions(log: &str) -> usize {
    log.lines().filter(|line| line.ends_with("POST /v3.0/sessions")).count()
}

fn all_go_on(world: &World, devices: &[Device], times: usize) -> Result<()> {
    for device in devices {
        for _ in 0..times {
            world.passes_anew(device)?;
        }
        world.never_failed(device)?;
    }
    Ok(())
}

#[test]
fn two_bridges_by_mistake_fail_no_device_and_keep_none_from_passing() -> Result<()> {
    let world = World::on_mosquitto()?;
    let devices = fleet(&world)?;
    let (mut log, mark) = (Tail::of(&world.scratch.log("verifier")), world.observer()?.mark());
    // Neither knows of the other: no name, no group, and every word of a device goes to both.
    let mut second = world.another_bridge("second", SECOND_BRIDGE, &[])?;
    second.start()?;
    let (mut said, enough) = (String::new(), INTERVALS * devices.len());
    within(LONG, "enough passes", &world.scratch.logs(), || {
        said.push_str(&log.read()?);
        Ok((passed(&said) >= enough).then_some(()))
    })?;
    all_go_on(&world, &devices, 1)?;
    let (opened, judged, sessions) = (opened(&said), passed(&said), sessions(&said));
    ensure!(
        opened <= judged * OPENED_PER_PASS && sessions <= judged * SESSIONS_PER_PASS,
        "{opened} attestations and {sessions} sessions for {judged} passes\n{}",
        world.tails()
    );
    // README: each may publish TIMEOUT of a device that the other serves. It is not the rule.
    let verdicts =
        world.observer()?.collect_from(mark, |seen| Some(seen.result().filter(|_| !seen.retained)?.verdict));
    let told = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    let [passes, timeouts] = [Verdict::Pass, Verdict::Timeout].map(told);
    ensure!(timeouts * PASSES_PER_TIMEOUT <= passes, "{verdicts:?}\n{}", world.tails());
    Ok(())
}

#[test]
fn two_bridges_of_one_client_id_by_mistake_throw_each_other_out_and_devices_go_on_passing() -> Result<()> {
    let world = World::on_mosquitto()?;
    let devices = fleet(&world)?;
    let mut second = world.another_bridge("second", BRIDGE, &[])?;
    second.start()?;
    all_go_on(&world, &devices, 3)?;
    let told = |bridge: &Bridge| bridge.log().contains("another client uses the same client id");
    ensure!(told(&world.bridge) && told(&second), "the reason is not named\n{}", world.tails());
    Ok(())
}

#[test]
fn bridges_of_one_group_stand_in_for_each_other_without_a_new_session() -> Result<()> {
    let named = |name: &str| format!("topics.via={name}");
    let mut world = World::start(&WorldSettings {
        bridge: vec![named("b1"), "topics.share_group=bridges".to_owned(), "verifier.replicas=2".to_owned()],
        ..WorldSettings::default()
    })?;
    let keys = format!("ticket_key_file={}", world.scratch.path().join("bridge/ticket.key").display());
    let mut second = world.another_bridge("second", SECOND_BRIDGE, &[&named("b2"), &keys])?;
    second.start()?;
    let devices = fleet(&world)?;
    all_go_on(&world, &devices, 2)?;
    let mut log = Tail::of(&world.scratch.log("verifier"));
    world.bridge.kill();
    all_go_on(&world, &devices, 2)?;
    world.bridge.start()?;
    second.kill();
    all_go_on(&world, &devices, 2)?;
    second.start()?;
    all_go_on(&world, &devices, 2)?;
    let sessions = sessions(&log.read()?);
    ensure!(sessions == 0, "{sessions} sessions\n{}", world.tails());
    for log in [world.bridge.log(), second.log()] {
        // On a starved machine a device may miss five intervals.
        let warns = |line: &str| line.contains(" WARN ") && !line.contains("verdict=Timeout");
        ensure!(!log.lines().any(warns), "a warning without a reason\n{}", world.tails());
    }
    Ok(())
}
