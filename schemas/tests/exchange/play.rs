//! One play of a hostile broker: what it lies about, to whom, and whether it ends well.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use keylime_mqtt_liar::{Flow, Forger, LIES, Liar, Plan, Stamp, Table};
use keylime_mqtt_schemas::exchange::{Time, attester, relay};
use keylime_mqtt_schemas::messages::{AkName, Digest, PcrValues, RefusedReason, Signed, Verdict};

use super::attest::{Attest, CERTIFY, QUOTE, STATEMENT};
use super::device::{Device, dense_log};
use super::keylime::{INTERVAL, Policy};
use super::world::World;

/// The lies last so long, with something new to lie about every now and then.
const LYING: Duration = Duration::from_secs(60);
const NEWS: Duration = Duration::from_secs(15);
/// Both worlds of a pair go on by this much in turn.
const STEP: Duration = Duration::from_millis(100);
/// No longer than the bridge reckons a device to be in good standing.
const LYING_AS_SHIPPED: Duration = Duration::from_secs(5 * INTERVAL.as_secs());
/// In the steady flow before each attestation, so that none is explained by the one before.
const STEADY_NEWS: Duration = Duration::from_secs(INTERVAL.as_secs() / 2);
/// All lies together: to one in so many messages.
const ONE_IN: u32 = 3;
/// Sent last before the lies stopped.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// From the last lie to a PASS.
const BACK_WITHIN: Duration = Duration::from_secs(2 * INTERVAL.as_secs());

/// A key that is no device's.
struct Stranger;

impl Forger for Stranger {
    fn public(&self) -> Vec<u8> {
        Device::new("stranger", 99).ak_public()
    }

    fn sign(&self, stamp: Stamp<'_>) -> Signed {
        let nothing = PcrValues::default();
        let (kind, extra, values) = match &stamp {
            Stamp::Statement(digest) => (STATEMENT, digest.as_bytes().as_slice(), &nothing),
            Stamp::Certify(nonce) => (CERTIFY, *nonce, &nothing),
            Stamp::Quote(nonce, values) => (QUOTE, *nonce, *values),
        };
        let attest = Attest {
            kind,
            extra: extra.to_vec(),
            ak: AkName::of_public(&self.public()).unwrap(),
            mask: values.mask(),
            pcrs: values.digest(),
            clock: 77,
            resets: 1,
            restarts: 0,
        };
        attest.signed()
    }
}

/// As the devices of the real run are set: no wait of either side is longer than the verifier's interval.
fn settings() -> (attester::Settings, relay::Settings) {
    let seconds = Duration::from_secs;
    let device = attester::Settings {
        first_retry: seconds(1),
        retry_cap: seconds(2),
        silence_cap: INTERVAL,
        ..attester::Settings::default()
    };
    let bridge = relay::Settings {
        repeat_after: seconds(2),
        waiting_first: seconds(1),
        waiting_cap: seconds(2),
        refused_wait: seconds(2),
        failing_cap: seconds(4),
        spread: seconds(1),
        ..relay::Settings::default()
    };
    (device, bridge)
}

/// What is lied about in a play.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About {
    /// One lie in one flow.
    One(usize, Flow),
    /// All lies together, while one flow follows another.
    All,
    /// All lies together to a device that goes on attesting, with the waits that are shipped: up to a quarter of an hour, if the
    /// bridge let the broker have its way.
    AsShipped,
}

/// What else there is to a play, drawn by its number: it has nothing to do with the lie and the flow.
struct Drawn {
    /// A tenth. Without an IMA policy nothing would be wrong, and an enrolment is about something else.
    tampered: bool,
    uefi: bool,
    /// A quarter of the devices to which all lies are told.
    sleeps: bool,
}

impl Drawn {
    fn of(about: About, flow: Flow, seed: u64) -> Self {
        let [tampered, uefi, sleeps, ..] = *Digest::of(&[b"play", &seed.to_be_bytes()]).as_bytes();
        let sleeps = match about {
            About::One(..) => flow == Flow::Sleeping,
            About::All => flow != Flow::Reboot && sleeps < 64,
            About::AsShipped => false,
        };
        Self {
            tampered: tampered < 26 && !matches!(flow, Flow::Enrolment | Flow::Reboot),
            uefi: uefi < 128 || matches!(flow, Flow::Logs | Flow::Reboot),
            sleeps,
        }
    }
}

