//! Evidence that is bound goes to the verifier: to the index of its own offer, and until it is taken or of no more use.

use std::sync::Arc;
use std::time::Duration;

use super::facts::OpenedTicket;
use super::gather::lines;
use super::offer::{ImaState, Offer, Restored};
use super::phase::{Gathered, Phase, Retry, Step, Unsubmitted};
use super::port::{Command, Submitted, Unavailable};
use super::{Notice, Relay, Time, doubled};

/// A bridge that takes over looks after a device again at least so often.
const YIELD_CAP: Duration = Duration::from_secs(300);
/// No oftener than this, however short the interval: each look may cost both a session, of which Keylime allows a device 15 a minute.
const LEAST_YIELD: Duration = Duration::from_secs(10);

/// What is known of another bridge that serves the same device.
#[derive(Debug, Default)]
pub(super) struct Another {
    /// When evidence was given to the verifier last, from here.
    submitted_at: Option<Time>,
    /// The offer under way was asked for when that was too long ago to make it early.
    overdue: bool,
    /// How often it was found to be there.
    times: u32,
    /// The device is left to it for now.
    yielded: bool,
    /// What the device showed, and this bridge had a token already.
    ticket: Option<OpenedTicket>,
    /// The device said that nothing is new, which leaves out a ticket that the other may have given it.
    unshown: bool,
}

impl Another {
    pub(super) fn asked_for_an_offer(&mut self, interval: Duration, now: Time) {
        // once and a half: clocks and answers are never exact
        self.overdue = self.submitted_at.is_some_and(|at| now.saturating_sub(at) >= interval * 3 / 2);
    }

    /// Of an offer that came too early: the verifier had evidence within its interval, and not from here.
    pub(super) fn has_attested(&self) -> bool {
        self.overdue
    }

    /// The device speaks up: perhaps nobody serves it any more.
    pub(super) fn is_doubted(&mut self) -> bool {
        std::mem::take(&mut self.yielded)
    }

    /// Whether a success of this time can be that of evidence from here whose outcome was not read.
    pub(super) fn may_be_this_one(&self, time: Duration, now: Time) -> bool {
        self.submitted_at.is_some_and(|at| now.saturating_sub(at) < time)
    }

    pub(super) fn ticket_shown(&mut self, ticket: Option<OpenedTicket>) {
        self.unshown = false;
        self.ticket = ticket;
    }

    pub(super) fn ticket_not_shown(&mut self) {
        self.unshown = true;
    }

    pub(super) fn take_ticket(&mut self) -> Option<OpenedTicket> {
        self.ticket.take()
    }

    /// Whether the device is to be asked for its ticket, which is cheaper than a session.
    pub(super) fn may_have_given_a_ticket(&mut self) -> bool {
        std::mem::take(&mut self.unshown)
    }

    /// Evidence was taken from here: the device has no newer ticket than this bridge's.
    fn is_not_here(&mut self) {
        self.unshown = false;
        self.ticket = None;
    }

    /// Whether that is to be said aloud: at the first, second, fourth ... time.
    fn found(&mut self) -> bool {
        self.times += 1;
        self.yielded = true;
        self.times.is_power_of_two()
    }
}

impl Relay {
    /// Whatever becomes of it, the standing is read anew before the next one: this one's success may be in it.
    pub(super) fn bound(&mut self, offer: Offer, restored: Arc<Restored>, ima: Option<ImaState>, now: Time) {
        let before = self.baseline.take();
        self.submit(Unsubmitted { offer, restored, ima, before }, now);
    }

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
        if !matches!(submitted, Submitted::Superseded) {
            // also when no answer came: the verifier may have it
            self.another.submitted_at = Some(now);
        }
        match submitted {
            Submitted::Accepted(interval) => {
                self.interval = Some(interval.max(Duration::from_secs(1)));
                self.taken(unsubmitted, now);
            }
            Submitted::AlreadyAccepted => self.taken(unsubmitted, now),
            Submitted::Superseded => {
                if unsubmitted.offer.expires_at > now {
                    self.yield_to_another(Duration::ZERO, now);
                } else {
                    self.setback("evidence", Retry::Proceed, Unavailable { retry_after: None }, now);
                }
                // the other may have been an accident: the lines need not travel again
                self.take_back(unsubmitted);
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
        let Unsubmitted { offer, restored, ima, .. } = unsubmitted;
        if let (Some(from), Some(end), Some(lines)) = (offer.ima_offset(), ima, &restored.ima) {
            if let Some(facts) = &mut self.facts {
                facts.ima_entries = facts.ima_entries.max(Some(end.entries));
            }
            self.gathered = Some(Gathered { from, next: end.entries, lines: Arc::clone(lines) });
        }
    }

    /// Another bridge serves this device, by mistake or because this one was thought dead. To go on would kill each other's
    /// challenges and sessions, of which the verifier allows few. So the device is left to the other, longer each time,
    /// until it speaks up itself; and nothing is said of it meanwhile.
    pub(super) fn yield_to_another(&mut self, least: Duration, now: Time) {
        if self.another.found() {
            self.notice(Notice::Superseded);
        }
        self.timeout_at = None;
        self.baseline = None;
        self.good = None;
        self.gathered = None;
        let first = self.interval().max(LEAST_YIELD);
        let wait = self.jitter.upper_half(doubled(first, self.another.times, YIELD_CAP));
        self.phase = Phase::Resting { due: now + wait.max(least) };
    }

    /// The verifier has the evidence: what was sent need not be sent again.
    fn taken(&mut self, unsubmitted: Unsubmitted, now: Time) {
        self.setbacks = 0;
        self.spoiled = 0;
        self.fresh_token = false;
        self.offered_at = None;
        self.another.is_not_here();
        if let Some(from) = unsubmitted.offer.ima_offset() {
            self.given = self.given.max(Some(from + lines(unsubmitted.restored.lines())));
        }
        // also where the outcome will not be seen
        for facts in [&mut self.facts, &mut self.good].into_iter().flatten() {
            facts.ima_entries = facts.ima_entries.max(self.given);
        }
        self.settle(unsubmitted, now);
    }
}
