//! What Keylime's policies say reaches the operator and the result topic, both ways.

use anyhow::{Context, Result};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::measured_boot::UefiLog;
use keylime_mqtt_tests::on_each_broker;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{ALLOWED_PROGRAMS, FOREIGN_PROGRAM, QUIET_PCR, World, WorldSettings};

on_each_broker!(
    a_device_without_logs_passes_a_pcr_policy,
    a_device_passes_all_three_policies_at_once_and_goes_on_passing_while_its_ima_log_grows,
    a_program_outside_the_policy_fails_the_device_until_the_operator_updates_it,
);

fn world(broker: BrokerKind) -> Result<World> {
    World::start(&WorldSettings { broker, ..WorldSettings::default() })
}

fn a_device_without_logs_passes_a_pcr_policy(broker: BrokerKind) -> Result<()> {
    let world = world(broker)?;
    let device = world.passing_device("quiet", DeviceSettings::default(), &Policies::quote_only())?;
    world.passes_anew(&device)?;
    let status = world.keylime_says(&device, "PASS")?;
    assert!(status.attestation_count >= 2, "{status:?}");
    Ok(())
}

fn a_device_passes_all_three_policies_at_once_and_goes_on_passing_while_its_ima_log_grows(
    broker: BrokerKind,
) -> Result<()> {
    let world = world(broker)?;
    let mut device = world.passing_device("full", DeviceSettings::full()?, &Policies::full())?;
    for program in ALLOWED_PROGRAMS {
        device.run_program(program)?;
        world.passes_anew(&device)?;
    }
    world.keylime_says(&device, "PASS")?;
    world.never_failed(&device)
}

fn a_program_outside_the_policy_fails_the_device_until_the_operator_updates_it(
    broker: BrokerKind,
) -> Result<()> {
    let world = world(broker)?;
    let mut device = world.passing_device("gateway", DeviceSettings::with_ima(), &Policies::ima())?;
    let mark = world.observer()?.mark();
    device.run_program(FOREIGN_PROGRAM)?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    world.keylime_says(&device, "FAIL")?;
    let wider: Vec<&str> = ALLOWED_PROGRAMS.into_iter().chain([FOREIGN_PROGRAM]).collect();
    recovers_by_update(
        &world,
        &device,
        &Policies { runtime: Some(runtime_policy(&wider)), ..Policies::default() },
    )
}

/// The operator updates, touches nothing on the device, and PASS comes back.
fn recovers_by_update(world: &World, device: &Device, policies: &Policies) -> Result<()> {
    let mark = world.observer()?.mark();
    world.keylime.update(device.id(), policies)?;
    world.verdict_from(mark, device, Verdict::Pass)?;
    world.keylime_says(device, "PASS").map(drop)
}

#[test]
fn a_device_passes_an_ima_policy() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.device("ima", DeviceSettings::with_ima())?;
    for program in ALLOWED_PROGRAMS {
        device.run_program(program)?;
    }
    device.start_agent()?;
    world.enrol(&device, &Policies::ima())?;
    world.passes_anew(&device)?;
    world.keylime_says(&device, "PASS").map(drop)
}

#[test]
fn a_device_passes_a_measured_boot_policy_made_from_its_log() -> Result<()> {
    let world = World::on_mosquitto()?;
    let policy = world.keylime.measured_boot_policy(&UefiLog::secure_boot()?)?;
    let policies = Policies { measured_boot: Some(policy), ..Policies::default() };
    let device = world.passing_device("secure", DeviceSettings::with_measured_boot()?, &policies)?;
    world.passes_anew(&device)?;
    world.keylime_says(&device, "PASS").map(drop)
}

#[test]
fn a_changed_uefi_log_fails_the_device_until_the_operator_updates_it() -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device =
        world.passing_device("secure", DeviceSettings::with_measured_boot()?, &Policies::measured_boot())?;
    // The agent reads firmware's log once per boot, since a kernel never changes it: hence the restart.
    device.stop_agent()?;
    device.forge_uefi_log()?;
    let mark = world.observer()?.mark();
    device.start_agent()?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    world.keylime_says(&device, "FAIL")?;
    assert!(
        world.keylime.verifier_log().contains("the boot event log has value"),
        "the verifier did not fail it for its log:\n{}",
        world.tails()
    );
    recovers_by_update(&world, &device, &Policies::quote_only())
}

#[test]
fn a_pcr_outside_the_policy_fails_the_device_until_the_operator_updates_it() -> Result<()> {
    let world = World::on_mosquitto()?;
    let device = world.passing_device("pcr", DeviceSettings::default(), &Policies::quote_only())?;
    let mark = world.observer()?.mark();
    device.extend_pcr(QUIET_PCR)?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    world.keylime_says(&device, "FAIL")?;
    let now = device.tpm()?.read(QUIET_PCR, keylime_mqtt_tests::tpm::Bank::Sha256)?;
    let policy = serde_json::json!({ QUIET_PCR.to_string(): [hex::encode(now)] });
    recovers_by_update(&world, &device, &Policies { tpm: Some(policy), ..Policies::default() })
}

#[test]
fn a_long_ima_log_reaches_the_verifier_whole() -> Result<()> {
    let world = World::on_mosquitto()?;
    let programs: Vec<String> =
        (0..2000).map(|n| format!("/usr/lib/modules/driver-number-{n:05}.ko")).collect();
    let names: Vec<&str> = programs.iter().map(String::as_str).collect();
    let mut device = world.device("busy", DeviceSettings::with_ima())?;
    for program in &names {
        device.run_program(program)?;
    }
    let mark = world.observer()?.mark();
    device.start_agent()?;
    world.enrol(&device, &Policies { runtime: Some(runtime_policy(&names)), ..Policies::default() })?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    world.never_failed(&device)?;
    let largest =
        world.observer()?.seen().iter().map(|seen| seen.payload.len()).max().context("nothing seen")?;
    assert!(largest <= 120 * 1024, "a message of {largest} bytes");
    Ok(())
}
