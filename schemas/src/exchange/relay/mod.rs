//! The bridge's half of the exchange, one per device.
//!
//! Invariants:
//! - evidence is submitted only to the offer whose nonce its signature covers, by index and nonce;
//! - there is at most one [`Command`] under way;
//! - a question is repeated a few times and then never until the device speaks or shows up again;
//! - whatever is lost with the process is found again from the device's `Ready`.

mod arrival;
mod attestation;
mod enrolment;
mod facts;
mod gather;
mod interface;
mod offer;
mod outcome;
mod phase;
mod port;
mod session;
mod submission;
mod telling;
mod trust;
mod unpack;

use std::collections::VecDeque;
use std::time::Duration;

pub use facts::{Facts, OpenedTicket, Token};
pub use interface::{Input, Notice, Output, Report, Settings};
pub use offer::{ImaState, Offer, Requested, Restored};
pub use port::{
    Activated, Command, Done, Offered, Proven, Registered, Restore, Restoring, Session, Standing, StatedAt,
    Status, Submitted, Unavailable,
};
pub use unpack::{ImaParts, ImaText, Unpack};

use phase::{Gathered, Phase, Proving, Repeat, Retry, Step, Unsubmitted};
use submission::Another;
use trust::{CheckedBoot, TrustedAk};

use super::retry::{Jitter, doubled};
use super::{Delivery, Time};
use crate::AgentId;
use crate::messages::limits::MAX_TICKET;
use crate::messages::{
    AkName, Bounded, Digest, Down, Heard, Hello, LaterReason, Nonce, PcrValues, Question, RefusedReason,
    Told, Up,
};

/// First wait after Keylime did not answer; doubles.
const SETBACK_FIRST: Duration = Duration::from_secs(1);
/// Keylime is tried at least this often per device.
const SETBACK_CAP: Duration = Duration::from_secs(60);
/// Keylime's TIMEOUT comes after so many intervals (`push_agent_monitor.py`).
const TIMEOUT_INTERVALS: u32 = 5;
/// A device that passed is gone on with for so long: lies of five intervals, the interval before them, and the two in which it shall
/// be back.
const GOOD_INTERVALS: u32 = 8;
/// The verifier keeps every attestation it opened, so a device that sends no evidence gets no more than these.
const LEAST_BETWEEN_OFFERS: Duration = Duration::from_secs(5);
/// The registrar writes its database, and the bridge checks a chain of certificates, each time a device registers.
const LEAST_BETWEEN_REGISTRATIONS: Duration = Duration::from_secs(5);
/// A question is repeated after so many times what answers take on this device's link, if that is longer than set.
const ANSWER_TIMES: u32 = 2;
/// Longer than this an answer was not on its way.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);
/// Messages that wait while the standing of an overdue device is read, some milliseconds.
const MOST_UNHEARD: usize = 4;
/// The interval to reckon with until the verifier has named its own: Keylime's agents use it as default.
const ASSUMED_INTERVAL: Duration = Duration::from_secs(60);

/// How the next answer shall come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Brief,
    /// What a brief one left out was guessed wrong.
    Full,
}

