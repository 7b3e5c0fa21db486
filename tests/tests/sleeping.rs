//! Devices that wake, attest once, and sleep.

use anyhow::{Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{FOREIGN_PROGRAM, World, WorldSettings};
use std::time::Duration;

/// Longest time awake; none takes as long.
const AWAKE: Duration = Duration::from_secs(90);

/// Exit code of `run --once` for a device that Keylime fails.
const FAILED: i32 = 10;

#[test]
fn a_device_that_wakes_to_attest_once_ends_with_an_exit_code_that_says_the_outcome() -> Result<()> {
    // Slow enough that Keylime does not call the device late between two wakes.
    let keylime = KeylimeSettings { quote_interval: 4, ..KeylimeSettings::default() };
    let world = World::start(&WorldSettings { keylime, ..WorldSettings::default() })?;
    let mut device = world.passing_device("sleeper", DeviceSettings::with_ima(), &Policies::ima())?;
    device.stop_agent()?;
    // A device that wakes early is told the last outcome, so it may take two wakes to a new one.
    let before = world.observer()?.mark();
    eventually("an attestation by waking", &world.scratch.logs(), || {
        let status = device.run_once(AWAKE)?;
        ensure!(status.success(), "{status}\n{}", world.tails());
        let news = world.observer()?.seen_from(before);
        Ok(news.iter().filter_map(Seen::result).any(|result| result.verdict == Verdict::Pass).then_some(()))
    })?;
    world.never_failed(&device)?;
    device.run_program(FOREIGN_PROGRAM)?;
    eventually("an exit code that says FAIL", &world.scratch.logs(), || {
        let status = device.run_once(AWAKE)?;
        ensure!(status.success() || status.code() == Some(FAILED), "{status}\n{}", world.tails());
        Ok((!status.success()).then_some(()))
    })?;
    world.keylime_says(&device, "FAIL").map(drop)
}
