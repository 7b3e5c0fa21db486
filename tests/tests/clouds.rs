//! Brokers with limits: stand-ins for clouds, and limits that the settings do not know of.

use anyhow::{Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::pki::Pki;
use keylime_mqtt_tests::ports::Port;
use keylime_mqtt_tests::scratch::Scratch;
use keylime_mqtt_tests::stand_in::{AlpnGate, Cloud, Stretch, profile};
use keylime_mqtt_tests::world::{World, WorldSettings};

/// The agent's payloads are then as large as the broker takes them.
const LARGEST_PAYLOADS: &str = "payload_bytes = 122880\n";

/// IMA entries that fill a payload of the default size and some of a second.
const MORE_THAN_ONE_PAYLOAD: usize = 600;

/// A world around a broker with limits, and the settings with which agent and bridge connect to it.
struct Site {
    world: World,
    settings: String,
    port: u16,
    _port: Port,
}

impl Site {
    fn start(cloud: Cloud, settings: &str, gate: Option<&'static str>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let claimed = Port::claim()?;
        let pki = Pki::in_dir(&scratch.subdir("pki")?)?;
        let broker = cloud.broker(&claimed, &scratch, &pki)?;
        let port = match gate {
            Some(protocol) => AlpnGate::before(claimed.number(), protocol)?.port(),
            None => claimed.number(),
        };
        // long logs are judged for seconds
        let keylime = KeylimeSettings { quote_interval: 6, ..KeylimeSettings::default() };
        let mut world =
            World::around(broker, pki, scratch, &WorldSettings { keylime, ..WorldSettings::default() })?;
        world.bridge.reconfigure(|bridge| {
            bridge.broker.port = port;
            settings.clone_into(&mut bridge.broker.more);
        })?;
        world.start_parts()?;
        Ok(Self { world, settings: settings.to_owned(), port, _port: claimed })
    }

    /// A new device that connects with the same settings; its agent is not started.
    fn device(&self, settings: DeviceSettings) -> Result<Device> {
        let mut device = self.world.device("device", settings)?;
        device.change_access(|access| {
            access.port = self.port;
            self.settings.clone_into(&mut access.more);
        })?;
        Ok(device)
    }

    fn stretch(&self) -> Result<Stretch> {
        Ok(Stretch::of(&self.world.observer()?.seen()))
    }

    /// A device that has run so many programs, and a policy that allows them; its agent is not started.
    fn device_with_entries(&self, entries: usize, agent: &str) -> Result<(Device, Policies)> {
        let programs: Vec<String> =
            (0..entries).map(|file| format!("/usr/lib/gateway/module-{file}.so")).collect();
        let names: Vec<&str> = programs.iter().map(String::as_str).collect();
        let policies = Policies { runtime: Some(runtime_policy(&names)), ..Policies::default() };
        let mut device =
            self.device(DeviceSettings { agent: agent.to_owned(), ..DeviceSettings::with_ima() })?;
        device.run_programs(&programs)?;
        Ok((device, policies))
    }

    /// 20 000 entries, as after weeks of uptime; what Keylime has kept of them is what the device's kernel shows.
    fn twenty_thousand_entries_arrive_unchanged_and_pass(&self) -> Result<()> {
        let (mut device, policies) = self.device_with_entries(20_000, LARGEST_PAYLOADS)?;
        self.world.bring_up(&mut device, &policies)?;
        let (kept, shown) = (self.world.keylime.kept_ima_log(device.id())?, device.ima_log()?);
        ensure!(kept.len() == shown.len(), "Keylime has {} bytes of {}", kept.len(), shown.len());
        ensure!(kept == shown, "Keylime has another log than the device");
        let travelled: usize = self.world.observer()?.seen().iter().map(|seen| seen.payload.len()).sum();
        ensure!(travelled > 128 * 1024, "{travelled} bytes put no limit to the test");
        self.world.never_failed(&device)
    }
}

#[test]
fn twenty_thousand_ima_entries_pass_the_stand_in_for_aws_iot_core_within_its_limits() -> Result<()> {
    let site = Site::start(Cloud::AwsIotCore, &profile("aws-iot-core")?, Some("x-amzn-mqtt-ca"))?;
    site.twenty_thousand_entries_arrive_unchanged_and_pass()?;
    let stretch = site.stretch()?;
    ensure!(stretch.slashes <= 7 && stretch.topic <= 256, "{stretch:?}");
    ensure!(stretch.payload <= 128 * 1024, "{stretch:?}");
    ensure!(stretch.messages_in_a_second <= 100, "{stretch:?}");
    // one message may begin in the second before it is counted
    ensure!(stretch.bytes_in_a_second <= 512 * 1024 + stretch.payload, "{stretch:?}");
    Ok(())
}

#[test]
fn twenty_thousand_ima_entries_pass_a_broker_that_takes_sixteen_kilobytes() -> Result<()> {
    const LIMIT: usize = 16 * 1024;
    let site = Site::start(Cloud::SmallPackets(LIMIT), &format!("max_packet_bytes = {LIMIT}\n"), None)?;
    site.twenty_thousand_entries_arrive_unchanged_and_pass()?;
    let stretch = site.stretch()?;
    ensure!(stretch.payload <= LIMIT && stretch.messages > 20, "{stretch:?}");
    Ok(())
}

#[test]
fn a_device_passes_the_stand_in_for_azure_event_grid_within_its_limits() -> Result<()> {
    let site = Site::start(Cloud::AzureEventGrid, &profile("azure-event-grid")?, None)?;
    let settings = DeviceSettings { agent: LARGEST_PAYLOADS.to_owned(), ..DeviceSettings::full()? };
    let mut device = site.device(settings)?;
    site.world.bring_up(&mut device, &Policies::full())?;
    site.world.passes_anew(&device)?;
    let stretch = site.stretch()?;
    // eight segments
    ensure!(stretch.slashes <= 7 && stretch.topic <= 256, "{stretch:?}");
    ensure!(stretch.payload <= 64 * 1024, "more than its window: {stretch:?}");
    ensure!(stretch.messages_in_a_second <= 1000 && stretch.bytes_in_a_second <= 1_000_000, "{stretch:?}");
    site.world.never_failed(&device)
}

#[test]
fn a_limit_at_which_the_broker_closes_connections_is_learned_and_the_device_passes() -> Result<()> {
    let site = Site::start(Cloud::SmallPackets(10_000), "", None)?;
    let (mut device, policies) = site.device_with_entries(MORE_THAN_ONE_PAYLOAD, "")?;
    site.world.bring_up(&mut device, &policies)?;
    let log = device.agent_log();
    ensure!(log.contains("smaller ones are sent from now on; set broker.max_packet_bytes"), "{log}");
    ensure!(log.matches("no connection").count() == 2, "{log}");
    site.world.never_failed(&device)
}

#[test]
fn a_limit_above_which_the_broker_drops_in_silence_is_learned_and_the_device_passes() -> Result<()> {
    let site = Site::start(Cloud::SmallPayloads(10_000), "", None)?;
    let (mut device, policies) = site.device_with_entries(MORE_THAN_ONE_PAYLOAD, "")?;
    site.world.bring_up(&mut device, &policies)?;
    let log = device.agent_log();
    ensure!(log.contains("smaller payloads are sent from now on"), "{log}");
    site.world.never_failed(&device)
}

#[test]
fn a_broker_that_takes_too_little_is_refused_in_a_clear_word() -> Result<()> {
    let site = Site::start(Cloud::SmallPackets(6000), "", None)?;
    let (mut device, policies) = site.device_with_entries(MORE_THAN_ONE_PAYLOAD, "")?;
    device.start_agent()?;
    site.world.enrol(&device, &policies)?;
    eventually("the agent says what the broker has to take", &site.world.scratch.logs(), || {
        let said = device.agent_log().contains("raise its limit to 9216 bytes or more");
        Ok(said.then_some(()))
    })?;
    let results = site.world.observer()?.results(device.id());
    ensure!(results.iter().all(|result| result.verdict != Verdict::Pass), "{results:?}");
    site.world.never_failed(&device)
}
