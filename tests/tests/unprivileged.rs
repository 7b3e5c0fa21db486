//! Agent and bridge need no privilege, and what is secret shows nowhere.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keylime_mqtt_bridge::ticket::TicketKeys;
use keylime_mqtt_schemas::messages::Question;
use keylime_mqtt_schemas::wire::unpack_down;
use keylime_mqtt_tests::binaries;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{World, WorldSettings};
use nix::unistd::Uid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`, whom every system has; root's tests run the programs as him.
const NOBODY: &str = "65534";
/// What the registrar and the TPM share of a device, out of the registrar's database.
const QUERY: &str = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(\
                     'select key from registrarmain where agent_id = ?', sys.argv[2:]).fetchone()[0])";

#[test]
fn without_any_privilege_both_attest_and_show_their_secrets_nowhere() -> Result<()> {
    let mut world = World::prepare(&WorldSettings::default())?;
    world.broker.power_on()?;
    world.connect_observer()?;
    world.keylime.start_both()?;
    let agent = launcher(&world, "keylime-mqtt-agent")?;
    let settings = DeviceSettings { binary: agent.last().map(PathBuf::from), ..DeviceSettings::full()? };
    let settings =
        DeviceSettings { launcher: agent.split_last().context("a program")?.1.to_vec(), ..settings };
    let mut device = world.device("plain", settings)?;
    world.bridge.launch_by(launcher(&world, "keylime-mqtt-bridge")?);
    give_away(world.scratch.path())?;
    world.bridge.start()?;
    device.start_agent()?;
    world.enrol(&device, &Policies::full())?;
    world.passes_anew(&device)?;

    let programs = [("agent", device.agent()?.pid()), ("bridge", world.bridge.process()?.pid())];
    for (name, program) in programs {
        has_no_privilege(program).with_context(|| format!("the {name}"))?;
        leaves_no_core(program).with_context(|| format!("the {name}"))?;
    }
    let secrets = secrets(&world, &device)?;
    for (what, secret) in &secrets {
        for (name, program) in programs {
            for file in ["cmdline", "environ"] {
                let shown = fs::read(format!("/proc/{program}/{file}"))?;
                ensure!(!shows(&shown, secret), "the {what} is in the {file} of the {name}");
            }
        }
        for seen in world.observer()?.seen() {
            ensure!(!shows(&seen.payload, secret), "the {what} passed the broker on {}", seen.topic);
        }
        for file in files(world.scratch.path(), &world.keylime.state())? {
            // tickets are sealed, and the registrar's is one that only the TPM can open
            ensure!(!shows(&fs::read(&file)?, secret), "the {what} is in {}", file.display());
        }
    }
    Ok(())
}

/// The words that start a copy of a program as [`NOBODY`], with nothing that root has; the copy lies where nobody may read it.
fn launcher(world: &World, program: &str) -> Result<Vec<String>> {
    let copy = world.scratch.path().join(program);
    fs::copy(binaries::path(program)?, &copy)?;
    let copy = copy.to_str().context("a path of no text")?.to_owned();
    // who is not root has no privilege to lay down
    let without = if Uid::effective().is_root() {
        vec![
            "setpriv",
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
        ]
    } else {
        vec!["setpriv", "--no-new-privs"]
    };
    Ok(without.into_iter().map(str::to_owned).chain([copy]).collect())
}

fn give_away(directory: &Path) -> Result<()> {
    if Uid::effective().is_root() {
        let owner = format!("{NOBODY}:{NOBODY}");
        let status = Command::new("chown").arg("-R").arg(owner).arg(directory).status()?;
        ensure!(status.success(), "chown of {} failed", directory.display());
    }
    Ok(())
}

fn has_no_privilege(process: u32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name} in its status"))
    };
    for capabilities in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        let held = u64::from_str_radix(field(capabilities)?, 16)?;
        ensure!(held == 0, "{capabilities} is {held:x}");
    }
    ensure!(field("Uid")?.split_whitespace().all(|id| id != "0"), "it runs as root");
    ensure!(field("NoNewPrivs")? == "1", "it might gain privileges");
    Ok(())
}

fn leaves_no_core(process: u32) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let core =
        limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit on cores")?;
    ensure!(core.split_whitespace().rev().take(3).skip(1).all(|limit| limit == "0"), "{core}");
    // proc(5): of a process that is not dumpable these files are root's
    ensure!(
        fs::metadata(format!("/proc/{process}/environ"))?.uid() == 0,
        "others of its user may read its memory"
    );
    Ok(())
}

/// The session token of the device, out of its ticket, and what the registrar and the TPM share.
fn secrets(world: &World, device: &Device) -> Result<Vec<(&'static str, String)>> {
    let keys = TicketKeys::open(&world.scratch.path().join("bridge/ticket.key"))?;
    let verifier = format!("{}/", world.keylime.verifier_url());
    let topic = format!("keylime/v1/{}/challenge", device.id());
    let messages = world.observer()?.seen();
    let ticket = messages.iter().filter(|seen| seen.topic == topic).find_map(|seen| {
        match unpack_down(&seen.payload).ok()?.question {
            Question::Challenge(challenge) => challenge.ticket,
            _ => None,
        }
    });
    let ticket = ticket.context("no ticket passed the broker")?;
    let opened =
        keys.open_ticket(device.id(), &verifier, ticket.as_slice()).context("a ticket of this bridge")?;
    let database = world.keylime.state().join("reg_data.sqlite");
    let output =
        world.keylime.program("python").args(["-c", QUERY]).arg(database).arg(device.id()).output()?;
    let credential = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(
        credential.len() >= 32,
        "no secret at the registrar: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(vec![("session token", opened.token.expose().to_owned()), ("credential's secret", credential)])
}

/// Whether bytes hold a secret, as it is, in hex, in base64, or as the bytes that a text in base64 stands for.
fn shows(bytes: &[u8], secret: &str) -> bool {
    let secret = secret.as_bytes();
    let mut forms =
        vec![secret.to_vec(), hex::encode(secret).into_bytes(), BASE64.encode(secret).into_bytes()];
    if let Ok(decoded) = BASE64.decode(secret) {
        forms.push(hex::encode(&decoded).into_bytes());
        forms.push(decoded);
    }
    forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form.as_slice()))
}

/// All files below a directory but those of one other, which is Keylime's.
fn files(directory: &Path, but: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && path != but {
            all.extend(files(&path, but)?);
        } else if path.is_file() && path.file_name().is_some_and(|name| !is_program(&name.to_string_lossy()))
        {
            all.push(path);
        }
    }
    Ok(all)
}

fn is_program(name: &str) -> bool {
    name.starts_with("keylime-mqtt-")
}
