//! A campaign of lies: a fleet of real devices on real Keylime, rounds in which the broker between them and the bridge
//! lies all the time, and a calm after each in which every honest device has to pass.
//!
//! While it lies, things go on: programs run, agents and bridges are killed, devices reboot, wake and join. A tenth of
//! the fleet is truly tampered with in the first round. In the end each verdict that was published is held against the
//! verifier's own record of the attestation with that nonce.

mod truth;

use crate::between::HostileWorld;
use crate::device::{Device, DeviceSettings, Reboot};
use crate::eventually::within;
use crate::held::Held;
use crate::keylime_config::KeylimeSettings;
use crate::observe::Seen;
use crate::operator::Policies;
use crate::world::{ALLOWED_PROGRAMS, FOREIGN_PROGRAM, WorldSettings};
use anyhow::{Result, anyhow, ensure};
use keylime_mqtt_liar::{Flow, Plan, Table};
use keylime_mqtt_schemas::messages::Verdict;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use truth::Record;

/// A starved machine may take long; how long it took is in [`Came::back`].
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at what was judged.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Above what any campaign needs: the session limits are not what is tried here.
const SESSIONS: u32 = 60_000;
/// Lines of a log before and after what is looked for.
const AROUND: usize = 40;
/// One device in so many is tampered with.
const TENTH: usize = 10;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// All chance comes from it; what real parts do in which moment does not
    pub seed: u64,
    /// Devices at the start; at least one is tampered with
    pub devices: usize,
    /// Devices that join, one in each round
    pub newcomers: usize,
    /// Rounds, at least
    pub rounds: usize,
    /// Verdicts of Keylime, at least
    pub verdicts: usize,
    /// One in so many messages is lied about
    pub one_in: u32,
    /// Length of the lies in a round
    pub lying: Duration,
    /// The verifier's interval, in seconds
    pub interval: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Came {
    /// Verdicts that Keylime gave, each with a nonce of its own
    pub verdicts: usize,
    /// Lies told
    pub table: Table,
    /// How long each honest device took to pass after each round, sorted
    pub back: Vec<Duration>,
    /// Devices that were tampered with; all of them were failed
    pub tampered: usize,
    /// All devices
    pub devices: usize,
    /// Rounds
    pub rounds: usize,
    /// What the bridge held before and after each round that it lived through
    pub held: Vec<(Held, Held)>,
}

struct Member {
    device: Device,
    tampered: bool,
    sleeps: bool,
    /// A device with an IMA policy does not survive a reboot at Keylime, lies or not
    may_reboot: bool,
}

/// Runs a campaign; `tell` hears how it goes.
pub fn run(campaign: &Campaign, tell: impl Fn(&str)) -> Result<Came> {
    let keylime = KeylimeSettings {
        quote_interval: campaign.interval,
        sessions_per_ip: SESSIONS,
        sessions_per_agent: SESSIONS,
        ..KeylimeSettings::default()
    };
    let bridge = vec![format!("verifier.sessions_per_minute={SESSIONS}")];
    let mut hostile =
        HostileWorld::start(&WorldSettings { keylime, bridge, ..WorldSettings::default() }, campaign.seed)?;
    let record = Record::follow(&hostile.world)?;
    let mut members = muster(&hostile, 0..campaign.devices, campaign.interval)?;
    tell(&format!("{} devices pass; the lies begin", members.len()));
    let (mut back, mut held) = (Vec::new(), Vec::new());
    let (mut round, mut verdicts, mut judged) = (0, 0, 0);
    while round < campaign.rounds || verdicts < campaign.verdicts {
        hostile.between.plan(Plan::Any(campaign.one_in));
        let (began, round_begins) = (Instant::now(), Held::by(hostile.world.bridge.process()?)?);
        stir(&mut hostile, &mut members, round)?;
        let newcomer = if round < campaign.newcomers {
            Some(join(&hostile, campaign.devices + round, campaign.interval)?)
        } else {
            None
        };
        while began.elapsed() < campaign.lying {
            judged = hear(&hostile, judged)?;
            std::thread::sleep(LOOK_EVERY);
        }
        hostile.between.stop_lying();
        let (stopped, mark) = (Instant::now(), hostile.world.observer()?.mark());
        let mut took = calm(&hostile, &members, mark, stopped)?;
        judged = hear(&hostile, judged)?;
        let round_ends = Held::by(hostile.world.bridge.process()?)?;
        if !restarts_bridge(round) {
            held.push((round_begins, round_ends));
        }
        if let Some(newcomer) = newcomer {
            members.push(enrolled(&hostile, newcomer)?);
        }
        took.sort();
        verdicts = nonces(&hostile)?.len();
        round += 1;
        tell(&format!(
            "round {round}: {} lies told, {verdicts} verdicts, the slowest honest device back after {:.1?}",
            hostile.between.table().total(),
            took.last().copied().unwrap_or_default()
        ));
        back.extend(took);
    }
    back.sort();
    for member in &members {
        is_true(&hostile, member, &record)?;
    }
    let tampered = members.iter().filter(|member| member.tampered).count();
    let table = hostile.between.table();
    Ok(Came { verdicts, table, back, tampered, devices: members.len(), rounds: round, held })
}

