//! Whatever is restarted, attestation resumes by itself and nobody is failed for it.

use anyhow::Result;
use keylime_mqtt_schemas::messages::{Question, Verdict};
use keylime_mqtt_schemas::wire::unpack_down;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::on_each_broker;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::ports::unread_bytes;
use keylime_mqtt_tests::scratch::Tail;
use keylime_mqtt_tests::world::{World, WorldSettings};

on_each_broker!(
    the_agent_may_be_killed_and_restarted,
    the_bridge_may_be_killed_and_restarted,
    the_broker_may_be_killed_and_restarted,
);

fn passing(broker: BrokerKind) -> Result<(World, Device)> {
    let world = World::start(&WorldSettings { broker, ..WorldSettings::default() })?;
    let device = world.passing_device("steady", DeviceSettings::full()?, &Policies::full())?;
    Ok((world, device))
}

fn resumed(world: &World, device: &Device) -> Result<()> {
    world.passes_anew(device)?;
    world.never_failed(device)
}

fn the_agent_may_be_killed_and_restarted(broker: BrokerKind) -> Result<()> {
    let (world, mut device) = passing(broker)?;
    device.kill_agent();
    device.run_program("/usr/bin/sensor")?;
    device.start_agent()?;
    resumed(&world, &device)?;
    device.stop_agent()?;
    device.start_agent()?;
    resumed(&world, &device)
}

fn the_bridge_may_be_killed_and_restarted(broker: BrokerKind) -> Result<()> {
    let (mut world, device) = passing(broker)?;
    world.bridge.kill();
    world.bridge.start()?;
    resumed(&world, &device)?;
    world.bridge.stop()?;
    world.bridge.start()?;
    resumed(&world, &device)
}

fn the_broker_may_be_killed_and_restarted(broker: BrokerKind) -> Result<()> {
    let (mut world, device) = passing(broker)?;
    world.broker.kill();
    world.broker.power_on()?;
    resumed(&world, &device)?;
    world.broker.stop()?;
    world.broker.power_on()?;
    resumed(&world, &device)
}

#[test]
fn the_verifier_may_be_killed_and_restarted() -> Result<()> {
    let (mut world, device) = passing(BrokerKind::Mosquitto)?;
    world.keylime.kill_verifier();
    world.keylime.start_verifier()?;
    resumed(&world, &device)?;
    world.keylime.stop_verifier()?;
    world.keylime.start_verifier()?;
    resumed(&world, &device)
}

#[test]
fn a_restarted_verifier_has_devices_prove_themselves_once_so_that_it_need_not_compute_for_each_request()
-> Result<()> {
    let (mut world, device) = passing(BrokerKind::Mosquitto)?;
    let mut log = Tail::of(&world.scratch.log("verifier"));
    let mut sessions = move || -> Result<usize> {
        Ok(log.read()?.lines().filter(|line| line.ends_with("POST /v3.0/sessions")).count())
    };
    let mark = world.observer()?.mark();
    world.keylime.kill_verifier();
    // The bridge has met the closed door.
    let logs = world.scratch.logs();
    eventually("the bridge finds nobody", &logs, || {
        Ok(world.bridge.log().contains("Keylime does not answer").then_some(()))
    })?;
    world.keylime.start_verifier()?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    resumed(&world, &device)?;
    resumed(&world, &device)?;
    assert_eq!(sessions()?, 1);
    Ok(())
}

#[test]
fn a_verifier_that_hangs_for_a_while_fails_nobody() -> Result<()> {
    let (world, device) = passing(BrokerKind::Mosquitto)?;
    world.keylime.verifier()?.freeze();
    let port = world.keylime.verifier_port();
    eventually("a request lies unread at the verifier", &world.scratch.logs(), || {
        Ok((unread_bytes(port)? > 0).then_some(()))
    })?;
    let mark = world.observer()?.mark();
    world.keylime.verifier()?.thaw();
    world.verdict_from(mark, &device, Verdict::Pass)?;
    resumed(&world, &device)
}

