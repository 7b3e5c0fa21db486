//! Devices that wake, attest once, and sleep.

use anyhow::Result;
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{FOREIGN_PROGRAM, World, WorldSettings};
use std::time::Duration;

/// Longest time awake; none takes as long.
const AWAKE: Duration = Duration::from_secs(90);

#[test]
fn a_device_that_wakes_to_attest_once_ends_with_an_exit_code_that_says_the_outcome() -> Result<()> {
    // Slow enough that Keylime does not call the device late between two wakes.
    let keylime = KeylimeSettings { quote_interval: 6, ..KeylimeSettings::default() };
    let world = World::start(&WorldSettings { keylime, ..WorldSettings::default() })?;
    let mut device = world.passing_device("sleeper", DeviceSettings::with_ima(), &Policies::ima())?;
    device.stop_agent()?;
    for _ in 0..2 {
        let status = device.run_once(AWAKE)?;
        assert!(status.success(), "{status}\n{}", world.tails());
    }
    world.never_failed(&device)?;
    device.run_program(FOREIGN_PROGRAM)?;
    let status = device.run_once(AWAKE)?;
    assert!(!status.success(), "{status}\n{}", world.tails());
    world.keylime_says(&device, "FAIL").map(drop)
}
