//! A small world with one device behind a link: what every workload starts from.
//!
//! Each workload has a world of its own, so that a bridge's CPU time and a verifier's pace are its alone. Settings
//! that the harness shortens for scenarios, and that cost bytes, stand at their defaults again.

use crate::capture::{Capture, ETHERNET_HEADER};
use crate::link::{BROKER_HOST, Link};
use crate::messages::Message;
use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::binaries;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::eventually::within;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::measured_boot::UefiLog;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{World, WorldSettings};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use rand::Rng;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The largest that brokers allow: no ping falls into a workload that does not count pings.
pub(crate) const NO_PINGS: u16 = 1160;

/// Longer than the first attestation of the largest log takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// After a result the last acknowledgements pass (Linux delays them by 40 to 200 ms), and nothing else.
pub(crate) const CALM: Duration = Duration::from_millis(400);

/// What workloads vary.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its name, in progress lines
    pub(crate) name: &'static str,
    /// Keylime's seconds between attestations
    pub(crate) quote_interval: u32,
    /// The agent's keep-alive, seconds
    pub(crate) keep_alive: u16,
    /// What the kernel has measured before the agent starts
    pub(crate) programs: Vec<String>,
    /// What firmware has measured
    pub(crate) uefi: Option<UefiLog>,
    /// What Keylime holds the device against
    pub(crate) policies: Policies,
    /// Further lines of the agent's configuration
    pub(crate) agent: String,
    /// Further settings of the bridge, `key=value`
    pub(crate) bridge: Vec<String>,
}

/// The world, its device and the link between them. Dropped in this order.
pub(crate) struct Rig {
    pub(crate) device: Device,
    link: Link,
    pub(crate) world: World,
    pub(crate) plan: Plan,
    started: (Instant, Duration),
}

/// Everything that passed, once a workload is through.
pub(crate) struct Trace {
    pub(crate) capture: Capture,
    pub(crate) messages: Vec<Message>,
}

impl Rig {
    /// Keylime, broker, bridge and observer run; the device has booted, its agent is not started.
    pub(crate) fn build(plan: Plan) -> Result<Self> {
        let started = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
        let keylime = KeylimeSettings { quote_interval: plan.quote_interval, ..KeylimeSettings::default() };
        let defaults = [
            "exchange.repeat_after_seconds=10",
            "broker.ack_timeout_seconds=120",
            "broker.keep_alive_seconds=300",
        ];
        let bridge = defaults.iter().map(ToString::to_string).chain(plan.bridge.iter().cloned()).collect();
        let mut world = World::prepare(&WorldSettings { keylime, bridge, ..WorldSettings::default() })?;
        let certificate = world.pki.issue("broker-outside", &["localhost", "127.0.0.1", BROKER_HOST])?;
        world.broker.present(certificate);
        world.broker.serve_everywhere();
        world.broker.power_on()?;
        world.connect_observer()?;
        world.keylime.start_both()?;
        world.bridge.start()?;
        let link = Link::make(&world.scratch)?;
        let settings = DeviceSettings {
            id: Some(uuid()),
            uefi: plan.uefi.clone(),
            ima: !plan.programs.is_empty(),
            agent: plan.agent.clone(),
            binary: Some(agent()?),
            launcher: link.launcher(&[
                ("KEYLIME_MQTT_AGENT_BROKER__KEEP_ALIVE_SECONDS", plan.keep_alive.to_string()),
                ("KEYLIME_MQTT_AGENT_BROKER__ACK_TIMEOUT_SECONDS", "120".to_owned()),
                ("KEYLIME_MQTT_AGENT_BROKER__CONNECT_TIMEOUT_SECONDS", "30".to_owned()),
                ("KEYLIME_MQTT_AGENT_LONGEST_SILENCE_SECONDS", "900".to_owned()),
                ("KEYLIME_MQTT_AGENT_FIRST_RETRY_SECONDS", "10".to_owned()),
                ("KEYLIME_MQTT_AGENT_LONGEST_RETRY_SECONDS", "300".to_owned()),
            ]),
            ..DeviceSettings::default()
        };
        let mut device = world.device(plan.name, settings)?;
        world.admit(device.id(), device.ek_hash())?;
        device.swtpm().listen_in(&link.namespace())?;
        device.change_access(|access| BROKER_HOST.clone_into(&mut access.host))?;
        if !plan.programs.is_empty() {
            device.run_programs(&plan.programs)?;
        }
        Ok(Self { device, link, world, plan, started })
    }

    /// Says how far it is.
    pub(crate) fn progress(&self, what: &str) {
        eprintln!("[{:>5.0} s] {}: {what}", self.started.0.elapsed().as_secs_f64(), self.plan.name);
    }

    /// Now, since the Unix epoch, on the clock of the capture.
    pub(crate) fn now(&self) -> Duration {
        self.started.1 + self.started.0.elapsed()
    }

    fn clock(&self, at: Instant) -> Duration {
        self.started.1 + at.saturating_duration_since(self.started.0)
    }