/// Lies between two devices of which one is lied about.
pub(crate) struct Play {
    about: About,
    flow: Flow,
    /// Flows so far.
    number: usize,
    seed: u64,
    tampered: bool,
    /// A verdict before this is not on what the device is now.
    judged_from: Time,
    liar: Rc<RefCell<Liar>>,
    worlds: [World; 2],
    label: String,
}

/// What a play came to.
pub(crate) struct Outcome {
    pub(crate) table: Table,
    /// Attestations that the verifier has judged.
    pub(crate) judged: usize,
    /// From the last lie, or what the operator did, to the next PASS, or FAIL of a device that was tampered with.
    pub(crate) back: Duration,
    /// An operator had to remove a registration, as SECURITY.md says.
    pub(crate) removed: bool,
    /// The device was tampered with, and failed.
    pub(crate) tampered: bool,
}

impl Play {
    pub(crate) fn new(about: About, seed: u64) -> Self {
        let (flow, label) = match about {
            About::One(lie, flow) => (flow, format!("{} in {flow}, seed {seed}", LIES[lie].name)),
            // a third of the devices has no IMA policy, and may reboot
            About::All if seed.is_multiple_of(3) => (Flow::Reboot, format!("all lies together, seed {seed}")),
            About::All => (Flow::Steady, format!("all lies together, seed {seed}")),
            About::AsShipped => {
                (Flow::Steady, format!("all lies together and all waits as shipped, seed {seed}"))
            }
        };
        let drawn = Drawn::of(about, flow, seed);
        let liar = Rc::new(RefCell::new(Liar::new(seed, INTERVAL, Box::new(Stranger))));
        let worlds = [("victim", 1), ("neighbour", 2)].map(|(name, number)| {
            let (device, policy) = device(name, number, flow, &drawn);
            let (attester, relay) = match about {
                // but for the wait before a repeat, which is a sixth of the shipped interval and of this one
                About::AsShipped => {
                    let repeat_after = INTERVAL / 6;
                    (attester::Settings::default(), relay::Settings { repeat_after, ..Default::default() })
                }
                About::One(..) | About::All => settings(),
            };
            World::new(device, policy, BTreeMap::new()).between(attester, relay, &liar)
        });
        let tampered = drawn.tampered;
        Self { about, flow, number: 0, seed, tampered, judged_from: Time::ZERO, liar, worlds, label }
    }

    /// Both worlds go on until `until` says so of the first, or the time is up.
    fn run(&mut self, limit: Time, until: impl Fn(&World) -> bool) -> bool {
        loop {
            if until(&self.worlds[0]) {
                return true;
            }
            let now = self.worlds[0].now;
            if now >= limit {
                return false;
            }
            let slice = (now + STEP).min(limit);
            for world in &mut self.worlds {
                world.run_until(slice, |_| false);
                world.now = world.now.max(slice);
            }
            let [first, second] = &mut self.worlds;
            for lied in std::mem::take(&mut first.astray) {
                second.arrive(lied);
            }
            for lied in std::mem::take(&mut second.astray) {
                first.arrive(lied);
            }
        }
    }

    fn wait(&mut self, span: Duration) {
        let limit = self.worlds[0].now + span;
        self.run(limit, |_| false);
    }

