//! A session: the verifier's proof of possession, the token it gives, and the statement of the boot.
//!
//! The AK that becomes trusted is the one named inside the certification that the verifier let pass, whatever the
//! device's `Ready` claimed.

use std::time::Duration;

use super::attestation::{SPOILED_CAP, SPOILED_FIRST};
use super::facts::{Facts, Token};
use super::phase::{Phase, Proving, Reading, Retry, Step};
use super::port::{Command, Proven, Session, StatedAt, Unavailable};
use super::trust::{CheckedBoot, TrustedAk};
use super::{Notice, Relay, SETBACK_CAP, SETBACK_FIRST, Time, doubled};
use crate::messages::{AkName, LaterReason, Proof, Prove, Question, RefusedReason};
use crate::statement::boot_statement;

/// Longest wait after a proof that cannot be used, until the verifier's interval is known: half of a short one.
const UNPROVEN_CAP: Duration = Duration::from_secs(5);

impl Relay {
    pub(super) fn open_session(&mut self, now: Time) {
        if std::mem::replace(&mut self.fresh_token, false) {
            // a token refused right after it was given will not be better for a new one at once
            self.token = None;
            self.setback("session", Retry::Proceed, Unavailable { retry_after: None }, now);
            return;
        }
        let Some(ak) = self.facts.as_ref().map(|facts| facts.ak) else {
            self.phase = Phase::Idle;
            return;
        };
        if self.use_ticket(ak) {
            return self.proceed(now);
        }
        if self.another.may_have_given_a_ticket() {
            return self.start_over();
        }
        let known = self.trusts(ak);
        self.command(Step::OpeningSession, Command::OpenSession { known });
    }

    /// Goes on with the token that another bridge, or this one in its last life, was given: never in place of a token there is,
    /// for the `Ready` with this ticket may be one of the past.
    pub(super) fn use_ticket(&mut self, ak: AkName) -> bool {
        if self.token.is_some() {
            return false;
        }
        let Some(ticket) = self.another.take_ticket().filter(|ticket| ticket.ak == ak) else { return false };
        self.trusted = Some(TrustedAk::of_ticket(&ticket));
        self.token = Some(ticket.token);
        true
    }

    pub(super) fn session(&mut self, session: Session, now: Time) {
        match session {
            Session::Opened { session, nonce, good_for } => {
                let repeat = self.repeat(now);
                self.ask_for_proof(Proving { session, nonce, until: now + good_for, repeat }, now);
            }
            Session::Wait(wait) => {
                // all that wait are told the same, so each stands back further until they are few enough
                let thinned = self.jitter.upper_half(doubled(SETBACK_FIRST, self.setbacks, SETBACK_CAP));
                self.setbacks += 1;
                let wait = wait.max(SETBACK_FIRST).max(thinned);
                self.notice(Notice::TurnedAway { wait });
                self.later(wait, LaterReason::Busy);
                self.phase = Phase::Idle;
            }
            Session::Unavailable(unavailable) => self.setback("session", Retry::Proceed, unavailable, now),
        }
    }

    pub(super) fn ask_for_proof(&mut self, proving: Proving, now: Time) {
        let repeat = proving.repeat.at(now);
        self.send(Question::Prove(Prove { nonce: proving.nonce }));
        self.phase = Phase::AwaitProof(Proving { repeat, ..proving });
    }

    /// The same question with new patience: the nonce is the device's whatever it says of its boot, and another session
    /// would be one more of the few that the verifier allows.
    pub(super) fn ask_for_proof_anew(&mut self, proving: Proving, now: Time) {
        let repeat = self.repeat(now);
        self.ask_for_proof(Proving { repeat, ..proving }, now);
    }

    pub(super) fn proof(&mut self, proof: Proof, now: Time) {
        let ak_public = self.facts.as_ref().map(|facts| facts.ak_public.clone());
        match (std::mem::take(&mut self.phase), ak_public) {
            (Phase::AwaitProof(proving), Some(ak_public))
                if proving.nonce.tag() == proof.tag && proving.until > now =>
            {
                let (session, nonce) = (proving.session.clone(), proving.nonce);
                let command = Command::Prove { session, proof: proof.signed, nonce, ak_public };
                self.command(Step::Proving(proving), command);
            }
            (other, _) => {
                self.phase = other;
                self.dropped("Proof", "no session nonce with this tag is open");
            }
        }
    }

