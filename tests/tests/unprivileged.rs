//! Agent and bridge need no privilege, and what is secret shows nowhere.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::binaries;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::secrets::{Secret, credential, kept, passed, session_token, text};
use keylime_mqtt_tests::squid::Squid;
use keylime_mqtt_tests::world::{World, WorldSettings};
use nix::unistd::Uid;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`, whom every system has; root's tests run the programs as him.
const NOBODY: &str = "65534";
/// Where the unit finds the kernel's logs: IMA's and the firmware's.
const KERNEL_LOGS: [&str; 2] = [
    "/sys/kernel/security/ima/ascii_runtime_measurements",
    "/sys/kernel/security/tpm0/binary_bios_measurements",
];

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
    let squid = Squid::start(world.broker.port(), &world.scratch)?;
    let proxy = squid.table()?;
    world.bridge.reconfigure(|settings| settings.broker.more.clone_from(&proxy))?;
    device.change_access(|access| access.more = proxy)?;
    give_away(world.scratch.path())?;
    give_away(&squid.password_file())?;
    if Uid::effective().is_root() {
        show_logs_as_the_kernel_does(&device)?;
        open_logs_as_the_unit_does(&device)?;
    }
    world.bridge.start()?;
    device.start_agent()?;
    world.enrol(&device, &Policies::full())?;
    world.passes_anew(&device)?;

    let programs = [("agent", device.agent()?.pid()), ("bridge", world.bridge.process()?.pid())];
    for (name, program) in programs {
        has_no_privilege(program).with_context(|| format!("the {name}"))?;
        leaves_no_core(program).with_context(|| format!("the {name}"))?;
    }
    // Tickets are sealed, and the registrar's credential is one that only the TPM can open: they may pass the broker.
    let passed = passed(&world, &device)?;
    let token = Secret::new("session token", session_token(&world, &device, &passed)?);
    let secrets: Vec<Secret> = kept(&world, &device)?
        .into_iter()
        .chain(credential(&world, &device)?)
        .chain(squid.credentials())
        .chain([token])
        .collect();
    let tickets: Vec<Secret> = passed.into_iter().filter(|secret| secret.what == "ticket").collect();
    let mut found = Vec::new();
    let mut search = |place: String, bytes: &[u8], secrets: Vec<&Secret>| {
        let shown = text(bytes);
        let in_it = secrets.into_iter().filter(|secret| secret.shows_in(&shown));
        found.extend(in_it.map(|secret| format!("the {}: {place}", secret.what)));
    };
    for (name, program) in programs {
        for file in ["cmdline", "environ"] {
            let shown = fs::read(format!("/proc/{program}/{file}"))?;
            search(format!("{file} of the {name}"), &shown, secrets.iter().chain(&tickets).collect());
        }
    }
    for seen in world.observer()?.seen() {
        search(format!("a message on {}", seen.topic), &seen.payload, secrets.iter().collect());
    }
    for file in files(world.scratch.path(), &world.keylime.state())? {
        let sealed = tickets.iter().filter(|_| file.starts_with(world.scratch.logs()));
        let foreign = secrets.iter().filter(|secret| !secret.may_be_in(&file)).chain(sealed).collect();
        search(file.display().to_string(), &fs::read(&file)?, foreign);
    }
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// Root's alone, as below /sys/kernel/security.
fn show_logs_as_the_kernel_does(device: &Device) -> Result<()> {
    for log in device.kernel_logs() {
        chown(&log, Some(0), Some(0))?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o440))?;
    }
    Ok(())
}

/// Runs what the agent's unit has root run before the agent, on this device's logs and for the group that its agent has here.
fn open_logs_as_the_unit_does(device: &Device) -> Result<()> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/systemd/keylime-mqtt-agent.service");
    let unit = fs::read_to_string(unit)?;
    let group = unit.lines().find_map(|line| line.strip_prefix("Group=")).context("no group")?;
    let [ima, uefi] = device.kernel_logs();
    let here = |word: &str| match word {
        _ if word == group => NOBODY.into(),
        _ if word == KERNEL_LOGS[0] => ima.clone().into_os_string(),
        _ if word == KERNEL_LOGS[1] => uefi.clone().into_os_string(),
        _ => OsString::from(word),
    };
    // `-`: a device may lack a log; `+`: as root
    let commands = unit.lines().filter_map(|line| line.strip_prefix("ExecStartPre=-+"));
    for command in commands {
        let words: Vec<OsString> = command.split_whitespace().map(here).collect();
        let (program, arguments) = words.split_first().context("an empty command")?;
        let status = Command::new(program).args(arguments).status()?;
        ensure!(status.success(), "{command}: {status}");
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
