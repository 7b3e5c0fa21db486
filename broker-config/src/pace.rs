//! How fast may be sent: brokers that meter a connection end or throttle one that is faster.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::BrokerSettings;

/// Even spacing, without bursts: in no second is there more than the limit, whichever second the broker counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    per_message: Duration,
    per_byte: Duration,
    free_at: Instant,
}

impl Pace {
    pub(crate) fn new(settings: &BrokerSettings) -> Self {
        Self::of(settings.max_messages_per_second, settings.max_bytes_per_second)
    }

    /// Zero is no limit.
    fn of(messages: u32, bytes: u32) -> Self {
        let one_of = |limit| Duration::from_secs(1).checked_div(limit).unwrap_or_default();
        Self { per_message: one_of(messages), per_byte: one_of(bytes), free_at: Instant::now() }
    }

    /// When the next message may go, if not now.
    pub(crate) fn wait_until(&self) -> Option<Instant> {
        (self.free_at > Instant::now()).then_some(self.free_at)
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let took = self.per_message.max(self.per_byte.saturating_mul(bytes));
        self.free_at = self.free_at.max(Instant::now()) + took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulated time that so many messages of so many bytes take.
    async fn takes(mut pace: Pace, messages: u32, bytes: usize) -> Duration {
        let started = Instant::now();
        for _ in 0..messages {
            while let Some(at) = pace.wait_until() {
                tokio::time::sleep_until(at).await;
            }
            pace.sent(bytes);
        }
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn neither_messages_nor_bytes_exceed_what_a_second_may_carry() {
        assert!(takes(Pace::of(100, 0), 501, 100_000).await >= Duration::from_secs(5));
        assert!(takes(Pace::of(0, 512 * 1024), 41, 128 * 1024).await >= Duration::from_secs(10));
        assert!(takes(Pace::of(100, 512 * 1024), 401, 1).await >= Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_waits() {
        assert_eq!(takes(Pace::of(0, 0), 10_000, 100_000).await, Duration::ZERO);
    }
}
