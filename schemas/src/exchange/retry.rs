//! When to try again: doubling waits with jitter, from a seed, so that a fleet spreads and a test repeats.

use std::time::Duration;

/// A small generator for jitter alone (splitmix64); nothing secret comes from it.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(bound).unwrap_or(0)
    }

    /// Between half of `span` and `span`.
    pub(crate) fn upper_half(&mut self, span: Duration) -> Duration {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(millis / 2 + self.below(millis / 2 + 1))
    }
}

/// `first` doubled `attempt` times, at most `cap`.
pub(crate) fn doubled(first: Duration, attempt: u32, cap: Duration) -> Duration {
    // 2^16 times anything useful is beyond every cap
    first.saturating_mul(1 << attempt.min(16)).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_jitter_stays_in_the_upper_half() {
        let (first, cap) = (Duration::from_secs(5), Duration::from_secs(60));
        let waits: Vec<u64> = (0..6).map(|attempt| doubled(first, attempt, cap).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(doubled(first, u32::MAX, cap), cap);
        let mut jitter = Jitter::new(7);
        let drawn: Vec<Duration> = (0..100).map(|_| jitter.upper_half(cap)).collect();
        assert!(drawn.iter().all(|wait| (cap / 2..=cap).contains(wait)));
        assert!(drawn.iter().max() > drawn.iter().min());
    }
}
