//! No message grows unseen: `make bench-link` in small, without a link to count on.
//!
//! What passed the broker is held against sizes that are written down here. They follow from the contract and from
//! the logs of the scenario, not from time; certificates and signatures of fresh keys differ by a few bytes.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::messages::{Up, Verdict};
use keylime_mqtt_schemas::wire::unpack_down;
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::World;
use std::collections::{BTreeMap, BTreeSet};

/// As long as the ids that operators give.
const ID: &str = "6f1c2c1e-8a51-4c39-9d0c-0f4d7d3f5b11";

/// Bytes of MQTT payload by phase and kind: of all `Blob`s together, of the largest message of any other kind.
/// A smaller figure is good news to be written down here, a larger one needs a reason.
const BASELINES: [(&str, &str, usize); 16] = [
    ("first", "Enrol", 1_629),
    ("first", "Credential", 345),
    ("first", "Activation", 89),
    ("first", "Ready", 774),
    ("first", "Prove", 23),
    ("first", "Proof", 437),
    ("first", "Blob", 11_463),
    ("first", "Challenge", 201),
    ("first", "Evidence", 801),
    ("steady", "Challenge", 52),
    ("steady", "Evidence", 277),
    ("ten new entries", "Challenge", 52),
    ("ten new entries", "Evidence", 670),
    ("agent restarted", "Ready", 929),
    ("agent restarted", "Challenge", 52),
    ("agent restarted", "Evidence", 801),
];

/// Answers that say little and do not come in every run (`Later`, `Enrolled`), and requests for a part of a log.
const SHORT: usize = 48;

#[test]
fn no_message_is_a_tenth_larger_than_is_written_down() -> Result<()> {
    let world = World::on_mosquitto()?;
    let programs: Vec<String> = (0..310).map(|file| format!("/usr/lib/gateway/module-{file}.so")).collect();
    let (before, new) = programs.split_at(300);
    let names: Vec<&str> = programs.iter().map(String::as_str).collect();
    let policies = Policies { runtime: Some(runtime_policy(&names)), ..Policies::full() };
    let settings = DeviceSettings { id: Some(ID.to_owned()), ..DeviceSettings::full()? };
    let mut device = world.device("sized", settings)?;
    world.admit(device.id(), device.ek_hash())?;
    device.run_programs(before)?;
    let observer = world.observer()?;
    let mut phases = Phases::default();

    let mark = observer.mark();
    device.start_agent()?;
    world.enrol(&device, &policies)?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    phases.add("first", &observer.seen_from(mark))?;

    // The cycle after the first may still bring a ticket.
    world.passes_anew(&device)?;
    let mark = observer.mark();
    world.passes_anew(&device)?;
    phases.add("steady", &observer.seen_from(mark))?;

    let mark = observer.mark();
    device.run_programs(new)?;
    world.passes_anew(&device)?;
    phases.add("ten new entries", &observer.seen_from(mark))?;

    device.stop_agent()?;
    let mark = observer.mark();
    device.start_agent()?;
    world.passes_anew(&device)?;
    phases.add("agent restarted", &observer.seen_from(mark))?;

    world.never_failed(&device)?;
    phases.hold()
}

/// Different payloads by phase and kind: a repeat, which a busy machine may cause, counts once.
#[derive(Default)]
struct Phases(BTreeMap<(&'static str, &'static str), BTreeSet<Vec<u8>>>);

impl Phases {
    fn add(&mut self, phase: &'static str, seen: &[Seen]) -> Result<()> {
        for seen in seen {
            let kind = if seen.topic == format!("keylime/v1/{ID}/challenge") {
                unpack_down(&seen.payload).context("no message of a bridge")?.question.kind()
            } else if seen.topic == format!("keylime/v1/{ID}/evidence") {
                // One payload holds any message of this scenario: what is no whole message has grown too much.
                decode::<Up>(&seen.payload).context("no whole message of a device")?.kind()
            } else {
                continue;
            };
            self.0.entry((phase, kind)).or_default().insert(seen.payload.clone());
        }
        Ok(())
    }

    fn size(&self, phase: &str, kind: &str) -> Option<usize> {
        let ((_, kind), payloads) = self.0.iter().find(|(key, _)| **key == (phase, kind))?;
        let sizes = payloads.iter().map(Vec::len);
        if *kind == "Blob" { Some(sizes.sum()) } else { sizes.max() }
    }

    fn hold(&self) -> Result<()> {
        let mut sizes = Vec::new();
        let mut grown = Vec::new();
        for (phase, kind) in self.0.keys() {
            let size = self.size(phase, kind).context("a kind without messages")?;
            let written =
                BASELINES.iter().find(|(p, k, _)| p == phase && k == kind).map(|(_, _, size)| *size);
            sizes.push(format!("(\"{phase}\", \"{kind}\", {size}),"));
            if size > written.map_or(SHORT, |written| written + written / 10) {
                grown.push(format!("{phase}: {kind} has {size} bytes, written down are {written:?}"));
            }
        }
        for (phase, kind, _) in BASELINES {
            if self.size(phase, kind).is_none() {
                grown.push(format!("{phase}: no {kind} passed, so its size is not known to hold"));
            }
        }
        ensure!(grown.is_empty(), "{}\nsizes now:\n{}", grown.join("\n"), sizes.join("\n"));
        Ok(())
    }
}
