//! What a device may send, and what was refused.
//!
//! Invariant: a device that floods uses up its own allowance and nobody else's, and every refusal is counted under one of a
//! fixed set of reasons.

use keylime_mqtt_schemas::exchange::Time;
use std::collections::BTreeMap;

/// Messages that a device may send at once: a bulk log comes in batches of a few fragments, a large message in 70
const BURST: f64 = 256.0;
/// Messages per second that a device may go on sending
const RATE: f64 = 32.0;

/// `Hello`s answered at once: a run of the doctor sends two or three, and an operator looks again and again
const HELLO_BURST: f64 = 20.0;
/// `Hello`s answered per second afterwards: they may be large and bring no attestation nearer
const HELLO_RATE: f64 = 0.5;

/// One device's allowance
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    at: Time,
    burst: f64,
    rate: f64,
}

impl Allowance {
    /// Of messages
    pub(super) fn new(now: Time) -> Self {
        Self { left: BURST, at: now, burst: BURST, rate: RATE }
    }

    /// Of answers to the doctor
    pub(super) fn of_hellos(now: Time) -> Self {
        Self { left: HELLO_BURST, at: now, burst: HELLO_BURST, rate: HELLO_RATE }
    }

    /// Whether one more message is within it
    pub(super) fn take(&mut self, now: Time) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.left = (self.left + passed.as_secs_f64() * self.rate).min(self.burst);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Messages that were of no use, by kind and reason
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    reported: u64,
}

impl Refusals {
    pub(super) fn count(&mut self, kind: &'static str, why: &'static str) {
        let counter = self.counts.entry((kind, why)).or_default();
        *counter = counter.saturating_add(1);
    }

    /// How many came since this was asked last
    pub(super) fn since_last(&mut self) -> u64 {
        let total = self.counts.values().sum();
        let since = total - self.reported.min(total);
        self.reported = total;
        since
    }

    pub(super) fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.counts.iter().map(|((kind, why), n)| (*kind, *why, *n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_a_patient_device_is_heard_again() {
        let mut allowance = Allowance::new(Duration::ZERO);
        let heard = (0..10_000).filter(|_| allowance.take(Duration::ZERO)).count();
        assert_eq!(heard, 256);
        assert!(allowance.take(Duration::from_secs(1)));
    }
}
