//! Who becomes a device of this fleet, and what it takes.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::on_each_broker;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::swtpm::EkCa;
use keylime_mqtt_tests::world::{World, WorldSettings};

on_each_broker!(
    a_device_that_is_not_enrolled_yet_waits_and_attests_after_enrolment_without_a_restart,
    a_second_tpm_that_claims_a_known_id_is_refused_and_the_first_goes_on_passing,
);

fn a_device_that_is_not_enrolled_yet_waits_and_attests_after_enrolment_without_a_restart(
    broker: BrokerKind,
) -> Result<()> {
    let world = World::start(&WorldSettings { broker, ..WorldSettings::default() })?;
    let mut device = world.device("early", DeviceSettings::default())?;
    device.start_agent()?;
    world.await_registration(&device)?;
    is_waiting(&world, &device, "keylime_tenant -c add")?;
    let agent = device.agent()?.pid();
    let mark = world.observer()?.mark();
    world.keylime.add(device.id(), &Policies::quote_only())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    assert_eq!(device.agent()?.pid(), agent);
    assert!(device.agent()?.is_running());
    Ok(())
}

fn a_second_tpm_that_claims_a_known_id_is_refused_and_the_first_goes_on_passing(
    broker: BrokerKind,
) -> Result<()> {
    let world = World::start(&WorldSettings { broker, ..WorldSettings::default() })?;
    let mut first = world.passing_device("first", named("gw-1"), &Policies::quote_only())?;
    first.stop_agent()?;
    let heard = posts(&world, "gw-1");
    let mut second = world.device("second", named("gw-1"))?;
    second.start_agent()?;
    is_waiting(&world, &second, "does not let this TPM have this id")?;
    assert_eq!(posts(&world, "gw-1"), heard, "the registrar heard of the second TPM");
    second.stop_agent()?;
    first.start_agent()?;
    world.passes_anew(&first)?;
    world.never_failed(&first)
}

fn named(id: &str) -> DeviceSettings {
    DeviceSettings { id: Some(id.to_owned()), ..DeviceSettings::default() }
}

/// Registrations of this id that reached the registrar.
fn posts(world: &World, id: &str) -> usize {
    world.keylime.registrar_log().matches(&format!("POST /v2.6/agents/{id}")).count()
}

/// The operator's view: `keylime-mqtt-bridge waiting` lists the device, with a reason or a remedy in these words.
fn is_waiting(world: &World, device: &Device, words: &str) -> Result<()> {
    let awaited = format!("`waiting` lists {} with {words:?}", device.name());
    eventually(&awaited, &world.scratch.logs(), || {
        let (succeeded, said) = world.bridge.ask(&["waiting"])?;
        ensure!(succeeded, "`waiting` failed: {said}");
        // A paragraph for each device.
        Ok(said.split("\n\n").any(|about| about.contains(device.id()) && about.contains(words)).then_some(()))
    })
}

#[test]
fn a_device_whose_registration_was_deleted_enrols_again_by_itself() -> Result<()> {
    let world = World::on_mosquitto()?;
    let settings = DeviceSettings { enrol_again_after: Some(3), ..DeviceSettings::default() };
    let device = world.passing_device("deleted", settings, &Policies::quote_only())?;
    world.keylime.delete(device.id())?;
    world.keylime.regdelete(device.id())?;
    // Not that it is gone: the device may have come back already.
    let deletion = format!("DELETE /v2.6/agents/{}", device.id());
    assert!(world.keylime.registrar_log().contains(&deletion), "the registrar deleted it");
    let mark = world.observer()?.mark();
    world.enrol(&device, &Policies::quote_only())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(())
}

#[test]
fn two_devices_never_mix() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut good = world.passing_device("good", DeviceSettings::with_ima(), &Policies::ima())?;
    let mut bad = world.passing_device("bad", DeviceSettings::with_ima(), &Policies::ima())?;
    let mark = world.observer()?.mark();
    bad.run_program("/tmp/miner")?;
    good.run_program("/usr/bin/sensor")?;
    world.verdict_from(mark, &bad, Verdict::Fail)?;
    world.passes_anew(&good)?;
    world.keylime_says(&good, "PASS")?;
    world.keylime_says(&bad, "FAIL")?;
    world.never_failed(&good)?;
    // Nonces are never shared between devices.
    let nonces = |device: &Device| -> Result<Vec<String>> {
        Ok(world
            .observer()?
            .results(device.id())
            .into_iter()
            .filter_map(|result| result.nonce_sha256)
            .collect())
    };
    let theirs = nonces(&bad)?;
    assert!(!theirs.is_empty() && nonces(&good)?.iter().all(|nonce| !theirs.contains(nonce)));
    Ok(())
}

