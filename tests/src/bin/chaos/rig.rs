//! The world that is struck: real Keylime, mosquitto, a bridge, and devices of all kinds of policy, with a link that can
//! be cut in front of each client, and a disk that can be full below each that writes.

use crate::plan::Kind;
use anyhow::{Context, Result, anyhow};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::disk::SmallDisk;
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::link::Link;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::scratch::Scratch;
use keylime_mqtt_tests::world::{ALLOWED_PROGRAMS, World, WorldSettings};
use std::path::PathBuf;

/// Programs that run in a burst, so that a log goes up in several parts.
pub(crate) const BURST: usize = 1500;

/// Room on each disk, in KiB; what is kept there takes a tenth of it.
const DISK_KIB: u32 = 1024;

pub(crate) struct Member {
    pub(crate) device: Device,
    pub(crate) kind: Kind,
    pub(crate) policies: Policies,
    pub(crate) link: Link,
    pub(crate) disk: Option<SmallDisk>,
    /// The TPM's, when its power was cut last
    pub(crate) clock: u64,
}

impl Member {
    pub(crate) fn id(&self) -> String {
        self.device.id().to_owned()
    }
}

pub(crate) struct Rig {
    // Devices end before the world that holds their directories.
    pub(crate) members: Vec<Member>,
    pub(crate) bridge_link: Link,
    pub(crate) verifier_link: Link,
    pub(crate) bridge_disk: Option<SmallDisk>,
    /// What the bridge keeps
    pub(crate) bridge_dir: PathBuf,
    pub(crate) world: World,
    _bridge_home: Scratch,
}

impl Rig {
    /// Everything started, every device at PASS.
    pub(crate) fn start(kinds: &[Kind], quote_interval: u32, disks: bool) -> Result<Self> {
        let home = Scratch::new()?;
        let bridge_dir = home.subdir("bridge")?;
        let bridge_disk = disks.then(|| SmallDisk::mount(&bridge_dir, DISK_KIB)).transpose()?;
        let at = bridge_dir.display();
        let settings = WorldSettings {
            keylime: KeylimeSettings { quote_interval, ..KeylimeSettings::default() },
            bridge: vec![
                format!("ticket_key_file={at}/ticket.key"),
                format!("status_socket={at}/status.sock"),
                format!("cache.dir={at}/uefi"),
            ],
            ..WorldSettings::default()
        };
        let mut world = World::prepare(&settings)?;
        let bridge_link = Link::to(world.broker.port())?;
        let verifier = world.keylime.verifier_url();
        let port =
            verifier.rsplit(':').next().and_then(|port| port.parse().ok()).context("no port in the URL")?;
        let verifier_link = Link::to(port)?;
        world.bridge.reconfigure(|bridge| {
            bridge.broker.port = bridge_link.port();
            bridge.verifier_url = format!("https://127.0.0.1:{}", verifier_link.port());
        })?;
        world.broker.power_on()?;
        world.connect_observer()?;
        world.keylime.start_both()?;
        world.bridge.start()?;
        let members = std::thread::scope(|scope| {
            let booting: Vec<_> = kinds
                .iter()
                .enumerate()
                .map(|(number, kind)| {
                    let world = &world;
                    scope.spawn(move || boot(world, number, *kind, disks))
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().map_err(|_| anyhow!("a device panicked"))?
            };
            booting.into_iter().map(join).collect::<Result<Vec<Member>>>()
        })?;
        Ok(Self { members, bridge_link, verifier_link, bridge_disk, bridge_dir, world, _bridge_home: home })
    }

    pub(crate) fn member(&mut self, number: usize) -> Result<&mut Member> {
        self.members.get_mut(number).context("no such device")
    }
}

/// Names of the programs that a burst runs.
pub(crate) fn burst() -> Vec<String> {
    (0..BURST).map(|number| format!("/usr/lib/app/module-{number:04}.so")).collect()
}

fn policies(kind: Kind) -> Policies {
    let bulk = burst();
    let programs: Vec<&str> = ALLOWED_PROGRAMS.into_iter().chain(bulk.iter().map(String::as_str)).collect();
    let runtime = Some(runtime_policy(&programs));
    match kind {
        Kind::QuoteOnly => Policies::quote_only(),
        Kind::MeasuredBoot => Policies::measured_boot(),
        Kind::Ima => Policies { runtime, ..Policies::default() },
        Kind::All => Policies { runtime, ..Policies::full() },
    }
}

fn boot(world: &World, number: usize, kind: Kind, disks: bool) -> Result<Member> {
    let (name, settings) = match kind {
        Kind::QuoteOnly => ("quote", DeviceSettings::default()),
        Kind::Ima => ("ima", DeviceSettings::with_ima()),
        Kind::MeasuredBoot => ("boot", DeviceSettings::with_measured_boot()?),
        Kind::All => ("all", DeviceSettings::full()?),
    };
    let mut device = world.device(&format!("{name}-{number}"), settings)?;
    let link = Link::to(world.broker.port())?;
    device.change_access(|access| access.port = link.port())?;
    let disk = disks.then(|| SmallDisk::mount(&device.state_dir(), DISK_KIB)).transpose()?;
    let policies = policies(kind);
    let mark = world.observer()?.mark();
    device.start_agent()?;
    world.enrol(&device, &policies)?;
    world.verdict_from(mark, &device, Verdict::Pass)?;
    Ok(Member { device, kind, policies, link, disk, clock: 0 })
}
