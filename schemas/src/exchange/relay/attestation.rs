//! One attestation: offer, challenge, evidence, statement where a log needs one, submission.

use std::sync::Arc;
use std::time::Duration;

use super::facts::{Facts, Token};
use super::gather::lines;
use super::offer::{ImaState, Offer, Restored};
use super::phase::{Phase, Repeat, Retry, Step};
use super::port::{Command, Offered, Restore, Restoring, StatedAt, Unavailable};
use super::unpack::ImaParts;
use super::{Delivery, Form, Notice, Relay, Time, doubled, whole_seconds};
use crate::codec;
use crate::messages::{
    Challenge, Digest, Evidence, IMA_PCR, LaterReason, NotYet, NotYetReason, PcrMask, PcrValues, Question,
    Quote, RefusedReason, State, Statement, Up, Verdict,
};
use crate::statement::{StatedLines, evidence_statement};

/// Two requests for one device met at the verifier; it is free again at once.
const CONFLICT_WAIT: Duration = Duration::from_secs(1);
/// When the verifier says that it is too early and not for how long.
const LEAST_EARLY: Duration = Duration::from_secs(1);
/// First wait after an answer that cannot be used; doubles.
pub(super) const SPOILED_FIRST: Duration = Duration::from_secs(1);
/// Evidence that cannot be used is asked for again at least this often.
pub(super) const SPOILED_CAP: Duration = Duration::from_secs(60);
/// A device hearing nothing for less than this has no reason to worry.
const LEAST_SILENCE: Duration = Duration::from_secs(30);
/// What a device may ask to wait before it answers.
const LONGEST_NOT_YET: Duration = Duration::from_secs(600);
/// Up to this it is believed even where the interval is shorter.
const LEAST_NOT_YET: Duration = Duration::from_secs(10);

impl Relay {
    pub(super) fn offer(&mut self, token: Token, facts: Facts, now: Time) {
        self.another.asked_for_an_offer(self.interval(), now);
        self.command(Step::Offering, Command::Offer { token, facts: Box::new(facts) });
    }

    pub(super) fn offered(&mut self, offered: Offered, now: Time) {
        match offered {
            Offered::Opened(offer) => {
                self.setbacks = 0;
                self.waits = 0;
                self.fresh_token = false;
                self.offered_at = Some(now);
                self.opened(offer, now);
            }
            // the verifier keeps this one, too
            Offered::NothingRequested => {
                self.offered_at = Some(now);
                self.wait_for_operator(LaterReason::NoPolicy);
            }
            Offered::TokenRejected => {
                self.token = None;
                self.proceed(now);
            }
            Offered::NotEnrolled => self.not_enrolled(),
            Offered::Early(wait) => {
                let wait = wait.max(LEAST_EARLY);
                // what was read may be of before the last success: good enough to tell the device, until it is read anew
                self.stood = self.baseline.take().or(self.stood);
                if self.owes {
                    self.accepted(wait);
                }
                if self.another.has_attested() {
                    self.yield_to_another(wait, now);
                } else {
                    self.phase = Phase::Resting { due: now + wait };
                }
            }
            Offered::Conflict => {
                let unavailable = Unavailable { retry_after: Some(CONFLICT_WAIT) };
                self.setback("attestation", Retry::Proceed, unavailable, now);
            }
            Offered::Invalid(detail) => {
                self.offered_at = Some(now);
                self.notice(Notice::Invalid { what: "capabilities", detail });
                // the length of the log is not signed: it may be another than the device said
                if self.good.is_some() && self.facts != self.good {
                    self.facts = self.good.clone();
                    self.proceed(now);
                } else {
                    self.refuse(RefusedReason::Offer);
                }
            }
            Offered::Unavailable(unavailable) => {
                self.setback("attestation", Retry::Proceed, unavailable, now);
            }
        }
    }

    /// The verifier waits for evidence. First the hold of a reboot, then the logs that are not here, then the quote.
    fn opened(&mut self, offer: Offer, now: Time) {
        // Keylime asks for the IMA log from 0 although it has passed this device before: another boot, or added anew
        let rebooted =
            offer.ima_offset() == Some(0) && self.baseline.is_some_and(|known| known.attestation_count > 0);
        if rebooted && self.settings.hold_after_reboot {
            self.check_hold(now);
        } else if offer.wants_uefi() {
            match self.facts.as_ref().and_then(|facts| facts.stated.uefi) {
                Some(log) => self.command(Step::FindingUefi(offer), Command::FindUefi(log.digest)),
                None => self.refuse(RefusedReason::Offer),
            }
        } else {
            self.gather_ima_or_ask(offer, now);
        }
    }