fn settings(number: usize) -> Result<(DeviceSettings, Policies, bool, bool)> {
    let named = |settings: DeviceSettings| DeviceSettings {
        id: number.is_multiple_of(2).then(|| format!("device-{number}")),
        ..settings
    };
    // The last of the five sleeps.
    Ok(match number % 5 {
        0 => (named(DeviceSettings::full()?), Policies::full(), false, false),
        1 => (named(DeviceSettings::default()), Policies::quote_only(), false, true),
        2 => (named(DeviceSettings::with_ima()), Policies::ima(), false, false),
        3 => {
            let policies = Policies { tpm: Policies::quote_only().tpm, ..Policies::measured_boot() };
            (named(DeviceSettings::with_measured_boot()?), policies, false, true)
        }
        _ => (named(DeviceSettings::default()), Policies::quote_only(), true, true),
    })
}

/// A device that is started and not enrolled.
fn join(hostile: &HostileWorld, number: usize, interval: u32) -> Result<(Member, Policies)> {
    let (settings, policies, sleeps, may_reboot) = settings(number)?;
    let has_ima = settings.ima;
    let mut device = hostile.device(&format!("device-{number}"), settings)?;
    if has_ima {
        for program in ALLOWED_PROGRAMS {
            device.run_program(program)?;
        }
    }
    let mut member = Member { device, tampered: false, sleeps, may_reboot };
    member.start(interval)?;
    Ok((member, policies))
}

fn enrolled(hostile: &HostileWorld, (member, policies): (Member, Policies)) -> Result<Member> {
    let mark = hostile.world.observer()?.mark();
    hostile.world.enrol(&member.device, &policies)?;
    hostile.world.verdict_from(mark, &member.device, Verdict::Pass)?;
    Ok(member)
}

/// The fleet, all of it passing, nobody lying yet.
fn muster(hostile: &HostileWorld, numbers: std::ops::Range<usize>, interval: u32) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    let numbers: Vec<usize> = numbers.collect();
    // A few at a time: making a TPM is work.
    for few in numbers.chunks(4) {
        let made = std::thread::scope(|scope| {
            let making: Vec<_> = few
                .iter()
                .map(|number| scope.spawn(|| enrolled(hostile, join(hostile, *number, interval)?)))
                .collect();
            making
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a device panicked"))?)
                .collect::<Result<Vec<Member>>>()
        })?;
        members.extend(made);
    }
    Ok(members)
}

impl Member {
    fn start(&mut self, interval: u32) -> Result<()> {
        if self.sleeps {
            self.device.start_agent_with(&["--every", &interval.to_string()])
        } else {
            self.device.start_agent()
        }
    }
}

fn restarts_bridge(round: usize) -> bool {
    round % 2 == 1
}

