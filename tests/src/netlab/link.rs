//! What a link does to packets, as a pure calculation: when each arrives, if it does.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::time::Duration;

/// Time since the link was made.
pub(super) type Time = Duration;

/// The link is up, then down, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// How long it is up, first
    pub up: Duration,
    /// How long it is down then
    pub down: Duration,
}

/// What both directions of a link do. The default is a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkProfile {
    /// One way
    pub delay: Duration,
    /// Added to or taken from the delay, at most
    pub jitter: Duration,
    /// Bits a second of whole IP packets; nothing is no limit
    pub rate: Option<u32>,
    /// Packets lost of each thousand
    pub loss: u16,
    /// Bytes that may wait for the sender; a packet that finds no room is lost
    pub queue: Option<usize>,
    /// Regular cuts
    pub outage: Option<Outage>,
    /// Nothing passes
    pub cut: bool,
}

impl LinkProfile {
    /// LTE-M in a good place.
    pub fn lte_m() -> Self {
        Self {
            delay: Duration::from_millis(100),
            jitter: Duration::from_millis(30),
            rate: Some(300_000),
            loss: 10,
            queue: Some(64 * 1024),
            ..Self::default()
        }
    }

    /// NB-IoT in a poor place.
    pub fn nb_iot() -> Self {
        Self {
            delay: Duration::from_millis(800),
            jitter: Duration::from_millis(200),
            rate: Some(30_000),
            loss: 20,
            queue: Some(32 * 1024),
            ..Self::default()
        }
    }

    /// The same, cut 20 s in every minute.
    #[must_use]
    pub fn with_cuts(self) -> Self {
        let outage = Outage { up: Duration::from_secs(40), down: Duration::from_secs(20) };
        Self { outage: Some(outage), ..self }
    }

    fn is_down(&self, since: Duration) -> bool {
        let regular = self.outage.is_some_and(|Outage { up, down }| {
            let period = (up + down).as_nanos().max(1);
            since.as_nanos() % period >= up.as_nanos()
        });
        self.cut || regular
    }
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Packets that were delivered
    pub packets: u64,
    /// Their bytes
    pub bytes: u64,
    /// Packets lost by chance
    pub lost: u64,
    /// Packets for which the queue had no room
    pub overflowed: u64,
    /// Packets that met a link that was down
    pub cut: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub(super) struct Direction {
    profile: LinkProfile,
    set_at: Time,
    chance: StdRng,
    /// When the sender has sent all that waits.
    sender_free: Time,
    /// What waits for the sender: when it will have been sent, and bytes.
    backlog: VecDeque<(Time, usize)>,
    waiting: usize,
    /// The latest arrival: what is sent later arrives later, as on a bearer that acknowledges.
    latest: Time,
    pub(super) carried: Carried,
}

impl Direction {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            profile: LinkProfile::default(),
            set_at: Time::ZERO,
            chance: StdRng::seed_from_u64(seed),
            sender_free: Time::ZERO,
            backlog: VecDeque::new(),
            waiting: 0,
            latest: Time::ZERO,
            carried: Carried::default(),
        }
    }

    /// Another profile from `now` on; what is under way arrives as it would have.
    pub(super) fn set(&mut self, profile: LinkProfile, now: Time) {
        self.profile = profile;
        self.set_at = now;
        self.sender_free = now;
        self.backlog.clear();
        self.waiting = 0;
    }

    /// When a packet that is sent now arrives, if it does.
    pub(super) fn send(&mut self, bytes: usize, now: Time) -> Option<Time> {
        if self.profile.is_down(now.saturating_sub(self.set_at)) {
            self.carried.cut += 1;
            return None;
        }
        if self.chance.random_range(0..1000) < self.profile.loss {
            self.carried.lost += 1;
            return None;
        }
        let sent = self.queue(bytes, now)?;
        let jitter = u64::try_from(self.profile.jitter.as_micros()).unwrap_or(u64::MAX);
        let drawn = Duration::from_micros(self.chance.random_range(0..=jitter.saturating_mul(2)));
        let arrival = (sent + self.profile.delay + drawn).saturating_sub(self.profile.jitter).max(sent);
        self.latest = self.latest.max(arrival);
        Some(self.latest)
    }

    /// Whether a packet that arrives now is delivered.
    pub(super) fn deliver(&mut self, bytes: usize, now: Time) -> bool {
        let down = self.profile.is_down(now.saturating_sub(self.set_at));
        if down {
            self.carried.cut += 1;
        } else {
            self.carried.packets += 1;
            self.carried.bytes += bytes as u64;
        }
        !down
    }

    /// When the sender has sent it, unless the queue is full.
    fn queue(&mut self, bytes: usize, now: Time) -> Option<Time> {
        let Some(rate) = self.profile.rate else { return Some(now) };
        while let Some((_, sent)) = self.backlog.front().copied().filter(|(sent_at, _)| *sent_at <= now) {
            self.waiting -= sent;
            self.backlog.pop_front();
        }
        if self.waiting > 0 && self.profile.queue.is_some_and(|room| self.waiting + bytes > room) {
            self.carried.overflowed += 1;
            return None;
        }
        let takes = Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / u64::from(rate.max(1)));
        self.sender_free = self.sender_free.max(now) + takes;
        self.backlog.push_back((self.sender_free, bytes));
        self.waiting += bytes;
        Some(self.sender_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn direction(profile: LinkProfile) -> Direction {
        let mut direction = Direction::new(1);
        direction.set(profile, Time::ZERO);
        direction
    }

    #[test]
    fn a_packet_takes_its_length_at_the_rate_and_the_delay_and_waits_for_those_before() {
        let mut link = direction(LinkProfile { delay: SECOND, rate: Some(8000), ..LinkProfile::default() });
        assert_eq!(link.send(1000, Time::ZERO), Some(2 * SECOND));
        assert_eq!(link.send(500, Time::ZERO), Some(2 * SECOND + SECOND / 2));
        assert_eq!(link.send(1000, 10 * SECOND), Some(12 * SECOND));
    }

    #[test]
    fn a_full_queue_loses_what_comes_and_empties_as_it_sends() {
        let mut link =
            direction(LinkProfile { rate: Some(8000), queue: Some(1500), ..LinkProfile::default() });
        assert!(link.send(1000, Time::ZERO).is_some());
        assert_eq!(link.send(1000, Time::ZERO), None);
        assert!(link.send(1000, SECOND).is_some());
        assert_eq!(link.carried.overflowed, 1);
    }

    #[test]
    fn the_loss_is_what_was_asked_for_and_jitter_keeps_the_order() {
        let mut link = direction(LinkProfile { rate: None, ..LinkProfile::nb_iot() });
        let arrivals: Vec<Time> =
            (0..10_000).filter_map(|milli| link.send(100, Duration::from_millis(milli))).collect();
        assert!(arrivals.is_sorted());
        assert!((9700..=9900).contains(&arrivals.len()), "{} of 10000 arrived", arrivals.len());
    }

    #[test]
    fn regular_cuts_come_after_the_time_up_and_take_what_is_under_way() {
        let mut link = direction(LinkProfile::default().with_cuts());
        for (second, up) in [(0, true), (39, true), (40, false), (59, false), (60, true), (100, false)] {
            assert_eq!(link.deliver(1, SECOND * second), up, "second {second}");
            assert_eq!(link.send(1, SECOND * second).is_some(), up, "second {second}");
        }
    }
}