    pub(super) fn proven(&mut self, proving: Proving, proven: Proven, now: Time) {
        match proven {
            Proven::Unbound(why) => self.unproven(proving, why, now),
            Proven::Token { token, certified, ticket } => {
                self.fresh_token = true;
                self.token = Some(token);
                self.trusted = Some(TrustedAk::certified(certified));
                self.ticket = ticket;
                if self.facts.as_ref().is_some_and(|facts| facts.ak == certified) {
                    self.proceed(now);
                } else {
                    // the Ready that led here claimed another AK than the one that was proven
                    self.fresh_token = false;
                    self.start_over();
                }
            }
            Proven::NotEnrolled => self.not_enrolled(),
            Proven::BadProof => {
                self.facts = None;
                self.refuse(RefusedReason::OtherAk);
            }
            Proven::SessionGone => {
                self.setback("proof", Retry::Proceed, Unavailable { retry_after: None }, now);
            }
            Proven::Unavailable(unavailable) => self.setback("proof", Retry::Proceed, unavailable, now),
        }
    }

    /// The session is as good as before. As it may be the `Ready` that was changed, the device is asked for another, which
    /// brings the question again; after a wait that grows as long as nothing is heard that fits.
    fn unproven(&mut self, proving: Proving, why: &'static str, now: Time) {
        self.dropped("Proof", why);
        self.spoiled += 1;
        // the verifier has no part in this, so no longer than half the interval: its end is noticed
        let longest = self.interval.map_or(UNPROVEN_CAP, |interval| SPOILED_CAP.min(interval / 2));
        let wait = doubled(SPOILED_FIRST, self.spoiled, longest);
        self.later(wait, LaterReason::Unusable);
        // asked before that, the device would wait anew
        let repeat = proving.repeat.postponed(now + wait + self.repeat_after());
        self.phase = Phase::AwaitProof(Proving { repeat, ..proving });
    }

    /// What the device said cannot be built on: it should say `Ready` again.
    pub(super) fn start_over(&mut self) {
        self.facts = None;
        self.phase = Phase::Idle;
        self.later(Duration::ZERO, LaterReason::Again);
    }

    pub(super) fn check_boot(&mut self, facts: &Facts) {
        let command = Command::CheckStatement {
            statement: facts.statement.clone(),
            expected: boot_statement(&self.id, &facts.stated),
            ak_public: facts.ak_public.clone(),
        };
        self.command(Step::CheckingBoot, command);
    }

    pub(super) fn boot_checked(&mut self, good: Option<StatedAt>, now: Time) {
        let Some(facts) = &mut self.facts else { return self.start_over() };
        let before = self.checked_boot.as_ref();
        if good.is_some_and(|at| before.is_some_and(|before| before.outdates(facts, at))) {
            self.dropped("Ready", "its statement is older than another of the same boot");
            self.facts = self.good.clone();
            return if self.facts.is_some() { self.proceed(now) } else { self.start_over() };
        }
        if let Some(at) = good {
            if before.is_none_or(|before| before.stated().boot != facts.stated.boot) {
                // lines of another boot's log, and a standing of before it: Keylime asks for the log from 0 where it has passed the
                // device meanwhile
                self.gathered = None;
                self.baseline = None;
                self.good = None;
                self.given = None;
            }
            self.checked_boot = Some(CheckedBoot::of(facts, at));
            return self.proceed(now);
        }
        if let Some(before) = before.filter(|before| before.stated() == facts.stated) {
            // the same was stated before, and that was good
            facts.statement = before.statement().clone();
            self.dropped("Ready", "the statement of the boot is another than before and does not verify");
            return self.proceed(now);
        }
        self.dropped("Ready", "the statement of the boot does not verify under the AK");
        self.facts = None;
        self.refuse(RefusedReason::Boot);
    }

    pub(super) fn read_status(&mut self, token: Token, reading: Reading) {
        self.command(Step::Reading(reading), Command::ReadStatus { token });
    }
}
