//! The device's half of the exchange: answers questions, and speaks up when nobody asks.
//!
//! It never decides anything about trust. It keeps its last answers, so that a repeated question costs one message and
//! no TPM command, does one piece of work at a time, and introduces itself (`Enrol` or `Ready`) at start, after the
//! stated silence, and when a question is for another boot.

mod allowance;
mod interface;
mod questions;

use std::collections::VecDeque;
use std::time::Duration;

pub use interface::{Done, Input, Output, Report, Settings, Work};

use self::allowance::Allowance;
use super::retry::{Jitter, doubled};
use super::{Delivery, Time};
use crate::messages::{
    Activation, BootMarker, BootTag, Challenge, Down, Evidence, LogKind, Need, PcrMask, Proof, Ready,
    ReadyTag, Unchanged, Up,
};
use crate::topics::Via;

/// Questions waiting while the TPM works. A bridge asks one at a time; more than this is not ours.
const MAX_QUEUED: usize = 4;
/// Silence that means trouble before any bridge has stated its own.
const DEFAULT_SILENCE: Duration = Duration::from_secs(120);
/// What a part of a log has, about.
const PART_BYTES: usize = 15 * 1024;
const TOO_MUCH: &str = "more of a log was asked for than this device sends";
/// A device asks no oftener than this whatever it is told.
const LEAST_WAIT: Duration = Duration::from_millis(500);

/// One piece of work with the bridge that asked for it.
#[derive(Debug)]
struct Job {
    work: Work,
    via: Option<Via>,
    /// When the answer is of no use any more.
    good_until: Option<Time>,
}

/// A part of a log that was asked for sooner than this device sends it.
#[derive(Debug)]
struct Held {
    need: Need,
    via: Option<Via>,
    until: Time,
}

/// Where the device stands towards the bridge.
#[derive(Debug, Clone, Copy)]
enum Stance {
    /// To be introduced as soon as there is a connection.
    Due,
    /// Introduced and not answered.
    Introduced { attempt: u32, retry_at: Time },
    /// The bridge has spoken and will speak again.
    Engaged { silence_at: Time },
    /// Told to come again.
    Waiting { until: Time },
}

/// The last evidence sent, for repeats and statements.
#[derive(Debug)]
struct Answered {
    challenge: Challenge,
    evidence: Evidence,
    ima_end: Option<u64>,
}

/// Whether the registrar has accepted this AK, as far as the device knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enrolment {
    Open,
    /// Told so without having been asked for an activation: perhaps by nobody who knows.
    OnHearsay,
    Told,
}

/// What the device lets be asked of it, as it said in its last `Ready`.
#[derive(Debug, Clone, Copy, Default)]
struct Offered {
    pcrs: PcrMask,
    /// Lines of the IMA log that it has told of, where there is one.
    ima: Option<u64>,
    uefi: bool,
}

/// The device's half.
#[derive(Debug)]
pub struct Attester {
    settings: Settings,
    jitter: Jitter,
    connected: bool,
    enrolment: Enrolment,
    stance: Stance,
    boot: Option<BootMarker>,
    /// What was said of this boot last, and what of it a bridge has acted on since.
    said: Option<ReadyTag>,
    known: Option<ReadyTag>,
    /// The connection is so new that nothing was sent over it.
    fresh: bool,
    working: Option<Job>,
    queue: VecDeque<Job>,
    activated: Option<Activation>,
    proved: Option<Proof>,
    answered: Option<Answered>,
    not_enrolled_since: Option<Time>,
    enrolled_at: Option<Time>,
    offered: Offered,
    answers: Allowance,
    parts: Allowance,
    held: Option<Held>,
    outputs: VecDeque<Output>,
}

impl Attester {
    /// A device; `enrolled` says that the registrar accepted its present AK at some time.
    pub fn new(settings: Settings, enrolled: bool) -> Self {
        Self {
            jitter: Jitter::new(settings.seed),
            answers: Allowance::of_answers(settings.answers_per_minute),
            parts: Allowance::of_parts(),
            settings,
            connected: false,
            enrolment: if enrolled { Enrolment::Told } else { Enrolment::Open },
            stance: Stance::Due,
            boot: None,
            said: None,
            known: None,
            fresh: false,
            working: None,
            queue: VecDeque::new(),
            activated: None,
            proved: None,
            answered: None,
            not_enrolled_since: None,
            enrolled_at: None,
            offered: Offered::default(),
            held: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::Connected => {
                self.connected = true;
                self.fresh = true;
                if self.settings.sleeps {
                    self.stance = Stance::Due;
                }
                if matches!(self.stance, Stance::Due | Stance::Introduced { .. }) {
                    self.introduce(now);
                }
            }
            Input::Disconnected => self.connected = false,
            Input::Received(Down { question, via }) => self.received(question, via, now),
            Input::Done(done) => {
                if let Some(job) = self.working.take() {
                    self.done(job, done, now);
                    self.work_on();
                }
            }
        }
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        if !self.connected {
            return None;
        }
        let held = self.held.as_ref().map(|held| held.until);
        held.into_iter().chain(self.speaks_up_at()).min()
    }

