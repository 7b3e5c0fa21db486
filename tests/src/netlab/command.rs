//! Programs of the system that set things up and end at once.

use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

/// Runs `arguments`; what it wrote to standard output, or an error with what it wrote to the other.
pub fn run(arguments: &[&str]) -> Result<String> {
    let (program, rest) = arguments.split_first().context("no command")?;
    let output = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}: `make setup` installs it"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