/// The bridge's half for one device.
#[derive(Debug)]
pub struct Relay {
    id: AgentId,
    settings: Settings,
    jitter: Jitter,
    phase: Phase,
    facts: Option<Facts>,
    trusted: Option<TrustedAk>,
    token: Option<Token>,
    ticket: Option<Bounded<MAX_TICKET>>,
    checked_boot: Option<CheckedBoot>,
    /// What the device had said when it passed last, and how long that is gone on with.
    good: Option<Facts>,
    good_until: Time,
    /// How often Keylime was found to think better of an overdue device.
    overdue_reads: u32,
    baseline: Option<Standing>,
    /// The standing before, to tell the device while it is not read anew.
    stood: Option<Standing>,
    passed_ima: Option<ImaState>,
    /// Lines of this boot's IMA log that the verifier was given, with a quote over them.
    given: Option<u64>,
    /// Values of the last quote that was bound: what the device need not send.
    held: Option<PcrValues>,
    /// The nonce of the challenge sent last: another one is sent lean, the same again is not.
    asked: Option<Nonce>,
    form: Form,
    /// What came packed with the reference could not be read: the device shall do without.
    plain: bool,
    gathered: Option<Gathered>,
    /// The credential whose activation was accepted last, for a repeated `Activation`.
    activated: Option<Digest>,
    /// The `Enrol` that the registrar knows from this process and that nobody has activated.
    unactivated: Option<Digest>,
    /// Evidence that waits for a new token, submitted to the same index then.
    unsubmitted: Option<Unsubmitted>,
    interval: Option<Duration>,
    timeout_at: Option<Time>,
    /// How long answers took lately.
    answers_take: Duration,
    /// When an attestation was opened for which no evidence was taken.
    offered_at: Option<Time>,
    another: Another,
    /// What came while the standing of an overdue device was read.
    unheard: VecDeque<(Up, Option<OpenedTicket>)>,
    /// A `Ready` that came while a command was under way.
    pending: Option<Facts>,
    /// How the device stands, for who asks with `Hello`.
    told: Option<Told>,
    /// The device has spoken up and was not answered since.
    owes: bool,
    setbacks: u32,
    waits: u32,
    /// Enrolments that came to nothing since the last that was accepted.
    vain_enrolments: u32,
    /// When the registrar was asked last.
    registered_at: Option<Time>,
    refused: Option<enrolment::RefusedEnrolment>,
    fails: u32,
    spoiled: u32,
    hold: u32,
    /// The token came in this chain of steps, so its refusal is not its age.
    fresh_token: bool,
    outputs: VecDeque<Output>,
}

impl Relay {
    /// A device of which nothing is known.
    pub fn new(id: AgentId, settings: Settings) -> Self {
        Self {
            id,
            jitter: Jitter::new(settings.seed),
            settings,
            phase: Phase::Idle,
            facts: None,
            trusted: None,
            token: None,
            ticket: None,
            checked_boot: None,
            good: None,
            good_until: Time::ZERO,
            overdue_reads: 0,
            baseline: None,
            stood: None,
            passed_ima: None,
            given: None,
            held: None,
            asked: None,
            form: Form::Brief,
            plain: false,
            gathered: None,
            activated: None,
            unactivated: None,
            unsubmitted: None,
            interval: None,
            timeout_at: None,
            answers_take: Duration::ZERO,
            offered_at: None,
            another: Another::default(),
            unheard: VecDeque::new(),
            pending: None,
            told: None,
            owes: false,
            setbacks: 0,
            waits: 0,
            vain_enrolments: 0,
            registered_at: None,
            refused: None,
            fails: 0,
            spoiled: 0,
            hold: 0,
            fresh_token: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::Received(message, ticket) if self.is_reading_overdue() => {
                // what is asked meanwhile is not about the question that is open
                if self.unheard.len() < MOST_UNHEARD {
                    self.unheard.push_back((message, ticket));
                }
            }
            Input::Received(message, ticket) => self.received(message, ticket, now),
            Input::Present => self.present(now),
            Input::Done(done) => self.done(done, now),
        }
        while !matches!(self.phase, Phase::Busy(_))
            && let Some((message, ticket)) = self.unheard.pop_front()
        {
            self.received(message, ticket, now);
        }
        if !matches!(self.phase, Phase::Busy(_))
            && let Some(facts) = self.pending.take()
        {
            self.ready(facts, now);
        }
        self.parts_ahead(now);
        self.keep_going(now);
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.phase.due(self.sleeps()).into_iter().chain(self.timeout_at).min()
    }

