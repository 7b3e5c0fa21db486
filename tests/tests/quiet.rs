//! What logs hold: no warning where nothing is wrong, and never a secret.

use anyhow::{Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::on_each_broker;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::secrets::{Secret, credential, kept, passed, session_token, text};
use keylime_mqtt_tests::squid::Squid;
use keylime_mqtt_tests::world::{World, WorldSettings};
use std::fs;

on_each_broker!(a_healthy_run_logs_no_warning);

fn a_healthy_run_logs_no_warning(broker: BrokerKind) -> Result<()> {
    // Slow enough that a busy machine does not make a device late, which would be worth a warning.
    let keylime = KeylimeSettings { quote_interval: 4, ..KeylimeSettings::default() };
    let mut world = World::start(&WorldSettings { broker, keylime, ..WorldSettings::default() })?;
    let mut devices = Vec::new();
    for (name, settings, policies) in [
        ("quote", DeviceSettings::default(), Policies::quote_only()),
        ("full", DeviceSettings::full()?, Policies::full()),
    ] {
        devices.push(world.passing_device(name, settings, &policies)?);
    }
    for device in &devices {
        world.passes_anew(device)?;
    }
    world.bridge.stop()?;
    for device in &mut devices {
        device.stop_agent()?;
    }
    let logs = devices.iter().map(Device::agent_log).chain([world.bridge.log()]);
    for line in logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()) {
        let fine = line.contains(" INFO ") || line.contains(" DEBUG ");
        ensure!(fine, "a healthy run logged: {line}\n{}", world.tails());
    }
    Ok(())
}

#[test]
fn no_secret_appears_in_any_log_even_at_trace_level() -> Result<()> {
    let mut world = World::prepare(&WorldSettings::default())?;
    let squid = Squid::start(world.broker.port(), &world.scratch)?;
    let proxy = squid.table()?;
    world.bridge.reconfigure(|settings| settings.broker.more.clone_from(&proxy))?;
    world.bridge.log_everything();
    world.start_parts()?;
    let settings = DeviceSettings { agent: "log = \"trace\"\n".to_owned(), ..DeviceSettings::full()? };
    let mut device = world.device("chatty", settings)?;
    device.change_access(|access| access.more = proxy)?;
    world.bring_up(&mut device, &Policies::full())?;
    world.passes_anew(&device)?;
    let mark = world.observer()?.mark();
    device.run_program("/tmp/miner")?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    device.stop_agent()?;
    world.bridge.stop()?;

    let passed = passed(&world, &device)?;
    let token = session_token(&world, &device, &passed)?;
    let others =
        kept(&world, &device)?.into_iter().chain(credential(&world, &device)?).chain(squid.credentials());
    let secrets: Vec<Secret> =
        passed.into_iter().chain(others).chain([Secret::new("token", token)]).collect();
    for (part, log) in [("agent", device.agent_log()), ("bridge", world.bridge.log())] {
        ensure!(log.contains("TRACE") || log.contains("DEBUG"), "{part} did not log at length");
        ensure!(log.contains("through a proxy"), "{part} used no password");
        ensure!(!log.contains("Bearer"), "{part} logged a header with a token");
        ensure!(token_of_any_session(&log).is_none(), "{part} logged a session token");
    }
    // Keylime's logs and the broker's too: what they have of ours is not for them to log either.
    let mut found = Vec::new();
    for log in fs::read_dir(world.scratch.logs())? {
        let log = log?.path();
        let shown = text(&fs::read(&log)?);
        let in_it = secrets.iter().filter(|secret| secret.shows_in(&shown));
        found.extend(in_it.map(|secret| format!("the {} is in {}", secret.what, log.display())));
    }
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// Keylime's tokens: the session's UUID, a dot, 43 characters.
fn token_of_any_session(log: &str) -> Option<&str> {
    log.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).find(|word| {
        word.split_once('.').is_some_and(|(uuid, rest)| {
            uuid.len() == 36 && uuid.matches('-').count() == 4 && rest.len() >= 40
        })
    })
}