    pub(crate) fn play(mut self) -> Result<Outcome, String> {
        let flow = self.flow;
        if !matches!(flow, Flow::Enrolment | Flow::First | Flow::Logs) {
            let calm = self.run(Time::from_secs(400), |world| world.passes() >= 2);
            assert!(calm, "{}: not even before", self.told());
        }
        if matches!(flow, Flow::Reboot | Flow::BridgeRestart) {
            // a session more, so that there is a ticket that a newer one has taken the place of
            for world in &mut self.worlds {
                world.device.ticket = None;
                world.restart_agent();
                world.restart_bridge();
            }
            let since = self.worlds[0].now;
            let calm = self.run(since + Time::from_secs(400), |world| world.passes_since(since) > 0);
            assert!(calm, "{}: not even before", self.told());
        }
        if self.tampered {
            let victim = &mut self.worlds[0];
            victim.device.tampered = true;
            victim.device.grow(1);
            self.judged_from = victim.now;
        }
        let plan = match self.about {
            About::One(lie, flow) => Plan::One(lie, flow, 1 + (self.label.len() % 2) as u32),
            About::All | About::AsShipped => Plan::Any(ONE_IN),
        };
        self.liar.borrow_mut().plan(plan);
        let began = self.worlds[0].now;
        let lying = if matches!(self.about, About::AsShipped) { LYING_AS_SHIPPED } else { LYING };
        while self.worlds[0].now < began + lying {
            self.next_flow();
            self.news();
            self.wait(if self.flow == Flow::Steady { STEADY_NEWS } else { NEWS });
        }
        self.liar.borrow_mut().plan(Plan::Honest);
        self.ends_well()
    }

    /// Where all lies are told together, each time in another flow.
    fn next_flow(&mut self) {
        const AWAKE: [Flow; 7] = [
            Flow::Steady,
            Flow::BridgeRestart,
            Flow::Logs,
            Flow::Proof,
            Flow::Steady,
            Flow::First,
            Flow::Statement,
        ];
        const ASLEEP: [Flow; 7] = [
            Flow::Sleeping,
            Flow::BridgeRestart,
            Flow::Logs,
            Flow::Proof,
            Flow::Sleeping,
            Flow::First,
            Flow::Statement,
        ];
        const WITHOUT_IMA: [Flow; 6] =
            [Flow::Reboot, Flow::Steady, Flow::BridgeRestart, Flow::Reboot, Flow::Proof, Flow::Reboot];
        if matches!(self.about, About::All) {
            let victim = &self.worlds[0];
            let flows: &[Flow] = match victim.device.sleep {
                _ if !victim.policy.ima => &WITHOUT_IMA,
                Some(_) => &ASLEEP,
                None => &AWAKE,
            };
            self.number += 1;
            let at = self.number * (1 + self.seed as usize % 5) + self.seed as usize;
            self.flow = flows[at % flows.len()];
        }
    }

    fn told(&self) -> String {
        let victim = &self.worlds[0];
        let dropped: Vec<_> = victim.dropped.iter().rev().take(12).collect();
        format!("{}\n{dropped:?}\n{:?}\n{}", self.label, victim.reports.last(), victim.tail())
    }

    /// Something happens that makes both sides talk as the flow does.
    fn news(&mut self) {
        let flow = self.flow;
        if matches!(flow, Flow::First | Flow::Logs) && is_judged(&self.worlds[0]) {
            self.judged_from = self.worlds[0].now;
        }
        for world in &mut self.worlds {
            let id = world.device.id.to_string();
            self.liar.borrow_mut().in_flow(&id, flow);
            match flow {
                Flow::Enrolment | Flow::First | Flow::Logs if !is_judged(world) => {}
                // a device that lost what it knew of its enrolment, and an operator who removed it
                Flow::Enrolment => {
                    world.device.enrolled = false;
                    world.keylime.delete();
                    world.restart_agent();
                    world.restart_bridge();
                }
                // added anew, it has not passed yet
                Flow::First => {
                    world.keylime.add(world.policy);
                    world.device.ticket = None;
                    world.restart_agent();
                    world.restart_bridge();
                }
                Flow::Logs => {
                    world.device.grow(400);
                    world.uefi_cache.clear();
                    world.keylime.add(world.policy);
                    if world.device.sleep.is_some() {
                        wakes(world);
                    }
                }
                Flow::Steady if world.policy.ima => world.device.grow(2),
                Flow::Steady => {}
                Flow::Proof => {
                    world.device.ticket = None;
                    world.restart_agent();
                    world.restart_bridge();
                }
                Flow::Statement | Flow::BridgeRestart => {
                    if world.policy.ima {
                        world.device.grow(2);
                    }
                    world.restart_bridge();
                    world.restart_agent();
                }
                Flow::Reboot => {
                    world.device.reboot();
                    world.restart_agent();
                }
                Flow::Sleeping => {
                    world.device.grow(1);
                    wakes(world);
                }
            }
            if matches!(flow, Flow::Proof | Flow::Statement | Flow::BridgeRestart | Flow::Reboot) {
                self.liar.borrow_mut().restarted(&id);
            }
        }
    }

