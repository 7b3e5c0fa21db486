//! Faults that kill nobody: parts that hang, links that are cut, flap or stall, disks that are full, clocks that jump.

use crate::plan::{Kind, Part};
use crate::rig::Rig;
use anyhow::{Context, Result};
use keylime_mqtt_tests::device::Reboot;
use keylime_mqtt_tests::link::Link;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Shorter than two keep-alives, after which clients give a silent broker up.
const SHORT: Duration = Duration::from_secs(3);

/// Longer than that.
const LONG: Duration = Duration::from_secs(12);

/// Of a flapping link: away and there.
const FLAP: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(700)];
const FLAPS: usize = 8;

/// A disk stays full for so long.
const FULL: Duration = Duration::from_secs(10);

/// libfaketime reads its file again after a second.
const JUMPED: Duration = Duration::from_millis(1500);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Device,
    AllDevices,
    Bridge,
    Verifier,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Hangs(Vec<Part>, Duration),
    Cut(Way, Duration),
    Flaps(Way),
    Stalls(Way, Duration),
    AgentDiskFull,
    AgentDiskFullAtReboot,
    BridgeDiskFull,
    /// And the ticket keys are gone: the bridge cannot start before there is room
    BridgeDiskFullWithoutKeys,
    /// The agent's wall clock
    AgentClock(&'static str),
    /// The bridge's
    BridgeClock(&'static str),
    /// The kernel reckons anew when it booted, and the agent is restarted
    BootTime(i64),
    /// A reboot after which the clock is years behind
    BootTimeAtReboot(i64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |way: &Way| match way {
            Way::Device => "one device's link",
            Way::AllDevices => "all devices' links",
            Way::Bridge => "the bridge's link",
            Way::Verifier => "the link to the verifier",
        };
        match self {
            Self::Hangs(parts, time) => {
                let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
                write!(f, "{} hangs for {} s (SIGSTOP)", parts.join(" and "), time.as_secs())
            }
            Self::Cut(which, time) => write!(f, "{} cut for {} s", way(which), time.as_secs()),
            Self::Flaps(which) => write!(f, "{} cut {FLAPS} times in {FLAPS} s", way(which)),
            Self::Stalls(which, time) => write!(f, "{} carries nothing for {} s", way(which), time.as_secs()),
            Self::AgentDiskFull => f.write_str("agent's disk full, agent restarted"),
            Self::AgentDiskFullAtReboot => f.write_str("agent's disk full over a reboot"),
            Self::BridgeDiskFull => f.write_str("bridge's disk full, bridge restarted"),
            Self::BridgeDiskFullWithoutKeys => f.write_str("bridge's disk full, its ticket keys gone"),
            Self::AgentClock(by) => write!(f, "agent's wall clock jumps {by}"),
            Self::BridgeClock(by) => write!(f, "bridge's wall clock jumps {by} and back"),
            Self::BootTime(by) => write!(f, "kernel's boot time jumps {by} s, agent restarted"),
            Self::BootTimeAtReboot(by) => write!(f, "reboot with a clock off by {by} s"),
        }
    }
}

/// All of them; what cannot be had on this machine is left out.
pub(crate) fn all(disks: bool, clocks: bool) -> Vec<Fault> {
    use Fault::{AgentClock, BootTime, BootTimeAtReboot, BridgeClock, Cut, Flaps, Hangs, Stalls};
    let mut faults = vec![
        Flaps(Way::Device),
        Hangs(vec![Part::Broker], LONG),
        BootTime(-7200),
        Cut(Way::Bridge, SHORT),
        Hangs(vec![Part::Agent], LONG),
        Hangs(vec![Part::Bridge], SHORT),
        Hangs(vec![Part::Bridge], LONG),
        Hangs(vec![Part::Broker], SHORT),
        Hangs(vec![Part::Registrar], SHORT),
        Hangs(vec![Part::Verifier], SHORT),
        Hangs(vec![Part::Verifier], LONG),
        Hangs(vec![Part::Swtpm], SHORT),
        Hangs(vec![Part::Swtpm], LONG),
        Hangs(vec![Part::Agent, Part::Bridge], SHORT),
        Hangs(vec![Part::Broker, Part::Verifier], LONG),
        Hangs(vec![Part::Agent, Part::Bridge, Part::Broker, Part::Verifier], SHORT),
        Cut(Way::Device, SHORT),
        Cut(Way::AllDevices, SHORT),
        Cut(Way::AllDevices, LONG),
        Cut(Way::Verifier, SHORT),
        Cut(Way::Verifier, LONG),
        Flaps(Way::AllDevices),
        Flaps(Way::Bridge),
        Flaps(Way::Verifier),
        Stalls(Way::Device, LONG),
        Stalls(Way::AllDevices, SHORT),
        Stalls(Way::Bridge, LONG),
        Stalls(Way::Verifier, LONG),
        BootTime(7200),
        BootTimeAtReboot(-1_000_000_000),
    ];
    if disks {
        faults.extend([Fault::AgentDiskFull, Fault::AgentDiskFullAtReboot]);
        faults.extend([Fault::BridgeDiskFull, Fault::BridgeDiskFullWithoutKeys]);
    }
    if clocks {
        faults.extend(["+400d", "-400d"].map(AgentClock));
        faults.extend(["+30d", "-2h"].map(BridgeClock));
    }
    faults
}

/// Whether the fault reboots the victim, or needs one of a certain kind.
pub(crate) fn suits(fault: &Fault, kind: Kind) -> bool {
    // What an IMA policy makes of a reboot is the strikes' subject.
    !matches!(fault, Fault::AgentDiskFullAtReboot | Fault::BootTimeAtReboot(_)) || !kind.has_ima()
}

/// libfaketime, where it is installed.
pub(crate) fn faketime() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").ok()?.flatten();
    libraries.map(|dir| dir.path().join("faketime/libfaketime.so.1")).find(|library| library.exists())
}