#[test]
fn a_registrar_that_is_away_matters_to_new_devices_alone() -> Result<()> {
    let (mut world, device) = passing(BrokerKind::Mosquitto)?;
    world.keylime.kill_registrar();
    let mut newcomer = world.device("newcomer", DeviceSettings::default())?;
    newcomer.start_agent()?;
    resumed(&world, &device)?;
    assert!(!world.keylime.has_activated(newcomer.id()));
    world.keylime.start_registrar()?;
    let mark = world.observer()?.mark();
    world.enrol(&newcomer, &Policies::quote_only())?;
    world.verdict_from(mark, &newcomer, Verdict::Pass)?;
    resumed(&world, &device)
}

#[test]
fn a_tpm_that_hangs_for_a_while_fails_nobody() -> Result<()> {
    let (world, mut device) = passing(BrokerKind::Mosquitto)?;
    device.swtpm().freeze();
    // The bridge asks the same again only when there was no answer.
    let topic = format!("keylime/v1/{}/challenge", device.id());
    let mark = world.observer()?.mark();
    let nonce = |seen: &Seen| match unpack_down(&seen.payload).ok()?.question {
        Question::Challenge(challenge) if seen.topic == topic => Some(challenge.nonce),
        _ => None,
    };
    eventually(
        "a challenge that the hanging TPM keeps unanswered is repeated",
        &world.scratch.logs(),
        || {
            let nonces = world.observer()?.collect_from(mark, nonce);
            Ok(nonces.windows(2).any(|pair| pair.first() == pair.last()).then_some(()))
        },
    )?;
    device.swtpm().thaw();
    resumed(&world, &device)
}

/// The parts of a world.
#[derive(Clone, Copy, Debug)]
enum Part {
    Agent,
    Bridge,
    Broker,
    Verifier,
    Registrar,
}

fn comes_up_in(order: [Part; 5]) -> Result<()> {
    // A first life in the usual order, to enrol; then everything at rest, and up again in another order.
    let (mut world, mut device) = passing(BrokerKind::Mosquitto)?;
    device.kill_agent();
    world.bridge.kill();
    world.keylime.kill_verifier();
    world.keylime.kill_registrar();
    world.broker.kill();
    for part in order {
        match part {
            Part::Agent => device.start_agent()?,
            Part::Bridge => world.bridge.start()?,
            Part::Broker => world.broker.power_on()?,
            Part::Verifier => world.keylime.start_verifier()?,
            Part::Registrar => world.keylime.start_registrar()?,
        }
    }
    resumed(&world, &device)
}

#[test]
fn everything_may_be_started_from_the_device_inwards() -> Result<()> {
    comes_up_in([Part::Agent, Part::Bridge, Part::Broker, Part::Registrar, Part::Verifier])
}

#[test]
fn everything_may_be_started_from_the_broker_outwards() -> Result<()> {
    comes_up_in([Part::Broker, Part::Agent, Part::Verifier, Part::Bridge, Part::Registrar])
}

#[test]
fn everything_may_be_started_from_keylime_outwards() -> Result<()> {
    comes_up_in([Part::Verifier, Part::Registrar, Part::Bridge, Part::Agent, Part::Broker])
}

/// A device that nobody knows yet, where whatever it needs comes up after it.
#[test]
fn a_newcomer_may_be_there_before_everything_that_it_needs() -> Result<()> {
    let mut world = World::prepare(&WorldSettings::default())?;
    let mut device = world.device("newcomer", DeviceSettings::full()?)?;
    device.start_agent()?;
    world.bridge.start()?;
    world.broker.power_on()?;
    world.connect_observer()?;
    world.keylime.start_registrar()?;
    world.await_registration(&device)?;
    world.keylime.start_verifier()?;
    let mark = world.observer()?.mark();
    world.enrol(&device, &Policies::full())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    resumed(&world, &device)
}
