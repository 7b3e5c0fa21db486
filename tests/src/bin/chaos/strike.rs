//! Killing parts and bringing them back.

use crate::plan::{Part, Strike};
use crate::points::{Came, Watch, calm};
use crate::rig::Rig;
use anyhow::Result;
use std::time::Instant;

/// Milliseconds by which a TPM's clock is behind after a power cut. Hardware writes it down every so often; libtpms with
/// TPM2_Shutdown alone, so that its clock would start at nothing and devices wait for as long as they had been up.
const CLOCK_BEHIND: u64 = 4096;

/// A strike that was carried out.
pub(crate) struct Struck {
    /// Whether it fell into the moment it was meant for
    pub(crate) hit: bool,
    /// What was on the broker before it
    pub(crate) mark: usize,
    /// When the last part was back
    pub(crate) returned: Instant,
}

pub(crate) fn strike(rig: &mut Rig, strike: &Strike) -> Result<Struck> {
    let kills_agents = !matches!(strike.act, crate::plan::Act::Servers);
    let mut watch = Watch::provoke(rig, strike.moment, strike.victim, kills_agents)?;
    let came = watch.wait(rig, strike.pause)?;
    let (struck, mark) = (Instant::now(), rig.world.observer()?.mark());
    for part in &strike.parts {
        kill(rig, *part, strike.victim)?;
    }
    std::thread::sleep(strike.down);
    calm(rig, strike.victim)?;
    for part in &strike.back {
        bring_back(rig, *part, strike.victim)?;
    }
    let returned = Instant::now();
    let hit = came == Came::Yes && watch.was_hit(rig, struck)?;
    Ok(Struck { hit, mark, returned })
}

fn kill(rig: &mut Rig, part: Part, victim: usize) -> Result<()> {
    match part {
        Part::Agent => rig.member(victim)?.device.kill_agent(),
        Part::Swtpm => {
            let member = rig.member(victim)?;
            member.clock = member.device.tpm()?.clock()?.0;
            member.device.cut_power();
        }
        Part::Bridge => rig.world.bridge.kill(),
        Part::Broker => rig.world.broker.kill(),
        Part::Registrar => rig.world.keylime.kill_registrar(),
        Part::Verifier => rig.world.keylime.kill_verifier(),
    }
    Ok(())
}

fn bring_back(rig: &mut Rig, part: Part, victim: usize) -> Result<()> {
    match part {
        Part::Agent => rig.member(victim)?.device.start_agent(),
        Part::Swtpm => {
            let member = rig.member(victim)?;
            member.device.power_on()?;
            let mut tpm = member.device.tpm()?;
            let (now, _) = tpm.clock()?;
            tpm.set_clock(member.clock.saturating_sub(CLOCK_BEHIND).max(now + 1000))?;
            member.device.start_agent()
        }
        Part::Bridge => rig.world.bridge.start(),
        Part::Broker => rig.world.broker.power_on(),
        Part::Registrar => rig.world.keylime.start_registrar(),
        Part::Verifier => rig.world.keylime.start_verifier(),
    }
}