/// Lets it happen, and returns when it is over.
pub(crate) fn befall(rig: &mut Rig, fault: &Fault, victim: usize) -> Result<Instant> {
    match fault {
        Fault::Hangs(parts, time) => {
            parts.iter().try_for_each(|part| hang(rig, *part, victim, true))?;
            std::thread::sleep(*time);
            parts.iter().try_for_each(|part| hang(rig, *part, victim, false))?;
        }
        Fault::Cut(way, time) => {
            on_links(rig, *way, victim, Link::cut);
            std::thread::sleep(*time);
            on_links(rig, *way, victim, Link::mend);
        }
        Fault::Flaps(way) => {
            for _ in 0..FLAPS {
                on_links(rig, *way, victim, Link::cut);
                std::thread::sleep(FLAP[0]);
                on_links(rig, *way, victim, Link::mend);
                std::thread::sleep(FLAP[1]);
            }
        }
        Fault::Stalls(way, time) => {
            on_links(rig, *way, victim, Link::stall);
            std::thread::sleep(*time);
            on_links(rig, *way, victim, Link::mend);
        }
        Fault::AgentDiskFull | Fault::AgentDiskFullAtReboot => {
            let reboots = *fault == Fault::AgentDiskFullAtReboot;
            let member = rig.member(victim)?;
            member.disk.as_ref().context("no disk")?.fill()?;
            if reboots {
                member.device.reboot(Reboot::Orderly)?;
            } else {
                member.device.kill_agent();
                member.device.start_agent()?;
            }
            std::thread::sleep(FULL);
            member.disk.as_ref().context("no disk")?.free()?;
            // As its service manager would.
            if !member.device.agent()?.is_running() {
                member.device.kill_agent();
                member.device.start_agent()?;
            }
        }
        Fault::BridgeDiskFull | Fault::BridgeDiskFullWithoutKeys => {
            rig.world.bridge.kill();
            if *fault == Fault::BridgeDiskFullWithoutKeys {
                fs::remove_file(rig.bridge_dir.join("ticket.key"))?;
            }
            rig.bridge_disk.as_ref().context("no disk")?.fill()?;
            rig.world.bridge.start()?;
            std::thread::sleep(FULL);
            rig.bridge_disk.as_ref().context("no disk")?.free()?;
            if !rig.world.bridge.process()?.is_running() {
                rig.world.bridge.kill();
                rig.world.bridge.start()?;
            }
        }
        Fault::AgentClock(by) => {
            let clock = rig.world.scratch.path().join("agent-clock");
            let environment = fake_clock(&clock)?;
            let assignments = environment.iter().map(|(name, value)| format!("{name}={value}"));
            let launcher = ["env".to_owned()].into_iter().chain(assignments).collect();
            let device = &mut rig.member(victim)?.device;
            device.kill_agent();
            device.launch_by(launcher);
            device.start_agent()?;
            std::thread::sleep(FULL);
            fs::write(&clock, by)?;
            std::thread::sleep(JUMPED);
        }
        Fault::BridgeClock(by) => {
            let clock = rig.world.scratch.path().join("bridge-clock");
            let environment = fake_clock(&clock)?;
            rig.world.bridge.kill();
            rig.world.bridge.reconfigure(|bridge| bridge.environment = environment)?;
            rig.world.bridge.start()?;
            std::thread::sleep(FULL);
            fs::write(&clock, by)?;
            std::thread::sleep(FULL);
            fs::write(&clock, "+0")?;
            std::thread::sleep(JUMPED);
        }
        Fault::BootTime(by) => {
            let device = &mut rig.member(victim)?.device;
            device.kill_agent();
            device.shift_boot_time(*by)?;
            device.start_agent()?;
        }
        Fault::BootTimeAtReboot(by) => {
            let device = &mut rig.member(victim)?.device;
            device.stop_agent()?;
            device.reboot(Reboot::Orderly)?;
            device.shift_boot_time(*by)?;
            device.start_agent()?;
        }
    }
    Ok(Instant::now())
}

