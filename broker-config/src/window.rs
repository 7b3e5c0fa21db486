//! How much may be under way without an acknowledgement, from how quickly acknowledgements come.
//!
//! TCP takes whatever it is given, and a modem queues it. On a slow link that queue is seconds long; after a cut TCP
//! then waits several times as long before it tries again, and a connection that is lost loses all that was queued. So
//! no more is handed over than the link carries in a moment, and a quick link is not held up.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Always allowed: two of an agent's largest messages at its default (the second begins below this), so that NB-IoT, which
/// carries one in four seconds, does not idle for a round trip between them.
const LEAST_WINDOW: usize = 16 * 1024;
/// What the link carries in this time may be under way.
const MOMENT: Duration = Duration::from_secs(2);
/// The acknowledgement of anything smaller tells of the round trip rather than of the speed.
pub(crate) const TELLING: usize = 4 * 1024;
/// Bytes a second of the slowest link: a quarter of what NB-IoT has in a poor place.
const SLOWEST: usize = 1000;
/// So many times as long as it should take, an acknowledgement may take before TCP is thought to wait out a cut.
const STALLED_TIMES: u32 = 3;
/// TCP mends a lost segment or two within this on any link.
const LEAST_STALL: Duration = Duration::from_secs(10);
/// A link on which it rightly takes longer is found out by the stalls in a row.
const MOST_STALL: Duration = Duration::from_secs(25);

/// Messages of QoS 1 and SUBSCRIBEs that wait for their acknowledgement, in order.
#[derive(Debug, Default)]
pub(crate) struct Window {
    under_way: VecDeque<(usize, Instant)>,
    bytes: usize,
    /// When the acknowledgement that is due began to be due.
    waiting_since: Option<Instant>,
    /// What the link carries in a moment, once that is known.
    carries: Option<usize>,
    /// Bytes a second of the message that was acknowledged last, if it was large enough to tell.
    speed: Option<usize>,
}

impl Window {
    pub(crate) fn hand_over(&mut self, bytes: usize, now: Instant) {
        self.under_way.push_back((bytes, now));
        self.bytes += bytes;
        self.waiting_since.get_or_insert(now);
    }

    pub(crate) fn acknowledged(&mut self, now: Instant) {
        let Some((bytes, handed_over)) = self.under_way.pop_front() else { return };
        self.bytes -= bytes;
        let began = self.waiting_since.map_or(handed_over, |since| since.max(handed_over));
        if bytes >= TELLING {
            let took = now.saturating_duration_since(began).max(Duration::from_millis(1));
            let in_a_moment = bytes as u128 * MOMENT.as_millis() / took.as_millis().max(1);
            self.carries = Some(usize::try_from(in_a_moment).unwrap_or(usize::MAX));
            // two acknowledgements that come at once tell of no speed
            self.speed =
                Some(bytes * 1000 / usize::try_from(took.as_millis().max(1000)).unwrap_or(usize::MAX));
        }
        self.waiting_since = (!self.under_way.is_empty()).then_some(now);
    }

    /// Whether a message more may be handed over.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.carries.unwrap_or(LEAST_WINDOW).max(LEAST_WINDOW)
    }

    /// When the next acknowledgement is overdue, if one of a small message is after `limit`.
    pub(crate) fn overdue_at(&self, limit: Duration) -> Option<Instant> {
        let bytes = self.under_way.front().map_or(0, |(bytes, _)| *bytes);
        self.waiting_since.map(|since| since + with_size(limit, bytes))
    }

    /// Bytes a second, as the last acknowledgement told; a second's worth of one message at most.
    pub(crate) fn speed(&self) -> Option<usize> {
        self.speed
    }

    /// When a new connection is better than this one: a log is under way, and its acknowledgement takes so much longer than the
    /// link's speed explains that there was a cut, after which TCP waits twice as long with each attempt. For a small message
    /// that wait is cheaper than a handshake. After connections that stalled in a row it may take so many times longer.
    pub(crate) fn stalled_at(&self, speed: usize, round_trip: Duration, times: u32) -> Option<Instant> {
        let (bytes, _) = self.under_way.front().filter(|_| self.bytes >= TELLING)?;
        let carrying = Duration::from_millis(u64::try_from(bytes * 1000 / speed.max(1)).unwrap_or(u64::MAX));
        let allowed = (round_trip + carrying).saturating_mul(STALLED_TIMES).clamp(LEAST_STALL, MOST_STALL);
        self.waiting_since.and_then(|since| since.checked_add(allowed.saturating_mul(times)))
    }

    pub(crate) fn is_clear(&self) -> bool {
        self.under_way.is_empty()
    }
}