    /// Every message of the exchange so far.
    pub(crate) fn messages(&self) -> Result<Vec<Message>> {
        let prefix = format!("/{}/", self.device.id());
        Ok(self.world.observer()?.collect_from(0, |seen| {
            let ours = seen.topic.contains(&prefix);
            ours.then(|| Message::read(self.clock(seen.at), &seen.topic, seen.payload.clone())).flatten()
        }))
    }

    /// When the next result after `after` was published; it must be a PASS.
    pub(crate) fn passes_after(&self, after: Duration) -> Result<Duration> {
        let observer = self.world.observer()?;
        within(PATIENCE, "a PASS", &self.world.scratch.logs(), || {
            let news = observer.collect_from(0, |seen| {
                let at = self.clock(seen.at);
                (at > after && !seen.retained).then(|| seen.result().map(|result| (at, result))).flatten()
            });
            for (at, result) in news {
                match result.verdict {
                    Verdict::Pass => return Ok(Some(at)),
                    Verdict::Fail => anyhow::bail!("failed: {result:?}\n{}", self.world.tails()),
                    _ => {}
                }
            }
            Ok(None)
        })
    }

    /// Waits until that many challenges, not counting repeats, came after `after`.
    pub(crate) fn await_challenges(&self, after: Duration, count: usize) -> Result<()> {
        let challenge = format!("/{}/challenge", self.device.id());
        within(PATIENCE, "a challenge", &self.world.scratch.logs(), || {
            let challenges = self.world.observer()?.collect_from(0, |seen| {
                let (at, ours) = (self.clock(seen.at), seen.topic.ends_with(&challenge));
                (ours && at > after).then(|| Message::read(at, &seen.topic, seen.payload.clone())).flatten()
            });
            let nonces: BTreeSet<_> = challenges
                .iter()
                .filter(|message| message.kind == "Challenge")
                .filter_map(Message::nonce)
                .collect();
            Ok((nonces.len() >= count).then_some(()))
        })
    }

    /// Ends agent and capture; everything that passed.
    pub(crate) fn finish(mut self) -> Result<Trace> {
        if self.device.agent().is_ok() {
            self.device.stop_agent()?;
        }
        self.world.never_failed(&self.device)?;
        let messages = self.messages()?;
        // The last acknowledgements.
        std::thread::sleep(CALM);
        let capture = Capture::parse(&self.link.recorded()?, self.world.broker.port())?;
        ensure!(capture.strangers == 0, "{} packets on the link are no TCP over IPv4", capture.strangers);
        let largest = capture.packets.iter().map(|packet| packet.bytes).max().context("nothing passed")?;
        let packets = capture.packets.len();
        let bytes: usize = capture.packets.iter().map(|packet| packet.bytes + ETHERNET_HEADER).sum();
        let counted = self.link.counted()?;
        ensure!(
            counted == (u64::try_from(packets)?, u64::try_from(bytes)?),
            "the capture has {packets} packets of {bytes} bytes, the interface counted {counted:?}"
        );
        ensure!(largest <= 1500, "a packet of {largest} bytes: the link does not segment");
        Ok(Trace { capture, messages })
    }

    /// Processor time that the agent has used, user and system, all threads.
    pub(crate) fn agent_cpu(&mut self) -> Result<Duration> {
        cpu(self.device.agent()?.pid())
    }

    /// The same of the bridge.
    pub(crate) fn bridge_cpu(&mut self) -> Result<Duration> {
        cpu(self.world.bridge.process()?.pid())
    }

    /// The agent's memory in bytes: its peak (VmHWM), and what of it now is its own (RssAnon). See proc(5).
    pub(crate) fn agent_memory(&mut self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.device.agent()?.pid()))?;
        ensure!(status.starts_with("Name:\tkeylime-mqtt"), "the launcher did not become the agent: {status}");
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(line.trim_end_matches("kB").trim().parse::<u64>()? * 1024)
        };
        Ok((field("VmHWM:")?, field("RssAnon:")?))
    }
}

/// The agent as it is built for devices (the profile `device`); beside a debug build of this program, a debug build.
pub(crate) fn agent() -> Result<PathBuf> {
    if cfg!(debug_assertions) {
        return binaries::path("keylime-mqtt-agent");
    }
    let bridge = binaries::path("keylime-mqtt-bridge")?;
    let target = bridge.parent().and_then(Path::parent).context("a program without a directory")?;
    let agent = target.join("device/keylime-mqtt-agent");
    ensure!(agent.exists(), "{} is not built: run `make bench-link`", agent.display());
    Ok(agent)
}

/// The processor clock of a process has nanoseconds and keeps what ended threads have used (clock_getcpuclockid(3)).
fn cpu(pid: u32) -> Result<Duration> {
    Ok(Duration::from(clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?.now()?))
}

/// A random UUID (RFC 9562, version 4), as operators name devices.
fn uuid() -> String {
    let random: u128 = rand::rng().random();
    let hex = format!("{:032x}", random & !(0xf << 76 | 3 << 62) | 4 << 76 | 2 << 62);
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}