    fn ends_well(mut self) -> Result<Outcome, String> {
        let stopped = self.worlds[0].now.max(self.worlds[0].latest) + ON_ITS_WAY;
        self.run(stopped, |_| false);
        if self.worlds[0].device.sleep.is_some() {
            // it wakes once more, as it would by itself
            self.flow = Flow::Sleeping;
            self.news();
        }
        let (tampered, judged_from) = (self.tampered, self.judged_from);
        let over = |world: &World| {
            if tampered { failed_since(world, judged_from) } else { world.passes_since(stopped) > 0 }
        };
        let limit = stopped + Duration::from_secs(400);
        // what the bridge was killed over before it could withdraw it: the result says what to do
        let heard = self.worlds[0].refusals.len();
        let refused = |world: &World| {
            world.refusals.get(heard..).is_some_and(|new| new.contains(&RefusedReason::OtherTpm))
        };
        self.run(limit, |world| over(world) || refused(world));
        let removed = refused(&self.worlds[0]);
        let stopped = if removed { self.operator_removes() } else { stopped };
        let ended = self.run(limit, over);
        let back = self.worlds[0].now.saturating_sub(stopped);
        self.is_true()?;
        match back {
            _ if !ended => Err(format!("in vain: {}", self.told())),
            back if back > BACK_WITHIN => Err(format!("back after {back:?}: {}", self.told())),
            back => {
                let judged =
                    |world: &World| world.reports.iter().filter(|(_, report)| report.nonce.is_some()).count();
                let judged = self.worlds.iter().map(judged).sum();
                Ok(Outcome { table: self.liar.borrow().table().clone(), judged, back, removed, tampered })
            }
        }
    }

    /// `keylime_tenant -c regdelete`; gives the time.
    fn operator_removes(&mut self) -> Time {
        assert_eq!(self.flow, Flow::Enrolment, "{}", self.label);
        self.worlds[0].keylime.regdelete();
        self.worlds[0].now
    }

    /// Every verdict published is Keylime's own, and none was forced.
    fn is_true(&self) -> Result<(), String> {
        for world in &self.worlds {
            if world.keylime.foreign_nonces > 0 {
                return Err(format!("a foreign nonce: {}", self.told()));
            }
            for (_, report) in &world.reports {
                let passed = report.nonce.is_some_and(|nonce| world.keylime.passed.contains(&nonce));
                match report.verdict {
                    Verdict::Pass if !passed => return Err(format!("a false PASS: {}", self.told())),
                    Verdict::Fail if !world.device.tampered => {
                        return Err(format!("a false FAIL: {}", self.told()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn wakes(world: &mut World) {
    world.disconnect();
    world.connect();
}

/// Keylime has said what it thinks of the device, whatever that is.
fn is_judged(world: &World) -> bool {
    world.reports.iter().any(|(_, report)| matches!(report.verdict, Verdict::Pass | Verdict::Fail))
}

fn failed_since(world: &World, since: Time) -> bool {
    world.reports.iter().any(|(at, report)| *at > since && report.verdict == Verdict::Fail)
}

fn device(name: &str, number: u8, flow: Flow, drawn: &Drawn) -> (Device, Policy) {
    let mut device = Device::new(name, number);
    let policy = match flow {
        // with an IMA policy Keylime fails every device that reboots
        Flow::Reboot => Policy { ima: false, uefi: drawn.uefi },
        _ => Policy { ima: true, uefi: drawn.uefi },
    };
    if policy.ima {
        device.grow(if flow == Flow::Logs { 700 } else { 20 });
    }
    if policy.uefi {
        device.uefi = Some(dense_log(30_000));
    }
    device.sleep = drawn.sleeps.then_some(0);
    device.enrol_again_after = INTERVAL;
    (device, policy)
}