    fn speaks_up_at(&self) -> Option<Time> {
        match self.stance {
            Stance::Due => None,
            Stance::Introduced { retry_at: at, .. }
            | Stance::Engaged { silence_at: at }
            | Stance::Waiting { until: at } => Some(at),
        }
    }

    /// Acts on the time that has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if !self.connected {
            return;
        }
        if let Some(held) = self.held.take_if(|held| held.until <= now) {
            self.read(held.need, held.via, now);
        }
        if self.speaks_up_at().is_none_or(|at| at > now) {
            return;
        }
        match self.stance {
            // the TPM has not made it yet, so there was nothing to answer
            Stance::Introduced { attempt, .. } if self.is_describing_itself() => {
                self.stance = Stance::Introduced { attempt, retry_at: self.retry_at(attempt, now) };
            }
            Stance::Introduced { attempt, .. } => {
                self.report(Report::Unanswered(attempt));
                self.introduce(now);
            }
            _ => self.introduce(now),
        }
    }

    fn is_describing_itself(&self) -> bool {
        let mut jobs = self.working.iter().chain(&self.queue);
        jobs.any(|job| matches!(job.work, Work::Introduce | Work::Describe))
    }

    fn retry_at(&mut self, attempt: u32, now: Time) -> Time {
        let wait = doubled(self.settings.first_retry, attempt - 1, self.settings.retry_cap);
        now + self.jitter.upper_half(wait)
    }

    /// Says `Enrol` or `Ready` as soon as the TPM has made it; again and again until answered.
    fn introduce(&mut self, now: Time) {
        if !self.connected {
            self.stance = Stance::Due;
            return;
        }
        let attempt = if let Stance::Introduced { attempt, .. } = self.stance { attempt + 1 } else { 1 };
        self.stance = Stance::Introduced { attempt, retry_at: self.retry_at(attempt, now) };
        let enrolled = self.enrolment != Enrolment::Open;
        let work = if enrolled { Work::Describe } else { Work::Introduce };
        self.enqueue(work, None, None);
    }

    fn done(&mut self, job: Job, done: Done, now: Time) {
        let Job { work, via, good_until } = job;
        match (work, done) {
            (Work::Introduce, Done::Introduced(enrol)) => {
                self.enrolled_at = Some(now);
                self.send(Up::Enrol(enrol), None, Delivery::Assured);
            }
            (Work::Describe, Done::Described(ready)) => {
                self.offered =
                    Offered { pcrs: ready.pcrs, ima: ready.ima_entries, uefi: ready.uefi.is_some() };
                if self.boot.replace(ready.boot) != Some(ready.boot) {
                    self.answered = None;
                }
                self.describe(ready);
            }
            (Work::Activate { .. }, Done::Activated(activation)) => {
                self.activated = Some(activation.clone());
                self.send(Up::Activation(activation), via, Delivery::Assured);
            }
            (Work::Prove(_), Done::Proved(proof)) => {
                self.proved = Some(proof.clone());
                self.send(Up::Proof(proof), via, Delivery::Assured);
            }
            (Work::Collect(_), Done::Collected { .. }) if good_until.is_some_and(|until| until < now) => {
                self.report(Report::Ignored("the challenge ran out before the evidence was made"));
                self.introduce(now);
            }
            (Work::Collect(challenge), Done::Collected { evidence, ima_end }) => {
                let delivery = if challenge.full { Delivery::Assured } else { Delivery::Lean };
                self.offered.ima = self.offered.ima.max(ima_end);
                self.send_evidence(evidence.clone(), via, delivery, now);
                self.answered = Some(Answered { challenge, evidence, ima_end });
            }
            (Work::Read(need), Done::Read { blob, next }) => {
                if blob.log == LogKind::Ima {
                    self.offered.ima = self.offered.ima.max(Some(next));
                }
                let step = next.saturating_sub(need.offset);
                // the packed UEFI log ends where its parts say
                let upto = blob.total.map_or(need.upto, |total| need.upto.min(total.into()));
                self.send(Up::Blob(blob), via.clone(), Delivery::Assured);
                if step > 0 && next < upto {
                    self.read(Need { offset: next, ..need }, via, now);
                }
            }
            (Work::State { .. }, Done::Stated(statement)) => {
                self.send(Up::Statement(statement), via, Delivery::Assured);
            }
            (Work::Prove(_) | Work::Collect(_) | Work::State { .. }, Done::NotYet(not_yet)) => {
                self.send(Up::NotYet(not_yet), via, Delivery::Assured);
            }
            (_, Done::Rebooted) => {
                self.boot = None;
                self.said = None;
                self.known = None;
                self.answered = None;
                self.introduce(now);
            }
            // whoever asked asks again; an introduction has its own timer
            (_, _) => {}
        }
    }

    /// Counted before anything is read: a log takes time to be read from the middle, too. What is too soon comes in its time, so that
    /// a log arrives though a broker has used up what may be sent at once; of more than one the last.
    fn read(&mut self, need: Need, via: Option<Via>, now: Time) {
        if self.parts.take(now) {
            self.enqueue(Work::Read(need), via, None);
        } else {
            let held = Held { need, via, until: self.parts.free_at() };
            if self.held.replace(held).is_some() {
                self.report(Report::Ignored(TOO_MUCH));
            }
        }
    }

    /// Lines that come with a quote are as dear as parts, where they are as many.
    fn send_evidence(&mut self, evidence: Evidence, via: Option<Via>, delivery: Delivery, now: Time) {
        let parts = evidence.ima.as_ref().map_or(0, |ima| ima.packed.as_slice().len() / PART_BYTES);
        if (0..parts).all(|_| self.parts.take(now)) {
            self.send(Up::Evidence(evidence), via, delivery);
        } else {
            self.report(Report::Ignored(TOO_MUCH));
        }
    }

    /// Says how this boot is, in a few bytes where a bridge has acted on the same before.
    fn describe(&mut self, ready: Ready) {
        let tag = ready.tag();
        let first = matches!(self.stance, Stance::Introduced { attempt: 1, .. });
        let delivery = if self.fresh && self.settings.sleeps { Delivery::Lean } else { Delivery::Assured };
        let known = self.known.take() == Some(tag) && first;
        self.said = Some(tag);
        if known {
            let unchanged = Unchanged { ready: tag, ima_entries: ready.ima_entries };
            self.send(Up::Unchanged(unchanged), None, delivery);
        } else {
            self.send(Up::Ready(ready), None, Delivery::Assured);
        }
    }

    fn is_this_boot(&self, boot: BootTag) -> bool {
        self.boot.is_some_and(|own| own.tag() == boot)
    }

    /// A question for another boot: the bridge has to learn of this one. Once is enough while that is under way.
    fn introduce_for_this_boot(&mut self, now: Time) {
        if !matches!(self.stance, Stance::Introduced { .. }) {
            self.introduce(now);
        }
    }

    fn enrol_again_if_long(&mut self, now: Time) {
        let since = *self.not_enrolled_since.get_or_insert(now);
        let hearsay = self.enrolment == Enrolment::OnHearsay;
        let after = if hearsay { Duration::ZERO } else { self.settings.enrol_again_after };
        let long = |since: Time| now.saturating_sub(since) >= after;
        if long(since) && self.enrolled_at.is_none_or(long) {
            self.enrolment = Enrolment::Open;
            self.activated = None;
            self.not_enrolled_since = Some(now);
        }
    }

    fn engage(&mut self, silence: Duration, now: Time) {
        self.stance =
            Stance::Engaged { silence_at: now + silence.clamp(LEAST_WAIT, self.settings.silence_cap) };
    }

    /// Waits what it is told, and up to a tenth longer so that a fleet spreads.
    fn wait(&mut self, seconds: u32, now: Time) {
        let told = Duration::from_secs(u64::from(seconds)).clamp(LEAST_WAIT, self.settings.silence_cap);
        let spread = self.jitter.upper_half(told / 10);
        self.stance = Stance::Waiting { until: now + told + spread };
    }

    fn send(&mut self, message: Up, via: Option<Via>, delivery: Delivery) {
        self.fresh = false;
        self.outputs.push_back(Output::Send(message, via, delivery));
    }

    fn report(&mut self, report: Report) {
        self.outputs.push_back(Output::Report(report));
    }

    fn enqueue(&mut self, work: Work, via: Option<Via>, good_until: Option<Time>) {
        let queued = self.working.iter().chain(&self.queue).any(|job| job.work == work);
        if queued {
            return;
        }
        if self.queue.len() >= MAX_QUEUED {
            self.report(Report::Ignored("more questions at once than a bridge asks"));
            return;
        }
        self.queue.push_back(Job { work, via, good_until });
        self.work_on();
    }

    fn work_on(&mut self) {
        if self.working.is_none() {
            self.working = self.queue.pop_front();
            if let Some(job) = &self.working {
                self.outputs.push_back(Output::Work(job.work.clone()));
            }
        }
    }
}