#[test]
fn an_id_admitted_for_one_tpm_is_refused_to_another_before_the_first_registers() -> Result<()> {
    let world = World::on_mosquitto()?;
    let rightful = world.device("rightful", named("gw-2"))?;
    world.admit("gw-2", rightful.ek_hash())?;
    let mut thief = world.device("thief", named("gw-2"))?;
    thief.start_agent()?;
    is_waiting(&world, &thief, "does not let this TPM have this id")?;
    assert_eq!(posts(&world, "gw-2"), 0, "the registrar heard of the thief");
    Ok(())
}

#[test]
fn an_id_that_is_no_ek_hash_is_refused_without_an_admission_line_and_admitted_with_one() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.device("named", named("pump-house_3.north"))?;
    device.start_agent()?;
    is_waiting(&world, &device, "does not let this TPM have this id")?;
    assert_eq!(posts(&world, device.id()), 0);
    world.admit(device.id(), device.ek_hash())?;
    let mark = world.observer()?.mark();
    world.enrol(&device, &Policies::quote_only())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(())
}

#[test]
fn an_ek_of_an_unknown_maker_is_refused_before_the_registrar_hears_of_it() -> Result<()> {
    let world = World::on_mosquitto()?;
    let unknown = EkCa::found(&world.scratch.subdir("unknown-maker")?)?;
    let mut device = world.device_by(&unknown, "foreign", DeviceSettings::default())?;
    device.start_agent()?;
    is_waiting(&world, &device, "leads to no CA")?;
    assert_eq!(posts(&world, device.id()), 0, "the registrar heard of it");
    Ok(())
}

#[test]
fn an_agent_that_lost_its_state_is_told_what_the_operator_must_do() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.passing_device("amnesiac", DeviceSettings::default(), &Policies::quote_only())?;
    device.lose_state()?;
    device.start_agent()?;
    // Keylime holds on to the AK it knows (403); deleting the registration lets the new one in.
    is_waiting(&world, &device, "keylime_tenant -c regdelete")?;
    world.keylime.delete(device.id())?;
    world.keylime.regdelete(device.id())?;
    let mark = world.observer()?.mark();
    world.enrol(&device, &Policies::quote_only())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(())
}

#[test]
fn show_identity_prints_the_lines_that_enrol_the_device() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.device("shown", named("gw-9"))?;
    let (succeeded, said) = device.ask_agent(&["show-identity"])?;
    assert!(succeeded, "{said}");
    let admission = format!("gw-9 = {}", device.ek_hash());
    let line = said.lines().map(str::trim).find(|line| *line == admission).context(said.clone())?;
    let (id, hash) = line.split_once(" = ").context("an admission line")?;
    world.admit(id, hash)?;
    device.start_agent()?;
    world.await_registration(&device)?;
    // The command as it is printed, with what the operator has to put in.
    let command =
        said.lines().map(str::trim).find(|line| line.starts_with("keylime_tenant")).context(said.clone())?;
    let (command, policy) =
        command.split_once(" --tpm_policy ").context("a policy for a device without logs")?;
    let policy =
        policy.trim_matches('\'').replace("\"7\"", "\"23\"").replace("<sha256 in hex>", &"0".repeat(64));
    let arguments: Vec<&str> = command.split(' ').skip(1).chain(["--tpm_policy", &policy]).collect();
    let mark = world.observer()?.mark();
    world.keylime.tenant(&[&arguments[..], &["-v", "127.0.0.1"]].concat())?;
    world.verdict_from(mark, &device, Verdict::Pass).map(drop)
}

#[test]
fn a_policy_for_a_log_that_the_device_lacks_is_named_to_the_operator() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.device("bare", DeviceSettings::default())?;
    device.start_agent()?;
    world.enrol(&device, &Policies::measured_boot())?;
    is_waiting(&world, &device, "needs a log that the device does not have")?;
    let mark = world.observer()?.mark();
    world.keylime.update(device.id(), &Policies::quote_only())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(())
}