/// Ends what a fault left behind on purpose.
pub(crate) fn undo(rig: &mut Rig, fault: &Fault, victim: usize) -> Result<()> {
    match fault {
        Fault::AgentClock(_) => {
            let device = &mut rig.member(victim)?.device;
            device.kill_agent();
            device.launch_by(Vec::new());
            device.start_agent()
        }
        Fault::BridgeClock(_) => {
            rig.world.bridge.kill();
            rig.world.bridge.reconfigure(|bridge| bridge.environment = Vec::new())?;
            rig.world.bridge.start()
        }
        _ => Ok(()),
    }
}

/// The wall clock as `clock` says, the monotonic one as it is.
fn fake_clock(clock: &Path) -> Result<Vec<(String, String)>> {
    fs::write(clock, "+0")?;
    let library = faketime().context("no libfaketime: `make setup` installs it")?;
    let pairs = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

fn hang(rig: &mut Rig, part: Part, victim: usize, hangs: bool) -> Result<()> {
    let process = match part {
        Part::Agent => rig.member(victim)?.device.agent()?,
        Part::Swtpm => {
            let swtpm = rig.member(victim)?.device.swtpm();
            if hangs {
                swtpm.freeze();
            } else {
                swtpm.thaw();
            }
            return Ok(());
        }
        Part::Bridge => rig.world.bridge.process()?,
        Part::Broker => rig.world.broker.process()?,
        Part::Registrar => rig.world.keylime.registrar()?,
        Part::Verifier => rig.world.keylime.verifier()?,
    };
    if hangs {
        process.freeze();
    } else {
        process.thaw();
    }
    Ok(())
}

fn on_links(rig: &Rig, way: Way, victim: usize, act: impl Fn(&Link)) {
    let links: Vec<&Link> = match way {
        Way::Device => rig.members.get(victim).map(|member| &member.link).into_iter().collect(),
        Way::AllDevices => rig.members.iter().map(|member| &member.link).collect(),
        Way::Bridge => vec![&rig.bridge_link],
        Way::Verifier => vec![&rig.verifier_link],
    };
    links.into_iter().for_each(act);
}
