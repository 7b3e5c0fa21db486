//! The demo shows what it promises, and leaves nothing behind however it ends.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::eventually::{eventually, within};
use keylime_mqtt_tests::process::Process;
use keylime_mqtt_tests::scratch::{Scratch, read_log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The demo's own bounds are shorter.
const DEMO_PATIENCE: Duration = Duration::from_secs(280);

fn demo(scratch: &Scratch, once: bool) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-demo"));
    // All that it makes lies below its temporary directory, by which its processes are recognised.
    command.env("TMPDIR", scratch.subdir("tmp")?).env("ONCE", if once { "1" } else { "" });
    Process::spawn("demo", &mut command, &scratch.log("demo"))
}

/// Processes whose command line names something below `dir`.
fn processes_below(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        // Gone in between, or no process.
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let named = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&dir);
        if named(&command) || named(&environment) {
            found.push(String::from_utf8_lossy(&command).replace('\0', " "));
        }
    }
    Ok(found)
}

#[test]
fn the_demo_runs_through_and_agrees_with_keylime() -> Result<()> {
    let scratch = Scratch::new()?;
    let status = demo(&scratch, true)?.wait(DEMO_PATIENCE)?;
    let said = read_log(&scratch.log("demo"));
    ensure!(status.success(), "the demo failed:\n{said}");
    for words in ["all pass", "FAIL", "keylime_tenant -c cvstatus agrees", "B up"] {
        ensure!(said.contains(words), "the demo never said {words:?}:\n{said}");
    }
    Ok(())
}

#[test]
fn ctrl_c_and_sigkill_end_the_demo_with_everything_it_started() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let scratch = Scratch::new()?;
        let mut demo = demo(&scratch, false)?;
        within(DEMO_PATIENCE, "the demo boots devices", &scratch.logs(), || {
            ensure!(demo.is_running(), "the demo ended:\n{}", read_log(&scratch.log("demo")));
            let tmp = scratch.path().join("tmp");
            let agents = processes_below(&tmp)?.into_iter().filter(|command| command.contains("agent.toml"));
            Ok((agents.count() > 0).then_some(()))
        })?;
        kill(Pid::from_raw(i32::try_from(demo.pid())?), signal)?;
        demo.wait(DEMO_PATIENCE).with_context(|| format!("{signal} did not end the demo"))?;
        let tmp = scratch.path().join("tmp");
        eventually(&format!("nothing is left after {signal}"), &scratch.logs(), || {
            let left = processes_below(&tmp)?;
            let files = fs::read_dir(&tmp)?.count();
            Ok((left.is_empty() && files == 0).then_some(()))
        })?;
    }
    Ok(())
}
