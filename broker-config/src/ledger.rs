//! What one connection has handed to rumqttc, counted from its events.
//!
//! Invariant: a letter is in `handed` until it was written, then, at QoS 1, in `written` until it was acknowledged; and,
//! as every SUBSCRIBE, in `window` from being handed over until it was acknowledged.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::{link::Qos, pulse::Patience, window::Window};

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// In the channel or held as a collision, in order: sizes of whole packets.
    handed: VecDeque<(usize, Qos)>,
    /// By packet id.
    written: HashMap<u16, usize>,
    window: Window,
    largest_acknowledged: usize,
}

impl Ledger {
    pub(crate) fn subscribe(&mut self, packets: usize) {
        (0..packets).for_each(|_| self.window.hand_over(0, Instant::now()));
    }

    pub(crate) fn hand_over(&mut self, (size, qos): (usize, Qos)) {
        self.handed.push_back((size, qos));
        if qos == Qos::AtLeastOnce {
            self.window.hand_over(size, Instant::now());
        }
    }

    pub(crate) fn written(&mut self, packet_id: u16) {
        if let Some((size, Qos::AtLeastOnce)) = self.handed.pop_front() {
            self.written.insert(packet_id, size);
        }
    }

    pub(crate) fn subscribe_acknowledged(&mut self) {
        self.window.acknowledged(Instant::now());
    }

    /// Gives the size of what was acknowledged.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) -> Option<usize> {
        let size = self.written.remove(&packet_id)?;
        self.largest_acknowledged = self.largest_acknowledged.max(size);
        self.window.acknowledged(Instant::now());
        Some(size)
    }

    /// Not yet written.
    pub(crate) fn handed(&self) -> usize {
        self.handed.len()
    }

    /// Whether the link carries more than is under way.
    pub(crate) fn has_room(&self) -> bool {
        self.window.has_room()
    }

    /// When the next acknowledgement is overdue, if one of a small message is after `limit`.
    pub(crate) fn overdue_at(&self, limit: Duration) -> Option<Instant> {
        self.window.overdue_at(limit)
    }

    /// When a new connection is better than this one, by the speed that the link has shown.
    pub(crate) fn stalled_at(&self, patience: &Patience, round_trip: Duration) -> Option<Instant> {
        self.window.stalled_at(patience.speed()?, round_trip, patience.stall_times())
    }

    /// Bytes a second, as the last acknowledgement told.
    pub(crate) fn speed(&self) -> Option<usize> {
        self.window.speed()
    }

    /// Bytes for which an acknowledgement is due.
    pub(crate) fn in_flight(&self) -> usize {
        let handed = self.handed.iter().filter(|(_, qos)| *qos == Qos::AtLeastOnce).map(|(size, _)| size);
        self.written.values().chain(handed).sum()
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.handed.is_empty() && self.window.is_clear()
    }

    /// The largest packet that was written and not acknowledged, if none as large was: what a peer that closed the
    /// connection may have closed it over.
    pub(crate) fn suspect(&self) -> Option<usize> {
        self.written.values().copied().max().filter(|size| *size > self.largest_acknowledged)
    }
}
