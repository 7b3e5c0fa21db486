//! The doctors of device and bridge on the whole thing: real Keylime, mosquitto as shipped, a TPM, and what is wrong with them.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::swtpm::EkCa;
use keylime_mqtt_tests::world::World;
use serde_json::Value;

/// What a doctor said, as JSON.
struct Diagnosis {
    is_well: bool,
    report: Value,
}

impl Diagnosis {
    fn of((is_well, said): (bool, String)) -> Result<Self> {
        // the bridge's commands may log beside it
        let json = said.find('{').and_then(|start| said.get(start..)).with_context(|| said.clone())?;
        Ok(Self { is_well, report: serde_json::from_str(json).with_context(|| said.clone())? })
    }

    fn of_device(device: &Device) -> Result<Self> {
        Self::of(device.ask_agent(&["doctor", "--json"])?)
    }

    fn of_bridge(world: &World, arguments: &[&str]) -> Result<Self> {
        Self::of(world.bridge.ask(&[&["doctor", "--json"], arguments].concat())?)
    }

    fn has(&self, name: &str, state: &str, words: &[&str]) -> Result<()> {
        let steps = self.report.get("steps").and_then(Value::as_array).context("steps")?;
        let step = steps
            .iter()
            .find(|step| step.get("step").is_some_and(|found| found == name))
            .with_context(|| format!("{name}: {self:#}"))?;
        ensure!(step.get("state").is_some_and(|found| found == state), "{name} is not {state}: {self:#}");
        let said = step.to_string();
        for word in words {
            ensure!(said.contains(word), "{word:?} is not in {said}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.report)
    }
}

#[test]
fn doctors_find_a_whole_world_well_and_then_each_thing_that_is_taken_away() -> Result<()> {
    let mut world = World::on_mosquitto()?;
    let mut device = world.passing_device("patient", DeviceSettings::full()?, &Policies::full())?;

    // beside the agent, whose connection the shipped mosquitto ends for a moment, and who attests on
    let beside = Diagnosis::of_device(&device)?;
    beside.has("state", "ok", &["an AK that the registrar has accepted", "an agent runs"])?;
    beside.has("ak", "not-checked", &["an agent uses the AK"])?;
    beside.has("ima-log", "ok", &["leads to PCR 10"])?;
    beside.has("uefi-log", "ok", &["events"])?;
    beside.has("login", "ok", &["-doctor"])?;
    beside.has("topics", "ok", &["a bridge answered"])?;
    beside.has("bridge", "ok", &["passed"])?;
    world.passes_anew(&device)?;
    world.never_failed(&device)?;

    device.stop_agent()?;
    let alone = Diagnosis::of_device(&device)?;
    for step in ["ak", "tpm-clock", "tls", "login", "topics", "bridge", "packet", "others"] {
        alone.has(step, "ok", &[])?;
    }
    ensure!(alone.is_well, "{alone:#}");

    let conf = world.keylime.verifier_conf();
    let conf = conf.to_str().context("a path")?;
    let bridge = Diagnosis::of_bridge(&world, &["--verifier-conf", conf, "--devices", "10"])?;
    bridge.has("status", "ok", &["a bridge runs"])?;
    bridge.has("login", "not-checked", &["--login-too"])?;
    bridge.has("registrar", "ok", &["2.6"])?;
    bridge.has("verifier", "ok", &["push mode"])?;
    bridge.has("conf-mode", "ok", &["push"])?;
    ensure!(bridge.report["steps"].to_string().contains("conf-max-workers"), "{bridge:#}");

    // a TPM of a maker that nobody trusts
    let stranger = EkCa::found(&world.scratch.subdir("stranger")?)?;
    let mut refused = world.device_by(&stranger, "refused", DeviceSettings::default())?;
    refused.start_agent()?;
    world.observer()?.wait_from(0, "the refusal", |seen| {
        let result = seen.result().filter(|result| result.agent_id.as_str() == refused.id())?;
        result.reason.filter(|reason| reason.starts_with("refused"))
    })?;
    refused.stop_agent()?;
    Diagnosis::of_device(&refused)?.has(
        "bridge",
        "failed",
        &["leads to no CA the bridge trusts", "ek_ca_dir"],
    )?;

    // the registrar goes, then the bridge
    world.keylime.stop_registrar()?;
    world.bridge.stop()?;
    let bridge = Diagnosis::of_bridge(&world, &[])?;
    bridge.has("registrar", "failed", &["cannot be connected to"])?;
    bridge.has("login", "ok", &["keylime-mqtt-bridge"])?;
    bridge.has("topics", "ok", &["were heard of"])?;
    bridge.has("challenge", "not-checked", &["acknowledges"])?;
    ensure!(!bridge.is_well, "{bridge:#}");
    // and something extends PCR 10 that is not IMA
    device.extend_pcr(10)?;
    let device = Diagnosis::of_device(&device)?;
    device.has("bridge", "failed", &["said goodbye", "start keylime-mqtt-bridge"])?;
    device.has("ima-log", "failed", &["do not lead to PCR 10"])
}
