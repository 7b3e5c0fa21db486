//! Agent and bridge find their broker where the network or the clock makes it hard.

use anyhow::{Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::{Broker, Elsewhere};
use keylime_mqtt_tests::chain::mosquitto;
use keylime_mqtt_tests::clock::WallClock;
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::pki::Pki;
use keylime_mqtt_tests::ports::Port;
use keylime_mqtt_tests::scratch::Scratch;
use keylime_mqtt_tests::squid::Squid;
use keylime_mqtt_tests::world::{World, WorldSettings};

#[test]
fn a_device_that_wakes_in_1970_says_so_and_passes_once_its_clock_is_right_without_a_restart() -> Result<()> {
    let world = World::on_mosquitto()?;
    let clock = WallClock::at("1970-01-01 00:00:10", world.scratch.path())?;
    let settings = DeviceSettings { launcher: clock.launcher(), ..DeviceSettings::full()? };
    let mut device = world.device("no-rtc", settings)?;
    let right = device.kernel_booted_at(10)?;
    device.start_agent()?;
    eventually("the agent names its clock", &world.scratch.logs(), || {
        let log = device.agent_log();
        let named = log.contains("this machine's clock says Thu, 01 Jan 1970 00:00:")
            && log.contains("set the clock (NTP");
        Ok(named.then_some(()))
    })?;
    let started = device.agent()?.pid();
    ensure!(!world.keylime.has_activated(device.id()), "it registered with a clock that is not set");
    ensure!(device.agent_log().matches("no connection").count() == 1, "{}", device.agent_log());
    let (well, said) = device.ask_agent(&["doctor"])?;
    let seen = said.lines().any(|line| line.contains("clock") && line.contains("1970"));
    ensure!(!well && seen, "the doctor does not see the clock: {said}");

    device.kernel_booted_at(right)?;
    clock.set_right()?;
    let mark = world.observer()?.mark();
    world.enrol(&device, &Policies::full())?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    world.passes_anew(&device)?;
    ensure!(device.agent()?.is_running() && device.agent()?.pid() == started, "the agent was restarted");
    world.never_failed(&device)
}

#[test]
fn the_bridge_goes_through_a_proxy_with_a_password_and_falls_back_to_a_websocket() -> Result<()> {
    let scratch = Scratch::new()?;
    let [tls, websocket] = [Port::claim()?, Port::claim()?];
    let pki = Pki::in_dir(&scratch.subdir("pki")?)?;
    let place = mosquitto("broker", tls.number(), "mosquitto/mosquitto.conf", "acl", Vec::new());
    let place = Elsewhere { websocket_port: Some(websocket.number()), ..place };
    let server = pki.issue("broker", &["localhost"])?;
    let broker = Broker::configure_elsewhere(place, &scratch, &pki, server)?;
    let squid = Squid::start(websocket.number(), &scratch)?;
    let mut world = World::around(broker, pki, scratch, &WorldSettings::default())?;
    let fallback = format!(
        "fallback_after_attempts = 1\n{}[[broker.fallback]]\nhost = \"localhost\"\nport = {}\ntransport = \"websocket\"\n",
        squid.table()?,
        websocket.number()
    );
    world.bridge.reconfigure(|bridge| bridge.broker.more = fallback)?;
    world.start_parts()?;
    let device = world.passing_device("device", DeviceSettings::default(), &Policies::quote_only())?;
    world.passes_anew(&device)?;
    let log = squid.log();
    let refused = format!("CONNECT localhost:{}", tls.number());
    let tunnelled = format!("CONNECT localhost:{}", websocket.number());
    let line =
        |with: &str, status: &str| log.lines().any(|line| line.contains(with) && line.contains(status));
    ensure!(line(&refused, "/403"), "the proxy lets the first way through: {log}");
    // squid logs a tunnel at its end; while it stands, the bridge says so
    let said = world.bridge.log();
    ensure!(said.contains("connected to the broker through a proxy"), "{said}");
    world.bridge.stop()?;
    eventually("squid logs the tunnel", &world.scratch.logs(), || {
        let log = squid.log();
        Ok(log.lines().any(|line| line.contains(&tunnelled) && line.contains("/200")).then_some(()))
    })?;
    world.never_failed(&device)
}
