//! When a connection is pinged, and when it counts as dead.
//!
//! A NAT forgets a flow that was silent for too long, without a word and after a time that nobody tells; half a minute
//! is common. So the first silences are short. Each one that the way survives allows one twice as long, up to
//! `keep_alive_seconds`, and one that it does not survive is never risked again, nor half of it exceeded. A way
//! without a NAT costs four pings more in its first minutes, one with a NAT one reconnect.
//!
//! Traffic of any kind proves the way as a ping does, so a connection in use is not pinged.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

/// RFC 5382 §5 asks NATs for two hours, and carriers give as little as half a minute.
const FIRST_SILENCE: Duration = Duration::from_secs(25);
/// Pinging oftener would cost more than it could save.
const SHORTEST_SILENCE: Duration = Duration::from_secs(10);
/// After a cut of 20 s TCP, whose attempts double, tries again within this on a quick link.
const ANSWER: Duration = Duration::from_secs(30);
/// A link of such round trips is slow, and a log takes minutes there.
const SLOW: Duration = Duration::from_millis(500);
/// For so long after a part of a log was acknowledged, more of it may be asked for.
const LOG_GOES_ON: Duration = Duration::from_secs(60);
/// Silence meanwhile: if a cut swallowed the question, the broker's TCP tries again later and later.
const LOG_SILENCE: Duration = Duration::from_secs(5);
/// An answer to a ping may take so long meanwhile, or three round trips.
const LOG_ANSWER: Duration = Duration::from_secs(10);
/// On a slow link, as many round trips more: its attempts are further apart.
const ANSWER_ROUND_TRIPS: u32 = 8;

/// What is known of the way to one broker, from one connection to the next.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    keep_alive: Duration,
    /// Silence that is risked now.
    silence: Duration,
    /// Most that is risked.
    most: Duration,
    /// The silence before the last connection was found dead, until it is known whether the link was to blame.
    suspect: Option<Duration>,
    /// Bytes a second that the link can carry: the most that was seen, and less with time.
    speed: Option<usize>,
    /// Connections given up as stalled since anything was acknowledged: perhaps the link is only slower than it was.
    stalls: u32,
}

impl Patience {
    pub(crate) fn new(keep_alive: Duration) -> Self {
        let silence = FIRST_SILENCE.min(keep_alive);
        Self { keep_alive, silence, most: keep_alive, suspect: None, speed: None, stalls: 0 }
    }

    /// Bytes a second that the link can carry, seen on this connection or one before.
    pub(crate) fn speed(&self) -> Option<usize> {
        self.speed
    }

    /// How many times as long as usual an acknowledgement may take.
    pub(crate) fn stall_times(&self) -> u32 {
        1 << self.stalls.min(6)
    }

    pub(crate) fn stalled(&mut self) {
        self.stalls += 1;
    }

    /// Something was acknowledged.
    pub(crate) fn moved(&mut self, speed: Option<usize>) {
        self.stalls = 0;
        // cuts make an acknowledgement late, and the link no slower
        let before = self.speed.map(|before| before - before / 8);
        self.speed = speed.max(before);
    }

    fn survived(&mut self, silence: Duration) {
        if silence >= self.silence {
            self.silence = (self.silence * 2).min(self.most);
        }
    }

    /// A connection that had been silent so long was dead.
    pub(crate) fn died_after(&mut self, silence: Option<Duration>) {
        self.suspect = silence;
    }

    /// No connection could be made: the link was down, and no silence is to blame.
    pub(crate) fn link_is_down(&mut self) {
        self.suspect = None;
    }

    /// A connection could be made at once after one was found dead: something on the way had forgotten that one.
    fn link_is_up(&mut self) {
        let Some(silence) = self.suspect.take().filter(|silence| *silence >= SHORTEST_SILENCE) else {
            return;
        };
        self.most = (silence / 2).clamp(SHORTEST_SILENCE, self.keep_alive.max(SHORTEST_SILENCE));
        self.silence = self.most;
        let (forgotten, pinged) = (silence.as_secs(), self.most.as_secs());
        info!(
            "a NAT or firewall on the way forgot the connection after at most {forgotten} s of silence: it is pinged every {pinged} s from now on"
        );
    }
}

