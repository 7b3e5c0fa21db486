//! What is known of a device's keys and words, and what is not: each a type that only the check makes.

use super::facts::{Facts, OpenedTicket};
use super::port::StatedAt;
use crate::messages::{AkName, Signed};
use crate::statement::StatedBoot;

/// The AK of which the verifier said `pass`: in this process, or in the one that sealed the ticket.
///
/// Proves: when it said so, whoever spoke for the device held this AK, and it is the one that the operator enrolled.
///
/// Does not prove: that the device holds it now, or that a message is of the device (each answer is checked by itself); that the
/// AK is in a TPM (that is the registrar's to find out, by the activation, and admission's); that anything is well with
/// the device; or that the operator has not removed it since, which the verifier tells with the next token it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrustedAk(AkName);

impl TrustedAk {
    /// The name inside the certification that passed, whatever the device's `Ready` claimed.
    pub(super) fn certified(name: AkName) -> Self {
        Self(name)
    }

    /// The name in a ticket that opened: a bridge with the same key had seen it pass.
    pub(super) fn of_ticket(ticket: &OpenedTicket) -> Self {
        Self(ticket.ak)
    }

    /// Whether it is this one.
    pub(super) fn is(self, ak: AkName) -> bool {
        self.0 == ak
    }
}

/// What a device has stated of a boot, with its statement, of which the signature was checked.
///
/// Proves: the holder of the AK has said so of that boot, and its TPM counted resets as the statement's clock says.
///
/// Does not prove: that the device is in that boot now. A broker may keep a statement of an earlier one, so each quote has to show the
/// same `resetCount`; or an earlier one of the same boot, when the device was set otherwise, so an older clock is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckedBoot {
    stated: StatedBoot,
    statement: Signed,
    at: StatedAt,
}

impl CheckedBoot {
    /// What these facts state, once their statement was found good, made then.
    pub(super) fn of(facts: &Facts, at: StatedAt) -> Self {
        Self { stated: facts.stated, statement: facts.statement.clone(), at }
    }

    /// Whether a statement of the same boot made then is older, and so of no more use.
    pub(super) fn outdates(&self, facts: &Facts, at: StatedAt) -> bool {
        self.stated.boot == facts.stated.boot && at < self.at
    }

    /// What was stated.
    pub(super) fn stated(&self) -> StatedBoot {
        self.stated
    }

    /// The statement that was checked.
    pub(super) fn statement(&self) -> &Signed {
        &self.statement
    }

    /// Whether these facts need no check any more.
    pub(super) fn covers(&self, facts: &Facts) -> bool {
        self.stated == facts.stated && self.statement == facts.statement
    }
}
