//! What SECURITY.md says is there, and what the service units say holds.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::binaries;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exposure as `systemd-analyze security` counts it, in tenths: 2.0.
const MOST_EXPOSED: &str = "20";
const UNITS: [(&str, &str); 2] = [("agent", "keylime-mqtt-agent"), ("bridge", "keylime-mqtt-bridge")];

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

fn unit(folder: &str, name: &str) -> PathBuf {
    repository().join(folder).join("systemd").join(format!("{name}.service"))
}

/// `path.rs::name` in backquotes, as SECURITY.md names a test.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|words| words.split_once(".rs::")).collect()
}

#[test]
fn every_test_that_security_md_names_exists() -> Result<()> {
    let text = fs::read_to_string(repository().join("SECURITY.md"))?;
    let named = named_tests(&text);
    ensure!(named.len() > 50, "only {} tests are named", named.len());
    let mut missing = Vec::new();
    for (file, name) in named {
        let source = fs::read_to_string(repository().join(format!("{file}.rs")));
        let source = source.with_context(|| format!("{file}.rs, named in SECURITY.md"))?;
        if !source.contains(&format!("fn {name}(")) {
            missing.push(format!("{file}.rs::{name}"));
        }
    }
    ensure!(missing.is_empty(), "SECURITY.md names tests that are not there: {missing:#?}");
    Ok(())
}

#[test]
fn every_threat_in_security_md_names_a_test() -> Result<()> {
    let text = fs::read_to_string(repository().join("SECURITY.md"))?;
    let (_, threats) = text.split_once("## Threats").context("no section of threats")?;
    let (threats, _) = threats.split_once("## Not defended").context("no section of what is not defended")?;
    let rows = threats.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat"));
    let mut count = 0;
    for row in rows {
        count += 1;
        ensure!(!named_tests(row).is_empty(), "no test is named for: {row}");
    }
    ensure!(count > 20, "only {count} threats were found");
    Ok(())
}

/// Without systemd there is nothing to judge them by; that is said and no failure.
fn systemd_is_here() -> bool {
    let here =
        Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success());
    if !here {
        eprintln!("systemd-analyze is not here: the units were not looked at");
    }
    here
}

#[test]
fn the_units_are_hardened_as_security_md_says() -> Result<()> {
    if !systemd_is_here() {
        return Ok(());
    }
    for (folder, name) in UNITS {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", "--threshold", MOST_EXPOSED])
            .arg(unit(folder, name))
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("exposure level"), "{name} was not judged: {said}");
        ensure!(output.status.success(), "{name} is exposed more than 2.0:\n{said}");
    }
    Ok(())
}

#[test]
fn systemd_takes_the_units_and_finds_nothing_in_them_to_complain_of() -> Result<()> {
    if !systemd_is_here() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    for (folder, name) in UNITS {
        // the installed path is the packager's; here it is the program that was built
        let text = fs::read_to_string(unit(folder, name))?;
        let program = binaries::path(name)?;
        let text = text.replace(&format!("/usr/bin/{name}"), program.to_str().context("a path of no text")?);
        let copy = directory.path().join(format!("{name}.service"));
        fs::write(&copy, text)?;
        let output = Command::new("systemd-analyze").arg("verify").arg(&copy).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let about_it: Vec<_> = said.lines().filter(|line| line.contains(name)).collect();
        ensure!(output.status.success() && about_it.is_empty(), "{name}: {said}");
    }
    Ok(())
}
