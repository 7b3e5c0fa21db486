//! What logs hold: no warning where nothing is wrong, and never a secret.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::messages::{Question, Up, Verdict};
use keylime_mqtt_schemas::wire::unpack_down;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::on_each_broker;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{World, WorldSettings};

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
    let mut world = World::on_mosquitto()?;
    world.bridge.stop()?;
    world.bridge.log_everything();
    world.bridge.start()?;
    let settings = DeviceSettings { agent: "log = \"trace\"\n".to_owned(), ..DeviceSettings::full()? };
    let mut device = world.passing_device("chatty", settings, &Policies::full())?;
    world.passes_anew(&device)?;
    let mark = world.observer()?.mark();
    device.run_program("/tmp/miner")?;
    world.verdict_from(mark, &device, Verdict::Fail)?;
    device.stop_agent()?;
    world.bridge.stop()?;

    let secrets = secrets(&world, &device)?;
    for (part, log) in [("agent", device.agent_log()), ("bridge", world.bridge.log())] {
        ensure!(log.contains("TRACE") || log.contains("DEBUG"), "{part} did not log at length");
        for (what, secret) in &secrets {
            for form in forms(secret) {
                ensure!(!log.contains(&form), "{part} logged a {what}: {form}");
            }
        }
        ensure!(!log.contains("Bearer"), "{part} logged a header with a token");
        ensure!(session_token(&log).is_none(), "{part} logged a session token");
    }
    Ok(())
}

/// Nonces, credentials, auth tags and tickets that passed the broker.
fn secrets(world: &World, device: &Device) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut secrets = Vec::new();
    for seen in world.observer()?.seen() {
        if seen.topic == format!("keylime/v1/{}/challenge", device.id()) {
            match unpack_down(&seen.payload)?.question {
                Question::Credential(message) => {
                    secrets.push(("credential", message.blob.as_slice().to_vec()));
                }
                Question::Prove(message) => {
                    secrets.push(("session nonce", message.nonce.as_bytes().to_vec()));
                }
                Question::Challenge(message) => {
                    secrets.push(("nonce", message.nonce.as_bytes().to_vec()));
                    secrets.extend(message.ticket.map(|ticket| ("ticket", ticket.as_slice().to_vec())));
                }
                _ => {}
            }
        } else if let Ok(Up::Activation(message)) = decode::<Up>(&seen.payload) {
            secrets.push(("auth tag", message.auth_tag.as_bytes().to_vec()));
        }
    }
    let kinds = |kind: &str| secrets.iter().any(|(what, _)| *what == kind);
    let all = ["credential", "auth tag", "session nonce", "nonce", "ticket"];
    let missing: Vec<_> = all.iter().filter(|kind| !kinds(kind)).collect();
    ensure!(
        missing.is_empty(),
        "these never passed the broker, so the scan proves nothing of them: {missing:?}"
    );
    Ok(secrets)
}

/// How bytes may be written in a log.
fn forms(secret: &[u8]) -> [String; 4] {
    let bare = format!("{secret:?}");
    let bare = bare.trim_matches(['[', ']']).to_owned();
    [hex::encode(secret), hex::encode_upper(secret), STANDARD_NO_PAD.encode(secret), bare]
}

/// Keylime's tokens: the session's UUID, a dot, 43 characters.
fn session_token(log: &str) -> Option<&str> {
    log.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).find(|word| {
        word.split_once('.').is_some_and(|(uuid, rest)| {
            uuid.len() == 36 && uuid.matches('-').count() == 4 && rest.len() >= 40
        })
    })
}
