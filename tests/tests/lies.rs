//! A hostile broker on real parts: what it says costs time and nothing else.

use anyhow::{Result, ensure};
use keylime_mqtt_tests::campaign::{Campaign, run};
use std::time::Duration;

/// The short form of `make lies`; the claim about time is made there and in the simulated exchange.
#[test]
fn a_broker_that_lies_forces_no_fail_and_obtains_no_pass_and_honest_devices_pass_when_it_stops() -> Result<()>
{
    let campaign = Campaign {
        seed: 7,
        devices: 5,
        newcomers: 1,
        rounds: 2,
        verdicts: 0,
        one_in: 3,
        lying: Duration::from_secs(8),
        interval: 3,
    };
    let came = run(&campaign, |_| {})?;
    ensure!(came.tampered == 1, "{came:?}");
    ensure!(came.table.total() > 20, "hardly a lie was told: {}", came.table.total());
    Ok(())
}
