//! The short form of `make chaos`: a dozen kills of a fixed seed, and a few other faults.
//!
//! Times are told and not judged here: they take an idle machine.

use anyhow::{Result, ensure};
use keylime_mqtt_tests::process::Process;
use keylime_mqtt_tests::scratch::{Scratch, read_log};
use std::process::Command;
use std::time::Duration;

/// The run's own bounds are shorter.
const PATIENCE: Duration = Duration::from_secs(280);

#[test]
fn a_dozen_kills_lose_no_device_and_fail_nobody() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-chaos"));
    command.env("TMPDIR", scratch.subdir("tmp")?).env_remove("SEED").env_remove("KILLS");
    command.args([
        "--seed",
        "5",
        "--kills",
        "12",
        "--faults",
        "2",
        "--devices",
        "2",
        "--interval",
        "2",
        "--short",
    ]);
    command.arg("--json").arg(scratch.path().join("chaos.json"));
    let status = Process::spawn("chaos", &mut command, &scratch.log("chaos"))?.wait(PATIENCE)?;
    let said = read_log(&scratch.log("chaos"));
    ensure!(status.success(), "what was claimed does not hold:\n{said}");
    for words in
        ["holds: no false FAIL, no device lost", "holds: 12 kills", "holds: no files are left behind"]
    {
        ensure!(said.contains(words), "never said {words:?}:\n{said}");
    }
    Ok(())
}
