//! The first attestation when both sides have a reference, made of the logs of a machine of the same make.
//!
//! The golden machine ran what the device ran, but for two percent on either side, and in another order among
//! neighbours: two boots of one image differ so. Its firmware differs where machines of one make do.

use crate::rig::{Plan, Rig};
use crate::uefi;
use crate::workloads::{FIRST, Figure, Outcome, Spent};
use anyhow::{Result, ensure};
use keylime_mqtt_tests::binaries;
use keylime_mqtt_tests::ima::list;
use keylime_mqtt_tests::programs::sample;
use keylime_mqtt_tests::scratch::Scratch;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One in so many entries is on the one machine and not on the other.
const DIFFERS: usize = 50;
/// Entries among which the order is another.
const NEIGHBOURS: usize = 8;

/// With IMA logs of so many entries.
pub(crate) fn with_reference(name: &'static str, line: &'static str, entries: usize) -> Result<Outcome> {
    if !understood("reference")? {
        return Ok(Outcome::Skipped("the bridge has no command `reference` yet".to_owned()));
    }
    let all = sample(entries - 1 + entries / DIFFERS)?;
    let without = |rest: usize| -> Vec<String> {
        all.iter().enumerate().filter(|(at, _)| at % DIFFERS != rest).map(|(_, name)| name.clone()).collect()
    };
    let mut golden = without(0);
    golden.chunks_mut(NEIGHBOURS).for_each(<[String]>::reverse);
    let scratch = Scratch::new()?;
    let reference = make(scratch.path(), &golden)?;
    let quoted = reference.display();
    let plan = Plan {
        agent: format!("reference = \"{quoted}\"\n"),
        bridge: vec![format!("references=[\"{quoted}\"]")],
        ..Plan::with_logs(name, without(DIFFERS / 2))?
    };
    let mut rig = Rig::build(plan)?;
    let begun = rig.begin()?;
    rig.await_challenges(begun.passed, 1)?;
    let size = fs::metadata(&reference)?.len();
    let trace = rig.finish()?;
    let first = begun.phases(&trace)?.first;
    let note = format!("a reference of {size} bytes, one in {DIFFERS} entries unknown to it");
    let spent = Spent { table: FIRST, column: name, mean: first.clone() };
    Ok(Outcome::Measured(vec![Figure::new(line, first.bytes, note)], vec![spent]))
}

fn make(dir: &Path, golden: &[String]) -> Result<PathBuf> {
    let (ima, uefi, reference) = (dir.join("golden.ima"), dir.join("golden.uefi"), dir.join("fleet.ref"));
    fs::write(&ima, list(golden))?;
    fs::write(&uefi, uefi::golden()?.bytes())?;
    let mut command = Command::new(binaries::path("keylime-mqtt-bridge")?);
    command.arg("reference").arg("--ima").arg(ima).arg("--uefi").arg(uefi).arg("-o").arg(&reference);
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "reference: {}", String::from_utf8_lossy(&output.stderr));
    Ok(reference)
}

/// Whether the bridge has this command.
fn understood(command: &str) -> Result<bool> {
    let mut bridge = Command::new(binaries::path("keylime-mqtt-bridge")?);
    Ok(bridge.args([command, "--help"]).stdin(Stdio::null()).output()?.status.success())
}
