//! What one connection has handed to rumqttc, counted from its events.
//!
//! Invariant: a letter is in `handed` until it was written, then, at QoS 1, in `written` until it was acknowledged.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::link::Qos;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// In the channel or held as a collision, in order: sizes of whole packets.
    handed: VecDeque<(usize, Qos)>,
    /// By packet id.
    written: HashMap<u16, usize>,
    subscribes: usize,
    largest_acknowledged: usize,
    /// When the acknowledgement that is due began to be due.
    pub(crate) waiting_since: Option<Instant>,
}

impl Ledger {
    pub(crate) fn subscribe(&mut self, packets: usize) {
        self.subscribes += packets;
        self.wait_on();
    }

    pub(crate) fn hand_over(&mut self, (size, qos): (usize, Qos)) {
        self.handed.push_back((size, qos));
        if qos == Qos::AtLeastOnce {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    pub(crate) fn written(&mut self, packet_id: u16) {
        if let Some((size, Qos::AtLeastOnce)) = self.handed.pop_front() {
            self.written.insert(packet_id, size);
        }
    }

    pub(crate) fn subscribe_acknowledged(&mut self) {
        self.subscribes = self.subscribes.saturating_sub(1);
        self.wait_on();
    }

    /// Gives the size of what was acknowledged.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) -> Option<usize> {
        let size = self.written.remove(&packet_id);
        self.largest_acknowledged = self.largest_acknowledged.max(size.unwrap_or(0));
        self.wait_on();
        size
    }

    /// Not yet written.
    pub(crate) fn handed(&self) -> usize {
        self.handed.len()
    }

    /// Bytes for which an acknowledgement is due.
    pub(crate) fn in_flight(&self) -> usize {
        let handed = self.handed.iter().filter(|(_, qos)| *qos == Qos::AtLeastOnce).map(|(size, _)| size);
        self.written.values().chain(handed).sum()
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.handed.is_empty() && !self.is_owed()
    }

    /// The largest packet that was written and not acknowledged, if none as large was: what a peer that closed the
    /// connection may have closed it over.
    pub(crate) fn suspect(&self) -> Option<usize> {
        self.written.values().copied().max().filter(|size| *size > self.largest_acknowledged)
    }

    fn is_owed(&self) -> bool {
        let waits = |(_, qos): &(usize, Qos)| *qos == Qos::AtLeastOnce;
        self.subscribes > 0 || !self.written.is_empty() || self.handed.iter().any(waits)
    }

    fn wait_on(&mut self) {
        self.waiting_since = self.is_owed().then(Instant::now);
    }
}