    pub(super) fn ask(&mut self, offer: Offer, now: Time) {
        let repeat = self.repeat(now);
        self.challenge(offer, repeat, now);
    }

    pub(super) fn ask_again(&mut self, offer: Offer, repeat: Repeat, told: bool, now: Time) {
        match repeat.again(self.longest_repeat()) {
            Some(repeat) => self.challenge(offer, repeat, now),
            None if self.keeps_going() => self.gather_ima_or_ask(offer, now),
            None => self.phase = Phase::AwaitEvidence { offer, repeat: repeat.spent(), told },
        }
    }

    fn challenge(&mut self, offer: Offer, repeat: Repeat, now: Time) {
        let Some(boot) = self.facts.as_ref().map(|facts| facts.stated.boot.tag()) else {
            self.start_over();
            return;
        };
        let first = !matches!(&self.asked, Some(asked) if *asked == offer.nonce);
        self.asked = Some(offer.nonce);
        let repeats = u32::from(self.settings.repeats) + 1;
        let silence = (self.interval() + self.settings.repeat_after * repeats) * 2;
        let question = Challenge {
            nonce: offer.nonce,
            boot,
            pcrs: offer.pcrs,
            good_for: whole_seconds(offer.expires_at.saturating_sub(now)),
            silence: whole_seconds(silence.max(LEAST_SILENCE)),
            ima_offset: offer.ima_offset().map(|from| self.ima_next(from)),
            held: self.held_for(&offer).map(|held| held.tag()),
            ticket: self.ticket.clone(),
            full: self.form == Form::Full,
            reference: offer.ima_offset().is_some() && self.reference().is_some(),
        };
        self.phase = Phase::AwaitEvidence { offer, repeat: repeat.at(now), told: false };
        let delivery = if first { Delivery::Lean } else { Delivery::Assured };
        self.deliver(Question::Challenge(question), delivery);
    }

    /// The values held of the PCRs asked for. PCR 10 goes its own way where IMA lines lead to it.
    fn held_for(&self, offer: &Offer) -> Option<PcrValues> {
        let mask = values_wanted(offer);
        let held = self.held.as_ref().filter(|held| held.mask().covers(mask))?;
        Some(held.only(mask))
    }

    /// The line from which the device has to send, given the line the verifier named.
    fn ima_next(&self, from: u64) -> u64 {
        self.gathered.as_ref().filter(|gathered| gathered.from == from).map_or(from, |gathered| gathered.next)
    }

    pub(super) fn evidence(&mut self, evidence: Evidence, now: Time) {
        match std::mem::take(&mut self.phase) {
            Phase::AwaitEvidence { offer, repeat, told } if offer.nonce.tag() == evidence.tag => {
                match self.what_does_not_fit(&offer, &evidence) {
                    None => self.restore(offer, evidence, now),
                    Some(why) => {
                        self.dropped("Evidence", why);
                        self.phase = Phase::AwaitEvidence { offer, repeat, told };
                    }
                }
            }
            Phase::Idle | Phase::Greeting { .. } if self.facts.is_none() => {
                self.dropped("Evidence", "for a nonce that this bridge does not remember");
                self.start_over();
            }
            other => {
                self.phase = other;
                self.dropped("Evidence", "for a nonce that is not open");
            }
        }
    }

