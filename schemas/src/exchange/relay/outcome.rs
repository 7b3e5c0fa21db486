//! After the submission: the verdict, the next time, and the hold of a rebooted device.
//!
//! Keylime answers 202 before it has judged. PASS is reported only once its count or its last success has advanced.

use std::time::Duration;

use super::facts::Facts;
use super::phase::{Phase, Reading, Retry, Settling, Unsubmitted};
use super::port::{Standing, Status};
use super::{Delivery, GOOD_INTERVALS, Relay, Report, TIMEOUT_INTERVALS, Time, doubled, whole_seconds};
use crate::messages::{Accepted, Digest, LaterReason, Outcome, Question, Told, Verdict};

/// Keylime judges on the connection that brought the evidence, most often within 0.2 s: each look before that is a request for nothing.
const FIRST_READ: Duration = Duration::from_millis(200);
/// A large policy takes a second or two.
const SLOWEST_READ: Duration = Duration::from_secs(2);
/// After that the verdict is left open until the next attestation.
const LONGEST_SETTLING: Duration = Duration::from_secs(20);
/// Once the next attestation is due, an answer without the verdict means most likely that the verifier was restarted in the
/// middle of judging: it will never come. But a large policy has its time.
const LEAST_SETTLING: Duration = Duration::from_secs(5);
/// A FAIL that stood before may be the old one: wait for the evidence to be judged, this long.
const OLD_FAIL: Duration = Duration::from_secs(1);
/// When an outcome is awaited while the device becomes overdue.
const OVERDUE_AGAIN: Duration = Duration::from_secs(1);
/// A verifier that goes on saying PASS of an overdue device is believed for so many intervals.
const OVERDUE_READS: u32 = 5;
/// First wait of a device held after a reboot; doubles.
const HOLD_FIRST: Duration = Duration::from_secs(5);

impl Relay {
    pub(super) fn settle(&mut self, unsubmitted: Unsubmitted, now: Time) {
        self.gathered = None;
        let Unsubmitted { offer, ima, before, .. } = unsubmitted;
        let (submitted_at, next_at) = (now, now + FIRST_READ);
        self.phase = Phase::Settling(Settling { offer, ima, before, submitted_at, next_at, reads: 0 });
    }

    pub(super) fn read_outcome(&mut self, settling: Settling) {
        match self.token.clone() {
            Some(token) => self.read_status(token, Reading::Outcome(settling)),
            None => self.unread(&settling),
        }
    }

    pub(super) fn status(&mut self, reading: Reading, status: Status, now: Time) {
        match (status, reading) {
            (Status::Standing(standing), Reading::Baseline) => {
                self.setbacks = 0;
                self.interval = standing.interval.or(self.interval);
                self.baseline = Some(standing);
                self.proceed(now);
            }
            (Status::Standing(standing), Reading::Outcome(settling)) => self.judged(standing, settling, now),
            (Status::Standing(standing), Reading::Hold) => {
                if self.baseline.is_some_and(|before| standing.attestation_count < before.attestation_count) {
                    self.forget_attestations();
                    self.baseline = Some(standing);
                    self.proceed(now);
                } else {
                    self.hold(now);
                }
            }
            (status, Reading::Overdue(phase)) => {
                self.phase = *phase;
                self.found_overdue(status, now);
            }
            (Status::TokenRejected, Reading::Outcome(settling)) => {
                self.token = None;
                self.unread(&settling);
            }
            (Status::TokenRejected, Reading::Baseline | Reading::Hold) => {
                self.token = None;
                self.proceed(now);
            }
            (Status::Gone, _) => self.not_enrolled(),
            (Status::Unavailable(unavailable), Reading::Outcome(settling)) => {
                self.setback("status", Retry::Outcome(settling), unavailable, now);
            }
            (Status::Unavailable(unavailable), Reading::Baseline | Reading::Hold) => {
                self.setback("status", Retry::Proceed, unavailable, now);
            }
        }
    }

    /// The verdict stays unread; the standing is read anew before the next attestation, see [`Self::bound`].
    fn unread(&mut self, settling: &Settling) {
        self.rest(settling.submitted_at, Outcome::Unknown);
    }

    fn judged(&mut self, standing: Standing, settling: Settling, now: Time) {
        // without it a success of before could be taken for this one's
        let Some(before) = settling.before else { return self.unread(&settling) };
        let waited = now.saturating_sub(settling.submitted_at);
        let advanced = standing.is_beyond(before);
        let outcome = match standing.verdict {
            Verdict::Fail if before.verdict != Verdict::Fail || waited >= OLD_FAIL => Some(Outcome::Fail),
            Verdict::Fail => None,
            _ if advanced => Some(Outcome::Pass),
            _ if waited >= self.interval().clamp(LEAST_SETTLING, LONGEST_SETTLING) => Some(Outcome::Unknown),
            _ => None,
        };
        match outcome {
            None => {
                let wait = doubled(FIRST_READ, settling.reads, SLOWEST_READ);
                let settling = Settling { next_at: now + wait, reads: settling.reads + 1, ..settling };
                self.phase = Phase::Settling(settling);
            }
            Some(outcome) => {
                // judged later, it must not be taken for the next one's, and a FAIL of before may still stand: the standing is read anew
                let settled = match outcome {
                    Outcome::Pass => true,
                    Outcome::Fail => before.verdict != Verdict::Fail,
                    Outcome::Unknown => false,
                };
                self.baseline = Some(standing).filter(|_| settled);
                self.concluded(outcome, standing, &settling, now);
            }
        }
    }

