//! Evidence that is bound goes to the verifier: to the index of its own offer, and until it is taken or of no more use.

use std::sync::Arc;
use std::time::Duration;

use super::gather::lines;
use super::phase::{Gathered, Retry, Step, Unsubmitted};
use super::port::{Command, Submitted, Unavailable};
use super::{Notice, Relay, Time};

impl Relay {
    pub(super) fn submit(&mut self, unsubmitted: Unsubmitted, now: Time) {
        // its lines are in what was restored
        self.gathered = None;
        let Some(token) = self.token.clone() else {
            self.unsubmitted = Some(unsubmitted);
            self.proceed(now);
            return;
        };
        let (offer, restored) = (unsubmitted.offer.clone(), Arc::clone(&unsubmitted.restored));
        self.command(Step::Submitting(unsubmitted), Command::Submit { token, offer, restored });
    }

    pub(super) fn submitted(&mut self, unsubmitted: Unsubmitted, submitted: Submitted, now: Time) {
        match submitted {
            Submitted::Accepted(interval) => {
                self.interval = Some(interval.max(Duration::from_secs(1)));
                self.taken(unsubmitted, now);
            }
            Submitted::AlreadyAccepted => self.taken(unsubmitted, now),
            Submitted::Superseded => {
                if unsubmitted.offer.expires_at > now {
                    self.notice(Notice::Superseded);
                }
                self.take_back(unsubmitted);
                self.setback("evidence", Retry::Proceed, Unavailable { retry_after: None }, now);
            }
            // a new challenge, and the UEFI log once more
            Submitted::LogGone => {
                self.take_back(unsubmitted);
                self.setback("evidence", Retry::Proceed, Unavailable { retry_after: None }, now);
            }
            Submitted::TokenRejected => {
                self.token = None;
                self.unsubmitted = Some(unsubmitted);
                self.proceed(now);
            }
            Submitted::Gone => {
                self.forget_attestations();
                self.proceed(now);
            }
            Submitted::Invalid(detail) => {
                self.notice(Notice::Invalid { what: "evidence", detail });
                self.spoiled += 2;
                self.anew_later();
            }
            Submitted::Unavailable(unavailable) if unsubmitted.offer.expires_at > now => {
                self.setback("evidence", Retry::Submit(unsubmitted), unavailable, now);
            }
            Submitted::Unavailable(unavailable) => {
                self.take_back(unsubmitted);
                self.setback("evidence", Retry::Proceed, unavailable, now);
            }
        }
    }

    /// Evidence that is of no use any more: its lines, where they explained the quote, need not travel again.
    pub(super) fn take_back(&mut self, unsubmitted: Unsubmitted) {
        let Unsubmitted { offer, restored, ima } = unsubmitted;
        if let (Some(from), Some(end), Some(lines)) = (offer.ima_offset(), ima, &restored.ima) {
            self.gathered = Some(Gathered { from, next: end.entries, lines: Arc::clone(lines) });
        }
    }

    /// The verifier has the evidence: what was sent need not be sent again.
    fn taken(&mut self, unsubmitted: Unsubmitted, now: Time) {
        self.setbacks = 0;
        self.spoiled = 0;
        self.fresh_token = false;
        self.offered_at = None;
        let Unsubmitted { offer, restored, ima } = unsubmitted;
        if let (Some(facts), Some(from)) = (&mut self.facts, offer.ima_offset()) {
            let known = from + lines(restored.lines());
            facts.ima_entries = facts.ima_entries.max(Some(known));
        }
        self.settle(offer, ima, now);
    }
}