/// A time for something small, and what so many bytes take beyond it on the slowest link.
pub(crate) fn with_size(limit: Duration, bytes: usize) -> Duration {
    limit + Duration::from_secs(u64::try_from(bytes / SLOWEST).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of 15 kB over a link of so many bytes a second; the most that was under way at once.
    fn most_under_way(bytes_a_second: u32, round_trip: Duration) -> usize {
        let (mut window, mut now, mut most) = (Window::default(), Instant::now(), 0);
        let mut link_free = now;
        let mut acknowledgements = VecDeque::new();
        for _ in 0..100 {
            while window.has_room() {
                window.hand_over(15_000, now);
                link_free = link_free.max(now) + Duration::from_secs(15_000) / bytes_a_second;
                acknowledgements.push_back(link_free + round_trip);
                most = most.max(window.bytes);
            }
            now = acknowledgements.pop_front().expect("something is under way");
            window.acknowledged(now);
        }
        most
    }

    #[test]
    fn a_slow_link_has_two_messages_under_way_and_a_quick_one_as_many_as_it_carries() {
        assert_eq!(most_under_way(3750, Duration::from_millis(1600)), 30_000);
        let lte_m = most_under_way(37_500, Duration::from_millis(200));
        assert!((75_000..120_000).contains(&lte_m), "{lte_m}");
        let lan = most_under_way(10_000_000, Duration::from_millis(1));
        assert!(lan > 1_000_000, "{lan}");
    }

    #[test]
    fn a_log_stalls_when_its_acknowledgement_takes_three_times_its_time_and_a_small_message_never_does() {
        let (now, trip) = (Instant::now(), Duration::from_secs(2));
        let mut window = Window::default();
        window.hand_over(3000, now);
        assert_eq!(window.stalled_at(1000, trip, 1), None);
        window.hand_over(8000, now);
        assert_eq!(window.stalled_at(1000, trip, 1), Some(now + Duration::from_secs(15)));
        window.acknowledged(now + Duration::from_secs(3));
        assert_eq!(window.stalled_at(1000, trip, 1), Some(now + Duration::from_secs(3 + 25)));
        assert_eq!(window.stalled_at(1_000_000, trip, 1), Some(now + Duration::from_secs(3) + LEAST_STALL));
        assert_eq!(window.stalled_at(1000, trip, 4), Some(now + Duration::from_secs(3 + 100)));
        assert_eq!(window.speed(), None, "3000 bytes tell of the round trip alone");
    }

    #[test]
    fn an_acknowledgement_may_take_longer_the_larger_its_message_is() {
        let (limit, now) = (Duration::from_secs(120), Instant::now());
        let mut window = Window::default();
        assert_eq!(window.overdue_at(limit), None);
        window.hand_over(100, now);
        window.hand_over(1_000_000, now);
        assert_eq!(window.overdue_at(limit), Some(now + limit));
        let later = now + Duration::from_secs(7);
        window.acknowledged(later);
        assert_eq!(window.overdue_at(limit), Some(later + limit + Duration::from_secs(1000)));
        window.acknowledged(later);
        assert!(window.is_clear() && window.overdue_at(limit).is_none());
    }
}
