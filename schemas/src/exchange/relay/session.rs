//! A session: the verifier's proof of possession, the token it gives, and the statement of the boot.
//!
//! The AK that becomes trusted is the one named inside the certification that the verifier let pass, whatever the
//! device's `Ready` claimed.

use std::time::Duration;

use super::phase::{Phase, Reading, Repeat, Retry, Step};
use super::port::{Command, Facts, Proven, Session, Token, Unavailable};
use super::{Notice, Relay, SETBACK_CAP, SETBACK_FIRST, Time, doubled};
use crate::messages::{LaterReason, Nonce, Proof, Prove, Question, RefusedReason};
use crate::statement::boot_statement;

impl Relay {
    pub(super) fn open_session(&mut self, now: Time) {
        if std::mem::replace(&mut self.fresh_token, false) {
            // a token refused right after it was given will not be better for a new one at once
            self.token = None;
            self.setback("session", Retry::Proceed, Unavailable { retry_after: None }, now);
            return;
        }
        let known = self.trusted.is_some() && self.trusted == self.facts.as_ref().map(|facts| facts.ak);
        self.command(Step::OpeningSession, Command::OpenSession { known });
    }

    pub(super) fn session(&mut self, session: Session, now: Time) {
        match session {
            Session::Opened { session, nonce, good_for } => {
                self.ask_for_proof(session, nonce, now + good_for, now);
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

    pub(super) fn ask_for_proof(&mut self, session: String, nonce: Nonce, until: Time, now: Time) {
        let repeat = self.repeat(now);
        self.ask_for_proof_again(session, nonce, until, repeat, now);
    }

    pub(super) fn ask_for_proof_again(
        &mut self,
        session: String,
        nonce: Nonce,
        until: Time,
        repeat: Repeat,
        now: Time,
    ) {
        self.phase = Phase::AwaitProof { session, nonce, until, repeat: repeat.at(now) };
        self.send(Question::Prove(Prove { nonce }));
    }

    pub(super) fn proof(&mut self, proof: Proof, now: Time) {
        match std::mem::take(&mut self.phase) {
            Phase::AwaitProof { session, nonce, until, .. } if nonce.tag() == proof.tag && until > now => {
                self.command(Step::Proving, Command::Prove { session, proof: proof.signed });
            }
            other => {
                self.phase = other;
                self.dropped("Proof", "no session nonce with this tag is open");
            }
        }
    }

    pub(super) fn proven(&mut self, proven: Proven, now: Time) {
        match proven {
            Proven::Token { token, certified, ticket } => {
                self.fresh_token = true;
                self.token = Some(token);
                self.trusted = Some(certified);
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

    /// What the device said cannot be built on: it should say `Ready` again.
    pub(super) fn start_over(&mut self) {
        self.facts = None;
        self.phase = Phase::Idle;
        self.later(Duration::ZERO, LaterReason::Again);
    }

    pub(super) fn check_boot(&mut self, facts: &Facts) {
        let command = Command::CheckStatement {
            statement: facts.statement.clone(),
            expected: boot_statement(&self.id, &facts.boot, facts.boot_time, facts.uefi.as_ref()),
            ak_public: facts.ak_public.clone(),
        };
        self.command(Step::CheckingBoot, command);
    }

    pub(super) fn boot_checked(&mut self, good: bool, now: Time) {
        match self.facts.as_ref().map(Facts::boot_stated) {
            Some(boot) if good => {
                self.stated_boot = Some(boot);
                self.proceed(now);
            }
            _ => {
                self.dropped("Ready", "the statement of the boot does not verify under the AK");
                self.facts = None;
                self.refuse(RefusedReason::Boot);
            }
        }
    }

    pub(super) fn read_status(&mut self, token: Token, reading: Reading) {
        self.command(Step::Reading(reading), Command::ReadStatus { token });
    }
}