    fn concluded(&mut self, outcome: Outcome, standing: Standing, settling: &Settling, now: Time) {
        let (verdict, reason) = match outcome {
            Outcome::Pass => (Verdict::Pass, None),
            Outcome::Fail => (
                Verdict::Fail,
                Some("Keylime failed the device; see the verifier's log, then keylime_tenant -c update"),
            ),
            Outcome::Unknown => {
                (Verdict::Pending, Some("Keylime took the evidence and has not judged it yet"))
            }
        };
        let valid_for = self.interval() * TIMEOUT_INTERVALS;
        if outcome == Outcome::Pass {
            self.fails = 0;
            self.hold = 0;
            self.overdue_reads = 0;
            let judged = |facts: Facts| Facts { ima_entries: self.given.or(facts.ima_entries), ..facts };
            self.good = self.facts.clone().map(judged);
            self.good_until = now + self.interval() * GOOD_INTERVALS;
            self.passed_ima = settling.ima;
            self.timeout_at = Some(now + valid_for);
        } else {
            self.fails += u32::from(outcome == Outcome::Fail);
            self.good = self.good.take().filter(|_| outcome != Outcome::Fail);
            self.passed_ima = None;
            self.timeout_at = None;
        }
        self.outputs.push_back(super::Output::Report(Report {
            verdict,
            reason: reason.map(str::to_owned),
            nonce: Some(Digest::of(&[settling.offer.nonce.as_bytes()])),
            attestation_count: Some(standing.attestation_count),
            valid_for,
        }));
        self.told = Some(Told::Attested(outcome));
        self.rest(settling.submitted_at, outcome);
    }

    /// Five intervals without a success from here. Another bridge may have attested the device meanwhile, so nothing is said of
    /// it before Keylime was asked.
    pub(super) fn overdue(&mut self, now: Time) {
        match (std::mem::take(&mut self.phase), self.token.clone()) {
            // the outcome of evidence from here is on its way
            (phase @ (Phase::Busy(_) | Phase::Settling(_)), _) => {
                self.phase = phase;
                self.timeout_at = Some(now + OVERDUE_AGAIN);
            }
            (phase, Some(token)) if !phase.has_submitted() => {
                self.timeout_at = None;
                self.read_status(token, Reading::Overdue(Box::new(phase)));
            }
            (phase, _) => {
                self.phase = phase;
                self.timed_out();
            }
        }
    }

    fn found_overdue(&mut self, status: Status, now: Time) {
        match status {
            Status::Standing(standing) if self.baseline.is_some_and(|before| standing.is_beyond(before)) => {
                if self.another.may_be_this_one(self.interval() * TIMEOUT_INTERVALS, now) {
                    self.baseline = Some(standing);
                    self.timeout_at = Some(now + self.interval() * TIMEOUT_INTERVALS);
                } else {
                    self.yield_to_another(Duration::ZERO, now);
                }
            }
            // it has seen a success that was not read here, or will say so itself
            Status::Standing(standing)
                if standing.verdict == Verdict::Pass && self.overdue_reads < OVERDUE_READS =>
            {
                self.overdue_reads += 1;
                self.timeout_at = Some(now + self.interval());
            }
            Status::Gone => self.not_enrolled(),
            Status::Standing(_) | Status::TokenRejected | Status::Unavailable(_) => self.timed_out(),
        }
    }

    fn timed_out(&mut self) {
        self.timeout_at = None;
        self.report(Verdict::Timeout, Some("no attestation within five intervals".to_owned()));
    }

    /// Until the next attestation. Failing devices come less often.
    fn rest(&mut self, submitted_at: Time, outcome: Outcome) {
        let interval = self.interval();
        let wait = match outcome {
            Outcome::Fail => {
                doubled(interval, self.fails.saturating_sub(1), self.settings.failing_cap.max(interval))
            }
            Outcome::Pass | Outcome::Unknown => interval,
        };
        if self.sleeps() || self.owes {
            let accepted = Accepted { seconds: whole_seconds(wait), outcome };
            self.deliver(Question::Accepted(accepted), Delivery::Lean);
        }
        self.phase = Phase::Resting { due: submitted_at + wait };
    }

    /// Tells a device that it has nothing to do for a while.
    pub(super) fn accepted(&mut self, wait: Duration) {
        let outcome = match self.baseline.or(self.stood).map(|standing| standing.verdict) {
            Some(Verdict::Pass) => Outcome::Pass,
            Some(Verdict::Fail) => Outcome::Fail,
            _ => Outcome::Unknown,
        };
        self.send(Question::Accepted(Accepted { seconds: whole_seconds(wait), outcome }));
    }

    /// With an IMA policy Keylime fails every device for good after a reboot, unless it is added again first.
    pub(super) fn hold(&mut self, now: Time) {
        // as often as a device that fails: each look may cost a session of the verifier's budget
        let cap = self.settings.failing_cap.max(self.interval());
        let wait = doubled(HOLD_FIRST, self.hold, cap);
        // that it is held says more than that it has not attested
        self.timeout_at = None;
        self.good = None;
        if self.hold == 0 || self.owes {
            let failed = self.baseline.is_some_and(|standing| standing.verdict == Verdict::Fail);
            let verdict = if failed { Verdict::Fail } else { Verdict::Unknown };
            self.report(verdict, Some(LaterReason::Rebooted.to_string()));
            self.later(wait, LaterReason::Rebooted);
        }
        self.hold += 1;
        self.phase = Phase::Held { check_at: now + wait };
    }

    /// The verifier's count starts anew when the device is added again.
    pub(super) fn check_hold(&mut self, now: Time) {
        match self.token.clone() {
            Some(token) => self.read_status(token, Reading::Hold),
            None => self.proceed(now),
        }
    }
}