    /// What of the answer does not answer the question, before anything is computed.
    fn what_does_not_fit(&self, offer: &Offer, evidence: &Evidence) -> Option<&'static str> {
        let wanted = offer.ima_offset().map(|from| self.ima_next(from));
        let sent = evidence.pcrs.as_ref().map(PcrValues::mask).unwrap_or_default();
        if !offer.pcrs.covers(sent) {
            Some("values of PCRs that were not asked for")
        } else if evidence.ima.as_ref().is_some_and(|ima| Some(ima.offset) != wanted) {
            Some("IMA lines from another offset than was asked for")
        } else {
            None
        }
    }

    fn restore(&mut self, offer: Offer, evidence: Evidence, now: Time) {
        let (Some(facts), Some(checked)) = (&self.facts, &self.checked_boot) else {
            return self.start_over();
        };
        let sent = evidence.pcrs.clone().unwrap_or_default();
        let known = match evidence.quote {
            Quote::Full(_) => sent,
            Quote::Brief(_) => self.held_for(&offer).unwrap_or_default().overlaid(&sent),
        };
        if !known.mask().covers(values_wanted(&offer)) {
            return self.refuted(offer, now);
        }
        let ima = offer.ima_offset().map(|from| {
            let gathered = self.gathered.as_ref().filter(|gathered| gathered.from == from);
            let segment = evidence.ima.as_ref().map(|segment| segment.packed.as_slice());
            ImaParts {
                offset: from,
                gathered: gathered.map(|gathered| Arc::clone(&gathered.lines)).unwrap_or_default(),
                packed: segment.unwrap_or_default().to_vec(),
                reference: self.reference(),
                state: self.passed_ima.filter(|state| state.entries == from),
                sha256: facts.stated.ima_sha256,
            }
        });
        let restore = Restore {
            quote: evidence.quote.clone(),
            boot_statement: checked.statement().clone(),
            ak_public: facts.ak_public.clone(),
            pcrs: known,
            ima,
            uefi: facts.stated.uefi.filter(|_| offer.wants_uefi()).map(|log| log.digest),
            offer: offer.clone(),
        };
        self.ticket = None;
        self.command(Step::Restoring(offer, Box::new(evidence)), Command::Restore(Box::new(restore)));
    }

    pub(super) fn restored(&mut self, offer: Offer, evidence: &Evidence, restoring: Restoring, now: Time) {
        match restoring {
            Restoring::Explained { restored, pcrs, ima } => {
                self.held = Some(pcrs);
                self.form = Form::Brief;
                self.bound(offer, restored, ima, now);
            }
            Restoring::Unexplained { restored, pcrs, what } => {
                self.held = Some(pcrs);
                self.form = Form::Brief;
                self.notice(Notice::Unexplained { what });
                self.ask_to_state(offer, evidence, restored, now);
            }
            Restoring::Refuted => self.refuted(offer, now),
            Restoring::OtherBoot => {
                self.dropped("Evidence", "a quote of another boot than the one stated");
                self.start_over();
            }
            Restoring::Unbound(why) => self.spoiled(offer, "Evidence", why, now),
            Restoring::Unreadable(why) => {
                // perhaps the two references differ after all
                self.plain = true;
                self.spoiled(offer, "Evidence", why, now);
            }
        }
    }

    /// What the device left out is not what the bridge put in its place: the same question, to be answered in full.
    fn refuted(&mut self, offer: Offer, now: Time) {
        if self.form == Form::Full {
            return self.spoiled(offer, "Evidence", "not in full although asked for so", now);
        }
        self.dropped("Evidence", "the brief form does not verify; asked for the full one");
        self.held = None;
        self.form = Form::Full;
        self.gather_ima_or_ask(offer, now);
    }

    /// Evidence that is not bound: once more for the same nonce, for it may have been changed on the way; then anew.
    fn spoiled(&mut self, offer: Offer, kind: &'static str, why: &'static str, now: Time) {
        self.dropped(kind, why);
        self.spoiled += 1;
        self.held = None;
        self.form = Form::Full;
        if self.spoiled % 2 == 1 {
            self.gather_ima_or_ask(offer, now);
        } else {
            self.anew_later();
        }
    }

    /// Anew after a while, longer each time: every try costs the device a message and the verifier a record.
    pub(super) fn anew_later(&mut self) {
        let wait = doubled(SPOILED_FIRST, self.spoiled / 2, SPOILED_CAP);
        self.phase = Phase::Idle;
        self.later(wait, LaterReason::Unusable);
    }

    fn ask_to_state(&mut self, offer: Offer, evidence: &Evidence, restored: Arc<Restored>, now: Time) {
        let encoded = codec::encode(&Up::Evidence(evidence.clone()));
        let (Ok(encoded), Some(facts)) = (encoded, &self.facts) else { return self.start_over() };
        let digest = Digest::of(&[restored.lines()]);
        let ima = offer.ima_offset().map(|from| StatedLines { from, digest });
        let evidence = Digest::of(&[&encoded]);
        let expected =
            evidence_statement(&self.id, &offer.nonce, &facts.stated.boot, &evidence, ima.as_ref());
        let repeat = self.repeat(now);
        self.send_state(offer, expected, restored, repeat);
    }

    pub(super) fn ask_to_state_again(
        &mut self,
        offer: Offer,
        evidence: Digest,
        restored: Arc<Restored>,
        repeat: Repeat,
        now: Time,
    ) {
        match repeat.again(self.longest_repeat()) {
            Some(repeat) => self.send_state(offer, evidence, restored, repeat.at(now)),
            // it may not keep that evidence any more
            None if self.keeps_going() => self.gather_ima_or_ask(offer, now),
            None => self.phase = Phase::AwaitStatement { offer, evidence, restored, repeat: repeat.spent() },
        }
    }

    fn send_state(&mut self, offer: Offer, evidence: Digest, restored: Arc<Restored>, repeat: Repeat) {
        self.send(Question::State(State { tag: offer.nonce.tag(), ima_from: offer.ima_offset() }));
        self.phase = Phase::AwaitStatement { offer, evidence, restored, repeat };
    }

    pub(super) fn statement(&mut self, statement: Statement) {
        let ak_public = self.facts.as_ref().map(|facts| facts.ak_public.clone());
        match (std::mem::take(&mut self.phase), ak_public) {
            (Phase::AwaitStatement { offer, evidence, restored, .. }, Some(ak_public))
                if offer.nonce.tag() == statement.tag =>
            {
                let command =
                    Command::CheckStatement { statement: statement.signed, expected: evidence, ak_public };
                self.command(Step::CheckingStatement(offer, restored), command);
            }
            (other, _) => {
                self.phase = other;
                self.dropped("Statement", "no statement for this nonce is open");
            }
        }
    }

    /// The device itself said so: Keylime shall judge. Otherwise it was changed on the way.
    pub(super) fn stated(
        &mut self,
        offer: Offer,
        restored: Arc<Restored>,
        good: Option<StatedAt>,
        now: Time,
    ) {
        if good.is_some() {
            // where its lines lead is known once Keylime has followed them to a PASS
            let lines = lines(restored.lines());
            let pcr10 = self.held.as_ref().and_then(|held| held.value(IMA_PCR)).copied();
            let ima = offer
                .ima_offset()
                .zip(pcr10)
                .map(|(from, pcr10)| ImaState { entries: from + lines, pcr10: Digest::from(pcr10) });
            self.bound(offer, restored, ima, now);
        } else {
            // what was gathered before the quote may be what was changed
            self.gathered = None;
            self.spoiled(offer, "Statement", "it does not verify under the AK", now);
        }
    }

    pub(super) fn not_yet(&mut self, not_yet: NotYet, now: Time) {
        // no longer than an interval: it is not signed
        let longest = LONGEST_NOT_YET.min(self.interval().max(LEAST_NOT_YET));
        let wait = Duration::from_secs(u64::from(not_yet.seconds)).clamp(CONFLICT_WAIT, longest);
        // with the patience of a first question, however often it was put off before
        let postponed = self.repeat(now).postponed(now + wait);
        match &mut self.phase {
            Phase::AwaitEvidence { offer, repeat, told } if offer.nonce.tag() == not_yet.tag => {
                *repeat = postponed;
                *told = true;
                if not_yet.reason == NotYetReason::Log && offer.ima_offset().is_some() {
                    // the log may have grown beyond what one message carries: its length comes with a Ready, before the next challenge
                    let soon = wait.min(longest / 2);
                    *repeat = postponed.postponed(now + soon * 2);
                    self.later(soon, LaterReason::Again);
                }
            }
            Phase::AwaitStatement { offer, repeat, .. } if offer.nonce.tag() == not_yet.tag => {
                *repeat = postponed;
            }
            Phase::AwaitProof(proving) if proving.nonce.tag() == not_yet.tag => proving.repeat = postponed,
            _ => return self.dropped("NotYet", "no question with this tag is open"),
        }
        self.report(Verdict::Unknown, Some(not_yet.reason.to_string()));
    }
}

/// PCRs whose values must be known before lines are followed.
fn values_wanted(offer: &Offer) -> PcrMask {
    if offer.ima_offset().is_some() { offer.pcrs.without(IMA_PCR) } else { offer.pcrs }
}
