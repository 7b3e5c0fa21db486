//! What SECURITY.md says is there, and what the service units say holds.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::binaries;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The services, in the order in which SECURITY.md names their exposure.
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

/// Whether `source` has a function of this name that the test runner runs: marked as a test, and not ignored.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let defined = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|line| line.strip_prefix(name))
            .is_some_and(|line| line.starts_with('('))
    };
    let Some(at) = lines.iter().position(|line| defined(line)) else { return false };
    let above =
        lines.iter().take(at).rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<&str> =
        above.filter_map(|line| line.strip_prefix("#[")?.split(['(', ']', ' ']).next()).collect();
    let is_test = |attribute: &&str| *attribute == "test" || attribute.ends_with("::test");
    attributes.iter().any(is_test) && !attributes.contains(&"ignore")
}

#[test]
fn only_what_the_test_runner_runs_counts_as_a_test() {
    for (source, counts) in [
        ("#[test]\nfn claim() {", true),
        ("    /// Words.\n    #[tokio::test(start_paused = true)]\n    async fn claim() {", true),
        ("fn claim() {", false),
        ("#[test]\nfn other() {}\n\nfn claim() {", false),
        ("#[test]\nfn claim_of_another() {", false),
        ("#[test]\n#[ignore = \"slow\"]\nfn claim() {", false),
        ("#[ignore]\n#[test]\nfn claim() {", false),
        ("#[cfg(test)]\nfn claim() {", false),
    ] {
        assert_eq!(has_test(source, "claim"), counts, "{source}");
    }
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
        if !has_test(&source, name) {
            missing.push(format!("{file}.rs::{name}"));
        }
    }
    ensure!(missing.is_empty(), "SECURITY.md names what is no test that runs: {missing:#?}");
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

/// Its version. Without systemd there is nothing to judge the units by; that is said and no failure.
fn systemd_version() -> Option<u32> {
    let said = Command::new("systemd-analyze").arg("--version").output().ok().map(|output| output.stdout);
    let said = said.map(|said| String::from_utf8_lossy(&said).into_owned());
    let version = said.as_deref().and_then(|said| number(said.strip_prefix("systemd ")?));
    if version.is_none() {
        eprintln!("SKIPPED: systemd-analyze is not here, so the units were not looked at");
    }
    version
}

/// The number with which a text begins; of one with a decimal, the tenths.
fn number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.get(..end)?.trim_end_matches('.').replace('.', "").parse().ok()
}

/// The number after `words` in a text.
fn number_after(text: &str, words: &str) -> Result<u32> {
    text.split_once(words)
        .and_then(|(_, rest)| number(rest))
        .with_context(|| format!("no number after {words:?}: {text}"))
}

#[test]
fn the_units_are_hardened_as_security_md_says() -> Result<()> {
    let Some(version) = systemd_version() else { return Ok(()) };
    let text = fs::read_to_string(repository().join("SECURITY.md"))?.replace('\n', " ");
    let (_, figures) = text.split_once("an exposure of ").context("no word on exposure")?;
    let told = [number(figures).context("no figure for the agent")?, number_after(figures, " and ")?];
    let told_of = number_after(figures, "(version ")?;
    for ((folder, name), told) in UNITS.into_iter().zip(told) {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(unit(folder, name))
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let counted = number_after(&said, &format!("exposure level for {name}.service: "))?;
        // another version counts by other rules; that it finds more exposure is worth a look all the same
        let holds = if version == told_of { counted == told } else { counted <= told };
        ensure!(holds, "{name}: {counted} tenths and not {told}, as SECURITY.md says:\n{said}");
    }
    Ok(())
}

/// `make lint` needs the network the first time; the dates come before that.
#[test]
fn an_exception_in_deny_toml_ends_on_its_day_and_each_has_one() -> Result<()> {
    let on = |today: &str| {
        let output = Command::new(repository().join("tests/deny.sh"))
            .arg("dates")
            .env("TODAY", today)
            .output()
            .context("tests/deny.sh")?;
        anyhow::Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let deny = fs::read_to_string(repository().join("deny.toml"))?;
    let first =
        deny.split("until ").skip(1).filter_map(|rest| rest.get(..10)).filter(|day| number(day).is_some());
    let first = first.min().context("no end")?;
    let (good, said) = on(first)?;
    ensure!(good, "on the last day itself: {said}");
    let (good, said) = on("2999-01-01")?;
    ensure!(!good && said.contains(first), "long after the end: {said}");
    Ok(())
}

#[test]
fn systemd_takes_the_units_and_finds_nothing_in_them_to_complain_of() -> Result<()> {
    if systemd_version().is_none() {
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
