//! How long to wait before the next attempt: full jitter under an exponential ceiling.
//!
//! Full jitter (anything from nothing to the ceiling) spreads a fleet that lost its broker at one instant;
//! equal waits would bring it back at one instant too.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rand::Rng;

/// Full jitter may draw nothing at all; this much keeps a closed port from being tried in a tight loop.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// A connection that lived this long was a good one, and the next loss starts from the first ceiling. One
/// that was accepted and dropped at once was not.
pub(crate) const GOOD_CONNECTION: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Backoff {
    builder: ExponentialBuilder,
    ceilings: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_factor(2.0)
            .without_max_times();
        Self { builder, ceilings: builder.build(), longest }
    }

    /// The wait before the next attempt, below `most`.
    pub(crate) fn next_wait(&mut self, most: Option<Duration>) -> Duration {
        let ceiling = self.next_ceiling().min(most.unwrap_or(Duration::MAX));
        rand::rng().random_range(SHORTEST_WAIT..=ceiling.max(SHORTEST_WAIT))
    }

    /// A wait up to the longest ceiling, for a fault that does not pass by itself soon.
    pub(crate) fn longest_wait(&mut self) -> Duration {
        rand::rng().random_range(self.longest / 2..=self.longest)
    }

    pub(crate) fn reset(&mut self) {
        self.ceilings = self.builder.build();
    }

    fn next_ceiling(&mut self) -> Duration {
        self.ceilings.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_longest_and_start_over_after_a_good_connection() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(20));
        let seconds: Vec<u64> = (0..6).map(|_| backoff.next_ceiling().as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 20, 20]);
        backoff.reset();
        assert_eq!(backoff.next_ceiling().as_secs(), 2);
    }

    #[test]
    fn waits_are_spread_over_the_whole_range_below_the_ceiling() {
        let longest = Duration::from_secs(100);
        let mut backoff = Backoff::new(longest, longest);
        let waits: Vec<Duration> = (0..400).map(|_| backoff.next_wait(None)).collect();
        assert!(waits.iter().all(|wait| (SHORTEST_WAIT..=longest).contains(wait)));
        // each tenth of the range is missed by 400 draws once in 10^18 runs
        for tenth in 0..10 {
            let slice = longest * tenth / 10..longest * (tenth + 1) / 10;
            assert!(waits.iter().any(|wait| slice.contains(wait)), "no wait in {slice:?}");
        }
    }

    #[test]
    fn who_is_missed_sooner_than_the_longest_ceiling_comes_back_sooner() {
        let most = Duration::from_secs(30);
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        assert!((0..100).all(|_| backoff.next_wait(Some(most)) <= most));
        assert!((0..100).any(|_| backoff.next_wait(None) > most));
    }

    #[test]
    fn a_fleet_that_lost_its_broker_at_one_instant_does_not_come_back_at_one_instant() {
        const FLEET: usize = 1000;
        let mut attempts = vec![0; 20 * 60];
        for _ in 0..FLEET {
            // as shipped
            let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
            let mut at = Duration::ZERO;
            while let Some(second) = attempts.get_mut(usize::try_from(at.as_secs()).expect("a second")) {
                if at > Duration::ZERO {
                    *second += 1;
                }
                at += backoff.next_wait(None);
            }
        }
        let most = |from: usize| attempts.iter().skip(from).max().copied().unwrap_or_default();
        // a broker that is back at once gets them over two seconds, a longer outage over minutes
        assert!(most(0) < FLEET * 3 / 4, "{} at once", most(0));
        assert!(most(120) < FLEET / 20, "{} at once after two minutes", most(120));
    }
}