    /// Acts on the time that has come.
    pub fn handle_timeout(&mut self, now: Time) {
        self.good = self.good.take().filter(|_| self.good_until > now);
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.overdue(now);
        }
        if self.phase.due(self.sleeps()).is_some_and(|at| at <= now) {
            self.phase_due(now);
        }
        self.keep_going(now);
    }

    /// A device that passed lately is asked again without its word, from what it had said then: whoever made the bridge wait for it may be
    /// somebody else, and have told the device to be silent.
    fn keep_going(&mut self, now: Time) {
        if matches!(self.phase, Phase::Idle) && self.keeps_going() {
            self.phase = Phase::Doubting { due: now + self.repeat_after().max(self.interval() / 2) };
        }
    }

    fn is_reading_overdue(&self) -> bool {
        matches!(self.phase, Phase::Busy(Step::Reading(phase::Reading::Overdue(_))))
    }

    fn keeps_going(&self) -> bool {
        self.good.is_some() && !self.sleeps()
    }

    /// Bytes of logs held for this device, for the shell's bound over all devices.
    pub fn held(&self) -> usize {
        let gathered = self.gathered.as_ref().map_or(0, |gathered| gathered.lines.len());
        let unsubmitted = self.unsubmitted.as_ref().map_or(0, |unsubmitted| unsubmitted.restored.held());
        gathered + unsubmitted + self.phase.held()
    }

    /// Gives back what [`Self::held`] counts, and what the shell holds for the attestation under way: the device is told to
    /// come again. Says whether there was any; nothing is given back while a command is under way.
    pub fn shed(&mut self) -> bool {
        if matches!(self.phase, Phase::Busy(_)) {
            return false;
        }
        let attesting = match &self.phase {
            Phase::Gather(_) | Phase::AwaitEvidence { .. } | Phase::AwaitStatement { .. } => true,
            Phase::Setback { retry, .. } => matches!(**retry, Retry::Submit(_)),
            _ => false,
        };
        if !attesting && self.held() == 0 {
            return false;
        }
        self.gathered = None;
        self.unsubmitted = None;
        if attesting {
            self.phase = Phase::Idle;
            let wait = self.jitter.upper_half(SETBACK_CAP);
            self.later(wait, LaterReason::Busy);
        }
        true
    }

    /// The operator has changed who is admitted: a refused enrolment is judged anew when it comes next.
    pub fn reconsider(&mut self) {
        self.refused = None;
    }

    /// Whether it holds nothing that would be missed: the shell may forget it.
    pub fn is_idle(&self) -> bool {
        let idle = match &self.phase {
            Phase::Idle | Phase::Greeting { .. } => true,
            Phase::AwaitProof(proving) => proving.repeat.next_at.is_none(),
            _ => false,
        };
        idle && self.timeout_at.is_none()
    }

    fn received(&mut self, message: Up, ticket: Option<OpenedTicket>, now: Time) {
        if let Some(asked_at) = self.phase.asked_at().filter(|_| is_an_answer(&message)) {
            let took = now.saturating_sub(asked_at).min(LONGEST_ANSWER);
            self.answers_take = took.max(self.answers_take * 3 / 4);
        }
        match message {
            Up::Enrol(enrol) => self.enrol(enrol, now),
            Up::Activation(activation) => self.activation(activation),
            Up::Ready(ready) => self.ready_received(ready, ticket, now),
            Up::Proof(proof) => self.proof(proof, now),
            Up::Evidence(evidence) => self.evidence(evidence, now),
            Up::Blob(blob) => self.blob(blob, now),
            Up::Statement(statement) => self.statement(statement),
            Up::NotYet(not_yet) => self.not_yet(not_yet, now),
            Up::Unchanged(unchanged) => self.unchanged(unchanged, now),
            Up::Hello(hello) => self.hello(&hello),
        }
    }

    /// Answers and changes nothing: the doctor's question is not the device's, which may be running beside it.
    fn hello(&mut self, hello: &Hello) {
        let question = Question::Heard(Heard { tag: hello.tag, told: self.told });
        self.outputs
            .push_back(Output::Send(Down { question, via: self.settings.via.clone() }, Delivery::Lean));
    }

    fn done(&mut self, done: Done, now: Time) {
        let Phase::Busy(step) = std::mem::take(&mut self.phase) else {
            return self.dropped("Done", "no command is under way");
        };
        match (step, done) {
            (Step::Registering(enrol), Done::Registered(registered)) => {
                self.registered(enrol, registered, now);
            }
            (Step::Activating(enrol, blob, activation), Done::Activated(activated)) => {
                self.activated((enrol, blob, activation), activated, now);
            }
            (Step::Withdrawing(enrol), Done::Withdrawn) => self.register(enrol, now),
            (Step::OpeningSession, Done::Session(session)) => self.session(session, now),
            (Step::Proving(proving), Done::Proven(proven)) => self.proven(proving, proven, now),
            (Step::CheckingBoot, Done::StatementChecked(good)) => self.boot_checked(good, now),
            (Step::Reading(reading), Done::Status(status)) => self.status(reading, status, now),
            (Step::Offering, Done::Offered(offered)) => self.offered(offered, now),
            (Step::FindingUefi(offer), Done::UefiFound(found)) => self.uefi_found(offer, found, now),
            (Step::Unpacking(gather), Done::Unpacked(unpacked)) => self.unpacked(gather, unpacked, now),
            (Step::Restoring(offer, evidence), Done::Restored(restoring)) => {
                self.restored(offer, &evidence, restoring, now);
            }
            (Step::CheckingStatement(offer, restored), Done::StatementChecked(good)) => {
                self.stated(offer, restored, good, now);
            }
            (Step::Submitting(unsubmitted), Done::Submitted(submitted)) => {
                self.submitted(unsubmitted, submitted, now);
            }
            (step, _) => {
                self.phase = Phase::Busy(step);
                self.dropped("Done", "it does not answer the command under way");
            }
        }
    }

    /// The next step towards an attestation: a token, a stated boot, a baseline, an offer.
    fn proceed(&mut self, now: Time) {
        let Some(facts) = self.facts.clone() else {
            self.phase = Phase::Idle;
            return;
        };
        let Some(token) = self.token.clone().filter(|_| self.trusts(facts.ak)) else {
            self.open_session(now);
            return;
        };
        if self.unsubmitted.as_ref().is_some_and(|unsubmitted| unsubmitted.offer.expires_at <= now)
            && let Some(late) = self.unsubmitted.take()
        {
            self.take_back(late);
        }
        if let Some(unsubmitted) = self.unsubmitted.take() {
            self.submit(unsubmitted, now);
        } else if !self.checked_boot.as_ref().is_some_and(|checked| checked.covers(&facts)) {
            self.check_boot(&facts);
        } else if self.baseline.is_none() {
            self.read_status(token, phase::Reading::Baseline);
        } else if self.oversleeps(&facts) {
            self.refuse(RefusedReason::Sleep);
        } else if let Some(at) = self.offered_at.map(|at| at + LEAST_BETWEEN_OFFERS).filter(|at| *at > now) {
            self.phase = Phase::Setback { retry_at: at, retry: Box::new(Retry::Proceed) };
        } else {
            self.offer(token, facts, now);
        }
    }

    fn phase_due(&mut self, now: Time) {
        match std::mem::take(&mut self.phase) {
            Phase::AwaitActivation { blob, repeat, enrol } => match repeat.again(self.longest_repeat()) {
                Some(repeat) => self.resend_credential(enrol, blob, repeat, now),
                None => self.phase = Phase::Idle,
            },
            Phase::AwaitProof(proving) => {
                match proving.repeat.again(self.longest_repeat()).filter(|_| proving.until > now) {
                    Some(repeat) => self.ask_for_proof(Proving { repeat, ..proving }, now),
                    // the session may still be proven, as long as its nonce is good
                    None if proving.until > now && !self.keeps_going() => {
                        let repeat = proving.repeat.spent();
                        self.phase = Phase::AwaitProof(Proving { repeat, ..proving });
                    }
                    None => self.phase = Phase::Idle,
                }
            }
            Phase::AwaitEvidence { offer, told, .. } if offer.expires_at <= now => {
                if told {
                    self.proceed(now);
                }
            }
            Phase::AwaitEvidence { offer, repeat, told } => self.ask_again(offer, repeat, told, now),
            Phase::AwaitStatement { offer, .. } if offer.expires_at <= now => self.gathered = None,
            Phase::AwaitStatement { offer, evidence, restored, repeat } => {
                self.ask_to_state_again(offer, evidence, restored, repeat, now);
            }
            Phase::Gather(gather) => self.ask_for_part_again(gather, now),
            Phase::Greeting { .. } => self.start_over(),
            Phase::Settling(settling) => self.read_outcome(settling),
            Phase::Resting { .. } => self.proceed(now),
            Phase::Doubting { .. } if self.keeps_going() => {
                self.facts = self.good.clone();
                self.proceed(now);
            }
            Phase::Doubting { .. } => self.phase = Phase::Idle,
            Phase::Held { .. } => self.check_hold(now),
            Phase::Setback { retry, .. } => self.retry(*retry, now),
            other @ (Phase::Idle | Phase::Busy(_)) => self.phase = other,
        }
    }

    /// Keylime did not answer: the same again after a while, longer each time. A waiting device is told.
    fn setback(&mut self, what: &'static str, retry: Retry, unavailable: Unavailable, now: Time) {
        // not less often than where nothing is wrong: Keylime bears that, and its return is noticed within an interval
        let cap = SETBACK_CAP.min(self.interval());
        let doubling = self.jitter.upper_half(doubled(SETBACK_FIRST, self.setbacks, cap));
        let wait = unavailable.retry_after.map_or(doubling, |after| after.max(doubling));
        self.setbacks += 1;
        self.notice(Notice::Setback { what, wait });
        if self.owes {
            self.later(wait, LaterReason::Keylime);
        }
        self.phase = Phase::Setback { retry_at: now + wait, retry: Box::new(retry) };
    }

    fn retry(&mut self, retry: Retry, now: Time) {
        match retry {
            Retry::Proceed => self.proceed(now),
            Retry::Activate(enrol, blob, activation) => self.activate(enrol, blob, activation),
            Retry::Submit(unsubmitted) => self.submit(unsubmitted, now),
            Retry::Outcome(settling) => self.read_outcome(settling),
        }
    }

    /// The verifier does not know the device: it waits for the operator.
    fn not_enrolled(&mut self) {
        self.token = None;
        self.trusted = None;
        self.forget_attestations();
        self.wait_for_operator(LaterReason::NotEnrolled);
    }

    /// What belonged to the verifier's record of the device, which is gone or new.
    fn forget_attestations(&mut self) {
        self.baseline = None;
        self.stood = None;
        self.good = None;
        self.passed_ima = None;
        self.held = None;
        self.gathered = None;
        self.timeout_at = None;
        self.offered_at = None;
        self.hold = 0;
    }

    fn trusts(&self, ak: AkName) -> bool {
        self.trusted.is_some_and(|trusted| trusted.is(ak))
    }

    fn interval(&self) -> Duration {
        self.interval.unwrap_or(ASSUMED_INTERVAL)
    }

    /// Keylime would report a TIMEOUT between any two of its attestations.
    fn oversleeps(&self, facts: &Facts) -> bool {
        let sleep = facts.stated.sleep.map(|seconds| Duration::from_secs(u64::from(seconds)));
        sleep.zip(self.interval).is_some_and(|(sleep, interval)| sleep > interval * TIMEOUT_INTERVALS)
    }

    /// As it has stated: what a `Ready` claims may be of anybody.
    fn sleeps(&self) -> bool {
        self.checked_boot.as_ref().is_some_and(|checked| checked.stated().sleep.is_some())
    }

    fn repeat(&self, now: Time) -> Repeat {
        Repeat::first(now, self.repeat_after(), self.settings.repeats)
    }

    /// A repeat that overtakes the answer costs both of them again on the link that is slow already. A link on which that takes
    /// longer than half the interval is none.
    fn repeat_after(&self) -> Duration {
        let slow = (self.answers_take * ANSWER_TIMES).min(self.interval() / 2);
        self.settings.repeat_after.max(slow)
    }

    /// Of a device that passed lately not even the repeats are further apart than its attestations.
    fn longest_repeat(&self) -> Duration {
        if self.keeps_going() { self.interval() } else { Duration::MAX }
    }

    fn command(&mut self, step: Step, command: Command) {
        self.phase = Phase::Busy(step);
        self.outputs.push_back(Output::Command(command));
    }
}

fn is_an_answer(message: &Up) -> bool {
    match message {
        Up::Activation(_) | Up::Proof(_) | Up::Evidence(_) | Up::Blob(_) | Up::Statement(_) => true,
        Up::Enrol(_) | Up::Ready(_) | Up::Unchanged(_) | Up::NotYet(_) | Up::Hello(_) => false,
    }
}

/// Whole seconds, rounded up, as messages carry them.
fn whole_seconds(duration: Duration) -> u32 {
    let rounded = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(rounded).unwrap_or(u32::MAX)
}
