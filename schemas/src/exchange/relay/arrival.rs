//! A device speaks up, or shows up: what it says of its boot, and what it may have missed.

use super::facts::{Facts, OpenedTicket};
use super::phase::Phase;
use super::trust::CheckedBoot;
use super::{Relay, Time};
use crate::messages::{LaterReason, LogKind, Ready, Unchanged};

impl Relay {
    pub(super) fn ready_received(&mut self, ready: Ready, ticket: Option<OpenedTicket>, now: Time) {
        let Some(facts) = Facts::of(ready) else {
            self.dropped("Ready", "the AK is not a public area with a SHA-256 name");
            return;
        };
        let of_the_past = |checked: &CheckedBoot| facts.stated.boot_time < checked.stated().boot_time;
        if self.trusts(facts.ak) && self.checked_boot.as_ref().is_some_and(of_the_past) {
            self.dropped("Ready", "of an earlier boot than the one the device has stated");
            return;
        }
        let news =
            |ticket: &OpenedTicket| ticket.ak == facts.ak && self.token.as_ref() != Some(&ticket.token);
        self.another.ticket_shown(ticket.filter(news));
        self.use_ticket(facts.ak);
        self.plain = false;
        self.introduced(facts, now);
    }

    /// As in the last `Ready`, if that is still known here.
    pub(super) fn unchanged(&mut self, unchanged: Unchanged, now: Time) {
        if self.settings.via.is_some() {
            self.another.ticket_not_shown();
        }
        let known = self.pending.as_ref().or(self.facts.as_ref());
        match known.filter(|facts| facts.tag == unchanged.ready).cloned() {
            Some(facts) => self.introduced(Facts { ima_entries: unchanged.ima_entries, ..facts }, now),
            None if matches!(self.phase, Phase::Busy(_)) => {
                self.dropped("Unchanged", "of a Ready that is not known here");
            }
            None => self.start_over(),
        }
    }

    fn introduced(&mut self, facts: Facts, now: Time) {
        self.owes = true;
        if matches!(self.phase, Phase::Busy(_)) {
            self.pending = Some(facts);
        } else {
            self.ready(facts, now);
        }
    }

    /// A device speaks up. When the bridge has a question open, asks it again; else goes on from what is known.
    pub(super) fn ready(&mut self, facts: Facts, now: Time) {
        // its length is not signed, and within a boot no log gets shorter than the verifier was given it
        let of_this_boot =
            self.checked_boot.as_ref().is_some_and(|checked| checked.stated().boot == facts.stated.boot);
        let facts =
            Facts { ima_entries: facts.ima_entries.max(self.given.filter(|_| of_this_boot)), ..facts };
        let same =
            self.facts.as_ref().is_some_and(|known| known.ak == facts.ak && known.stated == facts.stated);
        self.facts = Some(facts);
        match std::mem::take(&mut self.phase) {
            Phase::AwaitEvidence { offer, repeat, .. } if same && repeat.sent_at == now => {
                self.phase = Phase::AwaitEvidence { offer, repeat, told: false };
            }
            Phase::AwaitEvidence { offer, .. } | Phase::AwaitStatement { offer, .. } if same => {
                // it has said how long its log is now
                self.gather_ima_or_ask(offer, now);
            }
            Phase::AwaitProof(proving) if proving.until > now && self.token.is_none() => {
                self.ask_for_proof_anew(proving, now);
            }
            // a device that is registered no more than this says that it is enrolled: it was told so by somebody else
            Phase::AwaitActivation { enrol, blob, .. } if self.claims_ak_of(&enrol) => {
                let repeat = self.repeat(now);
                self.resend_credential(enrol, blob, repeat, now);
            }
            // it has said how long its log is now: more than that nobody has sent
            Phase::Gather(gather) if same && gather.log == LogKind::Ima => {
                self.gather_ima_or_ask(gather.offer, now);
            }
            Phase::Gather(gather) if same => self.ask_for_part(gather, now),
            // left to another bridge, which does not answer the device any more
            Phase::Resting { .. } if self.another.is_doubted() => self.proceed(now),
            Phase::Resting { due } if same && due > now => {
                self.accepted(due.saturating_sub(now));
                self.phase = Phase::Resting { due };
            }
            // the outcome is the answer, and it is not known yet
            Phase::Settling(settling) if same => self.phase = Phase::Settling(settling),
            Phase::Held { check_at } if same && check_at > now => {
                self.later(check_at.saturating_sub(now), LaterReason::Rebooted);
                self.phase = Phase::Held { check_at };
            }
            Phase::Setback { retry_at, retry } if same && retry_at > now => {
                self.later(retry_at.saturating_sub(now), LaterReason::Keylime);
                self.phase = Phase::Setback { retry_at, retry };
            }
            _ => self.proceed(now),
        }
    }

    /// The device shows up on its topic: what it may have missed is said again.
    pub(super) fn present(&mut self, now: Time) {
        match std::mem::take(&mut self.phase) {
            Phase::AwaitEvidence { offer, repeat, .. } if repeat.sent_at != now => self.ask(offer, now),
            Phase::AwaitProof(proving) if proving.repeat.sent_at != now && proving.until > now => {
                self.ask_for_proof_anew(proving, now);
            }
            Phase::AwaitActivation { enrol, blob, repeat } if repeat.sent_at != now => {
                self.resend_credential(enrol, blob, repeat, now);
            }
            Phase::Gather(gather) => self.ask_for_part(gather, now),
            Phase::Idle if self.facts.is_none() => {
                let at = now + self.jitter.upper_half(self.settings.spread);
                self.phase = Phase::Greeting { at };
            }
            other => self.phase = other,
        }
    }
}
