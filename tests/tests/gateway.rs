//! Devices behind an IoT gateway attest over two brokers, each with the configuration and the ACL that are shipped.

use anyhow::{Result, ensure};
use keylime_mqtt_tests::chain::{Chain, LISTED};
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::observe::{Observer, Seen};
use keylime_mqtt_tests::operator::Policies;

#[test]
fn a_device_behind_a_gateway_attests_and_goes_on_after_either_broker_was_restarted() -> Result<()> {
    let mut chain = Chain::start()?;
    let [id, _] = LISTED;
    let mut device = chain.device(id, DeviceSettings::full()?)?;
    chain.world.bring_up(&mut device, &Policies::full())?;
    chain.gateway.kill();
    chain.gateway.power_on()?;
    chain.world.passes_anew(&device)?;
    chain.world.broker.kill();
    chain.world.broker.power_on()?;
    chain.world.passes_anew(&device)?;
    chain.world.never_failed(&device)
}

#[test]
fn behind_a_gateway_nobody_speaks_for_another_and_who_is_not_listed_is_not_heard() -> Result<()> {
    let chain = Chain::start()?;
    let [id, other] = LISTED;
    let mut device = chain.device(id, DeviceSettings::default())?;
    chain.world.bring_up(&mut device, &Policies::quote_only())?;
    let mut unlisted = chain.device("device-x", DeviceSettings::default())?;
    chain.world.admit(unlisted.id(), unlisted.ek_hash())?;
    unlisted.start_agent()?;

    let certificate = chain.site.issue(other, &[])?;
    let logs = chain.world.scratch.logs();
    let heard = [&format!("keylime/v1/{other}/challenge")[..], "keylime/v1/+/challenge"];
    let intruder = Observer::connect(chain.gateway.port(), &chain.site.ca(), &certificate, &heard, &logs)?;
    let mark = chain.world.observer()?.mark();
    for topic in ["evidence", "evidence/via", "presence", "challenge", "result"] {
        intruder.publish(&format!("keylime/v1/{id}/{topic}"), false, b"forged")?;
    }
    // it may say this, and the gateway passes on in order
    intruder.publish(&format!("keylime/v1/{other}/evidence"), false, b"last")?;
    chain
        .world
        .observer()?
        .wait_from(mark, "the intruder's own word", |seen| (seen.payload == b"last").then_some(()))?;
    chain.world.passes_anew(&device)?;

    let forged = |seen: &Seen| (seen.payload == b"forged").then(|| seen.topic.clone());
    let forged = chain.world.observer()?.collect_from(0, forged);
    ensure!(forged.is_empty(), "the cloud heard what was forged: {forged:?}");
    let of_unlisted = |seen: &Seen| seen.topic.contains("device-x").then(|| seen.topic.clone());
    let heard = chain.world.observer()?.collect_from(0, of_unlisted);
    ensure!(heard.is_empty(), "the cloud heard of a device that its ACL does not list: {heard:?}");
    ensure!(intruder.seen().is_empty(), "a device read challenges of others: {:?}", intruder.seen());
    chain.world.never_failed(&device)
}
