//! A reboot: TPM reset, new boot marker, logs from zero; orderly and as a power cut, for each kind of policy.
//!
//! Stock Keylime fails every device with an IMA policy for good after a reboot: it starts the new list from the
//! PCR 10 of the old boot. The bridge therefore holds such a device and says what the operator must do; what
//! happens without that is kept here as a scenario of its own, with the verifier's words.

use anyhow::Result;
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::device::{Device, DeviceSettings, Reboot};
use keylime_mqtt_tests::measured_boot::UefiLog;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{ALLOWED_PROGRAMS, World, WorldSettings};

/// Policies that compare no IMA list: the device is back by itself.
fn survives(how: Reboot, settings: DeviceSettings, policies: &Policies) -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.passing_device("rebooting", settings, policies)?;
    device.reboot(how)?;
    world.passes_anew(&device)?;
    device.reboot(how)?;
    world.passes_anew(&device)?;
    world.never_failed(&device)
}

#[test]
fn a_pcr_policy_survives_an_orderly_reboot() -> Result<()> {
    survives(Reboot::Orderly, DeviceSettings::default(), &Policies::quote_only())
}

#[test]
fn a_pcr_policy_survives_a_power_cut() -> Result<()> {
    survives(Reboot::PowerCut, DeviceSettings::default(), &Policies::quote_only())
}

#[test]
fn a_measured_boot_policy_survives_an_orderly_reboot() -> Result<()> {
    survives(Reboot::Orderly, DeviceSettings::with_measured_boot()?, &Policies::measured_boot())
}

#[test]
fn a_measured_boot_policy_survives_a_power_cut() -> Result<()> {
    survives(Reboot::PowerCut, DeviceSettings::with_measured_boot()?, &Policies::measured_boot())
}

#[test]
fn other_firmware_after_a_reboot_is_judged_by_its_own_log() -> Result<()> {
    let world = World::on_mosquitto()?;
    let settings = DeviceSettings::with_measured_boot()?;
    let mut device = world.passing_device("updated", settings, &Policies::measured_boot())?;
    device.flash(UefiLog::direct_boot()?);
    device.reboot(Reboot::Orderly)?;
    world.passes_anew(&device)?;
    world.never_failed(&device)
}

/// With an IMA policy the bridge holds the device, says why, and an update by the operator brings PASS back.
fn is_held_until_it_is_added_again(how: Reboot, settings: DeviceSettings, policies: &Policies) -> Result<()> {
    let world = World::on_mosquitto()?;
    let mut device = world.passing_device("rebooting", settings, policies)?;
    let mark = world.observer()?.mark();
    device.reboot(how)?;
    let result = held(&world, &device, mark)?;
    assert!(result.contains("rebooted"), "{result}");
    world.never_failed(&device)?;
    let mark = world.observer()?.mark();
    world.keylime.update(device.id(), policies)?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    device.run_program("/usr/bin/sensor")?;
    world.passes_anew(&device)?;
    world.never_failed(&device)
}

/// The reason that the bridge publishes while it holds the device.
fn held(world: &World, device: &Device, mark: usize) -> Result<String> {
    world.observer()?.wait_from(mark, "a result that says the device rebooted", |seen| {
        let result = seen.result().filter(|result| result.agent_id.as_str() == device.id())?;
        result.reason.filter(|reason| reason.contains("rebooted"))
    })
}

#[test]
fn an_ima_policy_holds_the_device_after_an_orderly_reboot_until_it_is_added_again() -> Result<()> {
    is_held_until_it_is_added_again(Reboot::Orderly, DeviceSettings::with_ima(), &Policies::ima())
}

#[test]
fn an_ima_policy_holds_the_device_after_a_power_cut_until_it_is_added_again() -> Result<()> {
    is_held_until_it_is_added_again(Reboot::PowerCut, DeviceSettings::with_ima(), &Policies::ima())
}

#[test]
fn all_three_policies_hold_the_device_after_a_reboot_until_it_is_added_again() -> Result<()> {
    is_held_until_it_is_added_again(Reboot::Orderly, DeviceSettings::full()?, &Policies::full())
}

#[test]
fn all_three_policies_hold_the_device_after_a_power_cut_until_it_is_added_again() -> Result<()> {
    is_held_until_it_is_added_again(Reboot::PowerCut, DeviceSettings::full()?, &Policies::full())
}

#[test]
fn a_bridge_without_memory_holds_a_rebooted_device_too() -> Result<()> {
    let mut world = World::on_mosquitto()?;
    let mut device = world.passing_device("rebooting", DeviceSettings::with_ima(), &Policies::ima())?;
    world.bridge.kill();
    device.reboot(Reboot::Orderly)?;
    let mark = world.observer()?.mark();
    world.bridge.start()?;
    held(&world, &device, mark)?;
    world.never_failed(&device)
}

#[test]
fn keylime_itself_fails_an_ima_policy_after_a_reboot_and_an_update_mends_it() -> Result<()> {
    let settings = WorldSettings {
        bridge: vec!["exchange.hold_after_reboot=false".to_owned()],
        ..WorldSettings::default()
    };
    let world = World::start(&settings)?;
    let mut device = world.passing_device("rebooting", DeviceSettings::with_ima(), &Policies::ima())?;
    for program in ALLOWED_PROGRAMS {
        device.run_program(program)?;
    }
    world.passes_anew(&device)?;
    let mark = world.observer()?.mark();
    device.reboot(Reboot::Orderly)?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    world.keylime_says(&device, "FAIL")?;
    // The new list does replay to the new PCR 10; the verifier begins its replay at the old one. Which of the two
    // it says depends on the lengths of the lists.
    let log = world.keylime.verifier_log();
    let words =
        ["IMA measurement list does not match TPM PCR", "PCR quote did not make progress to catch up"];
    assert!(words.iter().any(|words| log.contains(words)), "failed for another reason:\n{}", world.tails());
    let mark = world.observer()?.mark();
    world.keylime.update(device.id(), &Policies::ima())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(())
}
