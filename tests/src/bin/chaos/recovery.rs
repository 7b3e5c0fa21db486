//! After a fault: every device is back at PASS, nobody was failed, and how long it took.
//!
//! A device's time runs from the return of the last part to its next PASS, which must be of an attestation whose PASS
//! was not seen before; of a device that was rebooted, of one whose challenge was not seen before. What Keylime itself
//! cannot do runs from the end of what it waited for, and is counted apart: see [`Apart`].

use crate::plan::Kind;
use crate::points::question;
use crate::rig::Rig;
use anyhow::{Context, Result, bail, ensure};
use keylime_mqtt_schemas::messages::{Digest, Question, Verdict};
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::scratch::Tail;
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

/// Longer than any return; a device that is not back by then is lost.
const PATIENCE: Duration = Duration::from_secs(150);

/// How often it is looked who is back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a device could not be back by itself at once, through no fault of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Apart {
    /// An IMA policy over a reboot: the operator added it again, as the result said
    Readded,
    /// After a power cut the TPM's clock was not `safe` or behind: Keylime would fail such a quote
    ClockNotSafe,
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Readded => "IMA policy over a reboot: held, re-added by the operator as the result says",
            Self::ClockNotSafe => "TPM clock not safe, or behind, after the power cut: waited for",
        })
    }
}

/// A device that is back.
#[derive(Clone, Debug)]
pub(crate) struct Back {
    pub(crate) device: usize,
    pub(crate) after: Duration,
    pub(crate) apart: Option<Apart>,
}

/// What is watched over the whole run.
pub(crate) struct Watchman {
    verifier: Tail,
    /// Requests for sessions since the last look
    sessions: usize,
    timeouts: usize,
}

impl Watchman {
    pub(crate) fn new(rig: &Rig) -> Self {
        Self { verifier: Tail::of(&rig.world.scratch.log("verifier")), sessions: 0, timeouts: 0 }
    }

    /// TIMEOUTs published so far: a device was away for five intervals, which is true and heals.
    pub(crate) fn timeouts(&self) -> usize {
        self.timeouts
    }

    /// Sessions asked for so far, since the last [`Self::sessions`].
    pub(crate) fn sessions_so_far(&mut self) -> Result<usize> {
        self.look()?;
        Ok(self.sessions)
    }

    /// Sessions asked for since the last call.
    pub(crate) fn sessions(&mut self) -> usize {
        std::mem::take(&mut self.sessions)
    }

    /// After a verifier's restart each device proves itself once, when there are sessions to spare: they belong to that strike, not to
    /// the next, so they are waited for. A bridge that was killed as well knows of no restart, so there is an end to it.
    pub(crate) fn everybody_proven(&mut self, proofs: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.sessions < proofs && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
            self.look()?;
        }
        Ok(())
    }

    /// Reads on in the verifier's log: nobody may have been failed.
    pub(crate) fn look(&mut self) -> Result<()> {
        let log = self.verifier.read()?;
        self.sessions += log.lines().filter(|line| line.ends_with("POST /v3.0/sessions")).count();
        for words in ["failed verification", "rate limit"] {
            let line = log.lines().find(|line| line.to_lowercase().contains(words));
            ensure!(line.is_none(), "the verifier says: {}", line.unwrap_or_default());
        }
        Ok(())
    }

    /// Waits until everybody is back, playing the operator where the result says so.
    pub(crate) fn everybody_back(
        &mut self,
        rig: &mut Rig,
        mark: usize,
        returned: Instant,
        rebooted: Option<usize>,
    ) -> Result<Vec<Back>> {
        let mut waits = Vec::new();
        for number in 0..rig.members.len() {
            waits.push(Wait::new(rig, number, mark, returned, rebooted == Some(number))?);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut next = mark;
        while waits.iter().any(|wait| wait.back.is_none()) {
            if Instant::now() > deadline {
                let missing: Vec<_> =
                    waits.iter().filter(|wait| wait.back.is_none()).map(|wait| wait.number).collect();
                bail!("lost: devices {missing:?}\n{}", rig.world.tails());
            }
            let news = rig.world.observer()?.seen_from(next);
            next += news.len();
            for seen in &news {
                self.timeouts +=
                    usize::from(seen.result().is_some_and(|result| result.verdict == Verdict::Timeout));
                for wait in &mut waits {
                    wait.hear(rig, seen)?;
                }
            }
            for wait in waits.iter_mut().filter(|wait| wait.back.is_none()) {
                wait.look_at_clock(rig)?;
            }
            self.look()?;
            std::thread::sleep(LOOK_EVERY);
        }
        everything_runs(rig)?;
        Ok(waits.into_iter().filter_map(|wait| wait.back).collect())
    }
}

/// Nothing has ended that nobody killed.
fn everything_runs(rig: &mut Rig) -> Result<()> {
    ensure!(rig.world.bridge.process()?.is_running(), "the bridge has ended\n{}", rig.world.tails());
    for member in &mut rig.members {
        let name = member.device.name().to_owned();
        ensure!(member.device.agent()?.is_running(), "the agent of {name} has ended\n{}", rig.world.tails());
    }
    Ok(())
}