/// What is to be done when the time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Ping,
    Dead,
    /// Something came meanwhile.
    Nothing,
}

/// One connection's.
#[derive(Debug)]
pub(crate) struct Pulse {
    keep_alive: Duration,
    sent: Instant,
    received: Instant,
    /// The longest silence before anything that was sent since something was received.
    risked: Option<Duration>,
    pinged: Option<Instant>,
    round_trip: Duration,
    /// When a part of a log was acknowledged last.
    log: Option<Instant>,
}

impl Pulse {
    pub(crate) fn new(keep_alive: Duration) -> Self {
        let now = Instant::now();
        let round_trip = Duration::ZERO;
        Self { keep_alive, sent: now, received: now, risked: None, pinged: None, round_trip, log: None }
    }

    /// CONNACK came so long after CONNECT.
    pub(crate) fn began(&mut self, round_trip: Duration, patience: &mut Patience) {
        *self = Self { round_trip, ..Self::new(self.keep_alive) };
        patience.link_is_up();
    }

    pub(crate) fn sent(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.sent.max(self.received));
        // not only the first: evidence without an acknowledgement goes out before the silence
        self.risked = self.risked.max(Some(silence));
        self.sent = now;
    }

    pub(crate) fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
    }

    pub(crate) fn received(&mut self, now: Instant, patience: &mut Patience) {
        let silence = now.saturating_duration_since(self.sent.max(self.received));
        patience.survived(self.risked.take().unwrap_or(silence));
        self.received = now;
    }

    /// A part of a log was acknowledged.
    pub(crate) fn log_goes_on(&mut self, now: Instant) {
        self.log = Some(now);
    }

    fn is_in_a_log(&self) -> bool {
        let last = self.sent.max(self.received);
        self.round_trip >= SLOW && self.log.is_some_and(|at| last < at + LOG_GOES_ON)
    }

    /// The answer to a ping.
    pub(crate) fn answered(&mut self, now: Instant) {
        if let Some(pinged) = self.pinged.take() {
            let sample = now.saturating_duration_since(pinged);
            self.round_trip = sample.max(self.round_trip * 7 / 8);
        }
    }

    /// When [`Pulse::beat`] is to be asked.
    pub(crate) fn next(&self, patience: &Patience) -> Instant {
        if let Some(pinged) = self.pinged {
            return pinged.max(self.received) + self.answer_limit();
        }
        let silence = if self.is_in_a_log() { LOG_SILENCE.min(patience.silence) } else { patience.silence };
        let silent = self.sent.max(self.received) + silence;
        // MQTT 3.1.1 §3.1.2.10: the broker wants to hear something; and so does this client
        silent.min(self.sent.min(self.received) + self.keep_alive)
    }

    pub(crate) fn beat(&self, now: Instant, patience: &Patience) -> Beat {
        if now < self.next(patience) {
            Beat::Nothing
        } else if self.pinged.is_some() {
            Beat::Dead
        } else {
            Beat::Ping
        }
    }

    /// The silence to blame if the connection is dead now.
    pub(crate) fn risk(&self) -> Option<Duration> {
        self.risked
    }

    /// How long an answer to a ping may take.
    fn answer_limit(&self) -> Duration {
        if self.is_in_a_log() {
            return LOG_ANSWER.max(self.round_trip * 3);
        }
        ANSWER.min(self.keep_alive) + self.slack()
    }

    /// As a ping or CONNECT took.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// What a slow link takes longer than a quick one for anything.
    pub(crate) fn slack(&self) -> Duration {
        self.round_trip * ANSWER_ROUND_TRIPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(300);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A link on which something is said each time that nothing answers, and pings, behind a NAT that forgets after
    /// `forgets`; seconds before each ping.
    fn silences(forgets: Duration, count: usize) -> Vec<u64> {
        let mut patience = Patience::new(KEEP_ALIVE);
        let mut pulse = Pulse::new(KEEP_ALIVE);
        let mut now = Instant::now();
        pulse.began(Duration::ZERO, &mut patience);
        let mut silences = Vec::new();
        while silences.len() < count {
            let last = now;
            now = pulse.next(&patience);
            assert_eq!(pulse.beat(now, &patience), Beat::Ping);
            silences.push((now - last).as_secs());
            pulse.sent(now);
            pulse.pinged(now);
            if now - last < forgets {
                pulse.received(now, &mut patience);
                pulse.answered(now);
                pulse.sent(now);
            } else {
                now = pulse.next(&patience);
                assert_eq!(pulse.beat(now, &patience), Beat::Dead);
                patience.died_after(pulse.risk());
                pulse.began(Duration::ZERO, &mut patience);
                now = pulse.sent;
            }
        }
        silences
    }

    #[test]
    fn silences_double_up_to_the_keep_alive_where_nothing_forgets() {
        assert_eq!(silences(seconds(100_000), 7), [25, 50, 100, 200, 300, 300, 300]);
    }

    #[test]
    fn what_a_nat_forgot_once_it_is_never_given_the_time_to_forget_again() {
        assert_eq!(silences(seconds(30), 6), [25, 50, 25, 25, 25, 25]);
        assert_eq!(silences(seconds(130), 6), [25, 50, 100, 200, 100, 100]);
        assert_eq!(silences(seconds(20), 5), [25, 12, 12, 12, 12]);
    }

    #[test]
    fn a_link_that_was_down_is_not_taken_for_a_nat() {
        let mut patience = Patience::new(KEEP_ALIVE);
        patience.survived(seconds(25));
        patience.died_after(Some(seconds(50)));
        patience.link_is_down();
        patience.link_is_up();
        assert_eq!(patience.silence, seconds(50));
        assert_eq!(patience.most, KEEP_ALIVE);
    }

    #[test]
    fn between_parts_of_a_log_on_a_slow_link_silence_is_short_and_then_as_always() {
        let mut patience = Patience::new(KEEP_ALIVE);
        let mut pulse = Pulse::new(KEEP_ALIVE);
        pulse.began(seconds(2), &mut patience);
        let start = pulse.sent;
        pulse.log_goes_on(start + seconds(10));
        pulse.received(start + seconds(10), &mut patience);
        assert_eq!(pulse.beat(start + seconds(15), &patience), Beat::Ping);
        pulse.sent(start + seconds(15));
        pulse.pinged(start + seconds(15));
        assert_eq!(pulse.beat(start + seconds(24), &patience), Beat::Nothing);
        assert_eq!(pulse.beat(start + seconds(25), &patience), Beat::Dead);
        pulse.answered(start + seconds(24));
        pulse.received(start + seconds(70), &mut patience);
        assert_eq!(pulse.beat(start + seconds(76), &patience), Beat::Nothing);
    }

    #[test]
    fn one_late_acknowledgement_makes_no_slow_link_and_many_do() {
        let mut patience = Patience::new(KEEP_ALIVE);
        assert_eq!(patience.speed(), None);
        patience.moved(Some(3500));
        patience.moved(Some(400));
        assert!(patience.speed() > Some(3000));
        patience.stalled();
        patience.stalled();
        assert_eq!(patience.stall_times(), 4);
        (0..50).for_each(|_| patience.moved(Some(400)));
        assert_eq!((patience.speed(), patience.stall_times()), (Some(400), 1));
    }

    #[test]
    fn traffic_takes_the_place_of_pings_and_an_answer_may_take_many_round_trips() {
        let mut patience = Patience::new(KEEP_ALIVE);
        let mut pulse = Pulse::new(KEEP_ALIVE);
        pulse.began(seconds(2), &mut patience);
        let start = pulse.sent;
        for second in (10..100).step_by(10) {
            assert_eq!(pulse.beat(start + seconds(second), &patience), Beat::Nothing);
            pulse.received(start + seconds(second), &mut patience);
            pulse.sent(start + seconds(second));
        }
        assert_eq!(pulse.answer_limit(), ANSWER + seconds(16));
        // what is sent and never answered must not hide that the way is dead
        for second in (100..390).step_by(10) {
            assert_eq!(pulse.beat(start + seconds(second), &patience), Beat::Nothing);
            pulse.sent(start + seconds(second));
        }
        assert_eq!(pulse.beat(start + seconds(90) + KEEP_ALIVE, &patience), Beat::Ping);
    }
}