/// What goes on while the broker lies, so that there is something to lie about in every flow.
fn stir(hostile: &mut HostileWorld, members: &mut [Member], round: usize) -> Result<()> {
    let interval = hostile.world.keylime.settings().quote_interval;
    let bridge_restarts = restarts_bridge(round);
    if bridge_restarts {
        hostile.world.bridge.kill();
        if round % 4 == 3 {
            // Without the keys no ticket opens, so that every device has to prove itself.
            hostile.world.bridge.lose_ticket_keys()?;
        }
        hostile.world.bridge.start()?;
    }
    let honest = members.len() - members.len().div_ceil(TENTH);
    for (number, member) in members.iter_mut().enumerate() {
        let id = member.device.id().to_owned();
        let between = &hostile.between;
        if number >= honest && round == 0 && !member.tampered {
            tamper(member)?;
            continue;
        }
        let what = (round + number) % 4;
        let flow = if member.sleeps {
            Flow::Sleeping
        } else if what == 2 && member.may_reboot && !member.tampered {
            Flow::Reboot
        } else if bridge_restarts || what == 1 {
            Flow::BridgeRestart
        } else {
            Flow::Steady
        };
        between.in_flow(&id, flow);
        if flow != Flow::Steady {
            between.restarted(&id);
        }
        match flow {
            Flow::Reboot => member.device.reboot(Reboot::Orderly)?,
            Flow::BridgeRestart if what == 1 => {
                member.device.kill_agent();
                member.start(interval)?;
            }
            // Measured again, as a file is that was written to.
            _ if !member.may_reboot => {
                let [program, ..] = ALLOWED_PROGRAMS;
                member.device.run_program(program)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn tamper(member: &mut Member) -> Result<()> {
    member.tampered = true;
    if member.may_reboot {
        member.device.extend_pcr(crate::world::QUIET_PCR)
    } else {
        member.device.run_program(FOREIGN_PROGRAM)
    }
}

/// Tells the liar of the verdicts that came since.
fn hear(hostile: &HostileWorld, from: usize) -> Result<usize> {
    let observer = hostile.world.observer()?;
    let until = observer.mark();
    let judged = observer.collect_from(from, |seen| {
        seen.result().filter(|result| result.nonce_sha256.is_some()).map(|result| result.agent_id)
    });
    for id in judged {
        hostile.between.judged(id.as_str());
    }
    Ok(until)
}

/// Every honest device passes, and every other one has been failed; how long the honest ones took.
fn calm(hostile: &HostileWorld, members: &[Member], mark: usize, stopped: Instant) -> Result<Vec<Duration>> {
    let observer = hostile.world.observer()?;
    let mut took = Vec::new();
    for member in members {
        let (id, wanted) = if member.tampered {
            (member.device.id(), Verdict::Fail)
        } else {
            (member.device.id(), Verdict::Pass)
        };
        let from = if member.tampered { 0 } else { mark };
        let found = |seen: &Seen| {
            let result = seen.result().filter(|_| !seen.retained)?;
            (result.agent_id.as_str() == id && result.verdict == wanted).then_some(seen.at)
        };
        let awaited = format!("{wanted:?} of {} after the lies", member.device.name());
        let at = within(PATIENCE, &awaited, &hostile.world.scratch.logs(), || {
            Ok(observer.collect_from(from, found).first().copied())
        })
        .map_err(|error| error.context(judgements(hostile, id)))?;
        if !member.tampered {
            took.push(at.saturating_duration_since(stopped));
        }
    }
    Ok(took)
}

/// Why the verifier failed a device, and what the bridge had done with it until then.
fn judgements(hostile: &HostileWorld, id: &str) -> String {
    let verifier = hostile.world.keylime.verifier_log();
    let lines: Vec<&str> = verifier.lines().collect();
    let failed = lines.iter().position(|line| line.contains(id) && line.contains("failed verification"));
    let until = failed.map_or(lines.len(), |at| at + AROUND);
    let told = |lines: &[&str], until: usize| {
        let from = until.saturating_sub(2 * AROUND);
        lines.get(from..until.min(lines.len())).unwrap_or_default().join("\n")
    };
    let bridge = hostile.world.bridge.log();
    let of_device: Vec<&str> = bridge.lines().filter(|line| line.contains(id)).collect();
    format!(
        "the verifier around its first FAIL of {id}:\n{}\nthe bridge on it:\n{}",
        told(&lines, until),
        told(&of_device, of_device.len())
    )
}

/// Nonces of all verdicts.
fn nonces(hostile: &HostileWorld) -> Result<BTreeSet<String>> {
    let nonces = hostile.world.observer()?.collect_from(0, |seen| seen.result()?.nonce_sha256);
    Ok(nonces.into_iter().collect())
}

/// What was published of a device is true: an honest one was never failed, and one that was tampered with was.
fn is_true(hostile: &HostileWorld, member: &Member, record: &Record) -> Result<()> {
    let id = member.device.id();
    let failed = truth::is_true(&hostile.world, id, record)?;
    ensure!(failed == member.tampered, "{id}: failed: {failed}, tampered with: {}", member.tampered);
    if member.tampered { Ok(()) } else { hostile.world.never_failed(&member.device) }
}
