//! What is known of a device's keys and words, and what is not: each a type that only the check makes.

use super::port::OpenedTicket;
use crate::messages::AkName;

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
