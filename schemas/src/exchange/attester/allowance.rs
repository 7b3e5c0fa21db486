//! How much a device answers: a bridge asks little, so who asks much is not one, or is lied about on the way.

use std::time::Duration;

use super::Time;

/// Parts of logs sent in a minute once [`PARTS_AT_ONCE`] are used up: some 15 kB a second.
const PARTS_PER_MINUTE: u32 = 60;
/// Parts of logs sent at once: twice the logs of a device that has run 100 000 programs.
const PARTS_AT_ONCE: u32 = 1024;

/// A bucket that fills with time.
#[derive(Debug)]
pub(super) struct Allowance {
    /// In milliseconds of time, as are the others: what one answer takes.
    cost: u64,
    most: u64,
    left: u64,
    at: Time,
}

impl Allowance {
    /// For questions: so many in a minute, and twice as many at once.
    pub(super) fn of_answers(per_minute: u32) -> Self {
        Self::new(per_minute, per_minute.saturating_mul(2))
    }

    /// For parts of logs.
    pub(super) fn of_parts() -> Self {
        Self::new(PARTS_PER_MINUTE, PARTS_AT_ONCE)
    }

    fn new(per_minute: u32, at_once: u32) -> Self {
        let cost = 60_000 / u64::from(per_minute.max(1));
        let most = cost * u64::from(at_once.max(1));
        Self { cost, most, left: most, at: Time::ZERO }
    }

    /// Whether one more is within it; if so it is counted.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_add(passed).min(self.most);
        match self.left.checked_sub(self.cost) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// After a refusal: when one more will be within it.
    pub(super) fn free_at(&self) -> Time {
        self.at + Duration::from_millis(self.cost.saturating_sub(self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_a_minutes_answers_come_at_once_and_then_only_as_many_as_fit_the_time() {
        let mut allowance = Allowance::of_answers(30);
        let at = Duration::from_secs;
        assert_eq!((0..1000).filter(|_| allowance.take(at(100))).count(), 60);
        assert_eq!((0..1000).filter(|_| allowance.take(at(110))).count(), 5);
        assert_eq!(allowance.free_at(), at(112));
        assert!(!allowance.take(Duration::from_millis(111_999)) && allowance.take(at(112)));
        assert_eq!((0..1000).filter(|_| allowance.take(at(1000))).count(), 60);
    }
}