/// For one device.
struct Wait {
    number: usize,
    id: String,
    kind: Kind,
    /// Digests of nonces whose PASS does not count
    old: HashSet<String>,
    rebooted: bool,
    clock_awaited: bool,
    readded: bool,
    apart: Option<Apart>,
    since: Instant,
    back: Option<Back>,
}

impl Wait {
    fn new(rig: &Rig, number: usize, mark: usize, since: Instant, rebooted: bool) -> Result<Self> {
        let member = rig.members.get(number).context("no such device")?;
        let id = member.device.id().to_owned();
        let before = rig.world.observer()?.seen().into_iter().take(mark);
        let old = before.filter_map(|seen| if rebooted { asked(&seen, &id) } else { passed(&seen, &id) });
        Ok(Self {
            number,
            kind: member.kind,
            old: old.collect(),
            id,
            rebooted,
            clock_awaited: rebooted,
            readded: false,
            apart: None,
            since,
            back: None,
        })
    }

    fn hear(&mut self, rig: &Rig, seen: &Seen) -> Result<()> {
        let Some(result) = seen.result().filter(|result| result.agent_id.as_str() == self.id) else {
            return Ok(());
        };
        ensure!(
            seen.retained || result.verdict != Verdict::Fail,
            "{} was failed: {result:?}\n{}",
            self.id,
            rig.world.tails()
        );
        let reason = result.reason.as_deref().unwrap_or_default();
        if self.rebooted
            && self.kind.has_ima()
            && !self.readded
            && reason.contains("rebooted, needs re-adding")
        {
            ensure!(reason.contains("keylime_tenant"), "no remedy in {reason:?}");
            let member = rig.members.get(self.number).context("no such device")?;
            rig.world.keylime.update(&self.id, &member.policies)?;
            self.readded = true;
            self.apart = Some(Apart::Readded);
            self.since = self.since.max(Instant::now());
        }
        let Some(nonce) = passed(seen, &self.id) else { return Ok(()) };
        // One that came while the parts were away does not show that they are back. The operator's command may end after
        // what it brought about.
        if seen.at < self.since && !self.readded {
            self.old.insert(nonce);
        } else if self.back.is_none() && !self.old.contains(&nonce) {
            ensure!(
                self.readded || !(self.rebooted && self.kind.has_ima()),
                "{} passed without being held",
                self.id
            );
            let after = seen.at.saturating_duration_since(self.since);
            self.back = Some(Back { device: self.number, after, apart: self.apart });
        }
        Ok(())
    }

    /// A rebooted device cannot quote before its clock is safe.
    fn look_at_clock(&mut self, rig: &Rig) -> Result<()> {
        if !self.clock_awaited {
            return Ok(());
        }
        let member = rig.members.get(self.number).context("no such device")?;
        let (now, safe) = member.device.tpm()?.clock()?;
        if safe && now > member.clock {
            self.clock_awaited = false;
        } else {
            self.apart = self.apart.or(Some(Apart::ClockNotSafe));
            self.since = self.since.max(Instant::now());
        }
        Ok(())
    }
}

/// The digest of the nonce of a PASS.
pub(crate) fn passed(seen: &Seen, id: &str) -> Option<String> {
    let result = seen.result().filter(|result| result.agent_id.as_str() == id)?;
    result.nonce_sha256.filter(|_| result.verdict == Verdict::Pass)
}

/// The digest of the nonce of a challenge.
fn asked(seen: &Seen, id: &str) -> Option<String> {
    match question(seen, id)? {
        Question::Challenge(challenge) => {
            Some(hex::encode(Digest::of(&[challenge.nonce.as_bytes()]).as_bytes()))
        }
        _ => None,
    }
}

/// From PASS to PASS where nothing is broken, the median over all devices.
pub(crate) fn cadence(rig: &Rig, rounds: usize) -> Result<Duration> {
    let observer = rig.world.observer()?;
    let mark = observer.mark();
    let mut gaps = Vec::new();
    for member in &rig.members {
        let id = member.device.id();
        let mut passes: Vec<Instant> = Vec::new();
        let mut nonces = HashSet::new();
        let deadline = Instant::now() + PATIENCE;
        while passes.len() <= rounds {
            let news = observer.wait_until(deadline, mark, |seen| {
                passed(seen, id)
                    .filter(|nonce| !seen.retained && !nonces.contains(nonce))
                    .map(|nonce| (nonce, seen.at))
            });
            let (nonce, at) = news.with_context(|| format!("{id} does not pass\n{}", rig.world.tails()))?;
            nonces.insert(nonce);
            passes.push(at);
        }
        gaps.extend(passes.windows(2).filter_map(|pair| Some(pair.last()?.duration_since(*pair.first()?))));
    }
    gaps.sort();
    gaps.get(gaps.len() / 2).copied().context("no gaps")
}
