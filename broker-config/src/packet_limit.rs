//! The largest packet that is sent: as configured, or less where a broker has shown that it takes less.
//!
//! MQTT 3.1.1 has no word for "too large". A broker closes the connection, and a client that then sends the same packet
//! again does so for ever. So a connection that the broker closed over a packet larger than any it had acknowledged
//! counts against that size; after the second in a row what is sent is halved, down to what the exchange cannot do
//! without, and the operator is told what to set. What is learned is kept for the life of the link.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::limits::SMALLEST_PACKET_LIMIT;

/// A single one may be chance: a broker that was stopped, a flow that a firewall forgot.
const CLOSED_IN_A_ROW: usize = 2;
/// What is smaller than half the smallest limit was closed for another reason: an ACL that disconnects, a client id
/// that is used twice.
pub(crate) const SMALLEST_SUSPECT: usize = SMALLEST_PACKET_LIMIT / 2;

#[derive(Debug)]
pub(crate) struct PacketLimit {
    bytes: AtomicUsize,
    /// Connections in a row that were closed over a packet, and its size.
    closed: AtomicUsize,
    suspect: AtomicUsize,
}

/// What a closed connection means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Nothing yet.
    Chance,
    /// Smaller packets from now on; larger ones must not be sent again.
    Lowered,
    /// The broker takes less than the exchange needs.
    Hopeless,
}

impl PacketLimit {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(bytes), closed: AtomicUsize::new(0), suspect: AtomicUsize::new(0) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A packet of this size was acknowledged.
    pub(crate) fn passed(&self, size: usize) {
        if size >= self.suspect.load(Ordering::Relaxed) {
            self.closed.store(0, Ordering::Relaxed);
        }
    }

    /// The broker closed the connection over a packet of this size.
    pub(crate) fn closed_over(&self, size: usize) -> Closed {
        if size < SMALLEST_SUSPECT {
            return Closed::Chance;
        }
        self.suspect.store(size, Ordering::Relaxed);
        if self.closed.fetch_add(1, Ordering::Relaxed) + 1 < CLOSED_IN_A_ROW {
            return Closed::Chance;
        }
        self.closed.store(0, Ordering::Relaxed);
        if size <= SMALLEST_PACKET_LIMIT {
            return Closed::Hopeless;
        }
        let lower = (size / 2).max(SMALLEST_PACKET_LIMIT);
        self.bytes.store(lower, Ordering::Relaxed);
        warn!(
            bytes = size,
            now = lower,
            "the broker closed the connection over a packet, twice in a row: smaller ones are sent from now on; set broker.max_packet_bytes to the broker's limit, or raise that"
        );
        Closed::Lowered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_in_a_row_halves_what_is_sent_down_to_what_the_exchange_needs() {
        let limit = PacketLimit::new(60_000);
        assert_eq!(limit.closed_over(60_000), Closed::Chance);
        assert_eq!((limit.closed_over(60_000), limit.bytes()), (Closed::Lowered, 30_000));
        assert_eq!(limit.closed_over(15_000), Closed::Chance);
        assert_eq!((limit.closed_over(15_000), limit.bytes()), (Closed::Lowered, SMALLEST_PACKET_LIMIT));
        assert_eq!(limit.closed_over(SMALLEST_PACKET_LIMIT), Closed::Chance);
        assert_eq!(limit.closed_over(SMALLEST_PACKET_LIMIT), Closed::Hopeless);
    }

    #[test]
    fn only_a_packet_as_large_that_passed_shows_that_it_was_not_the_size() {
        let limit = PacketLimit::new(60_000);
        for _ in 0..5 {
            assert_eq!(limit.closed_over(60_000), Closed::Chance);
            limit.passed(60_000);
        }
        assert_eq!((limit.closed_over(60_000), limit.bytes()), (Closed::Chance, 60_000));
        limit.passed(20_000);
        assert_eq!(limit.closed_over(60_000), Closed::Lowered);
    }

    #[test]
    fn a_small_packet_is_no_suspect() {
        let limit = PacketLimit::new(60_000);
        for _ in 0..5 {
            assert_eq!(limit.closed_over(1000), Closed::Chance);
        }
        assert_eq!(limit.bytes(), 60_000);
    }
}
