//! How many sessions the bridge may open at the verifier.
//!
//! Keylime counts sessions per client address, and all devices behind a bridge share one; going over the limit is
//! punished with blocks that double to an hour and are never forgotten. Invariant: the bridge stays below the limit by itself, over
//! restarts too, devices that keep failing their proof use up their own patience rather than others', and a part is always left for
//! devices in good standing.
//!
//! Pure: time comes in, decisions come out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Part of the verifier's limit, in percent, that flows steadily; the rest may be spent at once, so that no window of the verifier's sees
/// more than its limit
const STEADY_PERCENT: u32 = 80;
/// Part of what may be spent at once, in percent, that only devices in good standing may use
const HEALTHY_PERCENT: u32 = 30;
/// Time over which Keylime counts
const WINDOW: Duration = Duration::from_secs(60);
/// Least time between two sessions of one device, over all bridges; Keylime allows 15 a minute, from whatever address
const SPACING: Duration = Duration::from_secs(5);
/// Longest wait of a device whose proofs keep failing
const MAX_SPACING: Duration = Duration::from_secs(300);
/// Wait after a 429 that names none: Keylime's first block
const DEFAULT_BLOCK: Duration = Duration::from_secs(60);
/// Devices remembered; above it those are forgotten whose wait has passed
const MAX_DEVICES: usize = 100_000;

/// Whether a device may open a session now
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// It may, and it has been counted
    Granted,
    /// Not before this has passed
    Wait(Duration),
}

/// Whether a device's last proof or attestation went well
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It held a session or passed before
    Healthy,
    /// New, or failing
    Unproven,
}

/// The budget of one bridge at one verifier
#[derive(Debug)]
pub struct SessionBudget {
    /// Sessions that flow in, per second
    rate: f64,
    /// Sessions that may be spent at once
    capacity: f64,
    /// Sessions that can be opened now
    level: f64,
    filled_at: Instant,
    blocked_until: Option<Instant>,
    /// [`SPACING`] for this bridge's part
    spacing: Duration,
    devices: HashMap<String, Device>,
}

#[derive(Debug)]
struct Device {
    granted: Instant,
    next: Instant,
    failures: u32,
    /// The verifier's own limit for this device
    blocked_until: Instant,
}

impl Device {
    fn new(now: Instant) -> Self {
        Self { granted: now, next: now, failures: 0, blocked_until: now }
    }

    /// When it may have a session again
    fn free_at(&self, standing: Standing, spacing: Duration) -> Instant {
        // whoever claims to be a device fails in its name, so failures count only against what has never been proven
        let next = match standing {
            Standing::Healthy => self.granted + spacing,
            Standing::Unproven => self.next,
        };
        next.max(self.blocked_until)
    }
}

impl SessionBudget {
    /// A full budget under the verifier's limit of sessions per minute and address, divided by the bridges that share the address
    pub fn new(sessions_per_minute: u32, replicas: u32, now: Instant) -> Self {
        let share = f64::from(sessions_per_minute) / f64::from(replicas.max(1));
        let steady = share * f64::from(STEADY_PERCENT) / 100.0;
        let capacity = (share - steady).floor().max(1.0);
        Self {
            rate: steady / WINDOW.as_secs_f64(),
            capacity,
            level: capacity,
            filled_at: now,
            blocked_until: None,
            spacing: SPACING * replicas.max(1),
            devices: HashMap::new(),
        }
    }

    /// For how long it has been filling: what a bridge that is restarted goes on from
    pub fn filling_for(&mut self, now: Instant) -> Duration {
        self.refill(now);
        Duration::try_from_secs_f64(self.level / self.rate).unwrap_or(WINDOW)
    }

    /// Goes on with a budget that has been filling for this long
    pub fn go_on(&mut self, filling_for: Duration) {
        self.level = (filling_for.as_secs_f64() * self.rate).min(self.capacity);
    }

    /// Asks for one session
    pub fn request(&mut self, agent: &str, standing: Standing, now: Instant) -> Budget {
        self.refill(now);
        if let Some(until) = self.blocked_until.filter(|until| *until > now) {
            return Budget::Wait(until - now);
        }
        let next = self.devices.get(agent).map(|device| device.free_at(standing, self.spacing));
        if let Some(next) = next.filter(|next| *next > now) {
            return Budget::Wait(next - now);
        }
        let kept = match standing {
            Standing::Healthy => 0.0,
            Standing::Unproven => (self.capacity * f64::from(HEALTHY_PERCENT) / 100.0).floor(),
        };
        let lacking = kept + 1.0 - self.level;
        if lacking > 0.0 {
            return Budget::Wait(self.time_to_fill(lacking));
        }
        self.level -= 1.0;
        self.forget_idle(now);
        let device = self.devices.entry(agent.to_owned()).or_insert(Device::new(now));
        device.granted = now;
        device.next = now + spacing(self.spacing, device.failures);
        Budget::Granted
    }

    /// Whether there is a session to spare: for a device that could do without, while half of what may be spent at once stays
    pub fn has_spare(&mut self, agent: &str, now: Instant) -> bool {
        self.refill(now);
        let blocked = self.blocked_until.is_some_and(|until| until > now);
        let waits = |device: &Device| device.free_at(Standing::Unproven, self.spacing) > now;
        let waits = self.devices.get(agent).is_some_and(waits);
        !blocked && !waits && self.level - 1.0 >= self.capacity / 2.0
    }

    /// A proof of this device failed: its waits double
    pub fn proof_failed(&mut self, agent: &str, now: Instant) {
        let device = self.devices.entry(agent.to_owned()).or_insert(Device::new(now));
        device.failures = device.failures.saturating_add(1);
        device.next = now + spacing(self.spacing, device.failures);
    }

    /// A proof of this device passed: its waits are the shortest again
    pub fn proof_passed(&mut self, agent: &str) {
        if let Some(device) = self.devices.get_mut(agent) {
            device.failures = 0;
        }
    }

    /// The verifier said 429 to sessions of this device alone: it does not ask for the time that was named
    pub fn agent_limited(&mut self, agent: &str, retry_after: Option<Duration>, now: Instant) {
        let device = self.devices.entry(agent.to_owned()).or_insert(Device::new(now));
        device.blocked_until = now + retry_after.unwrap_or(DEFAULT_BLOCK);
    }

    /// The verifier said 429 to a session: nobody asks for the time that it named
    pub fn rate_limited(&mut self, retry_after: Option<Duration>, now: Instant) {
        let until = now + retry_after.unwrap_or(DEFAULT_BLOCK);
        self.blocked_until = Some(self.blocked_until.map_or(until, |blocked| blocked.max(until)));
        self.refill(now);
        self.level = 0.0;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.level = (self.level + passed.as_secs_f64() * self.rate).min(self.capacity);
    }

    fn time_to_fill(&self, lacking: f64) -> Duration {
        let seconds = if self.rate > 0.0 { lacking / self.rate } else { WINDOW.as_secs_f64() };
        Duration::from_secs_f64(seconds.clamp(0.01, WINDOW.as_secs_f64()))
    }

    fn forget_idle(&mut self, now: Instant) {
        if self.devices.len() >= MAX_DEVICES {
            let spacing = self.spacing;
            self.devices.retain(|_, device| device.free_at(Standing::Unproven, spacing) > now);
        }
    }
}

fn spacing(least: Duration, failures: u32) -> Duration {
    least.saturating_mul(1 << failures.min(10)).min(MAX_SPACING.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 50;

    fn granted(budget: Budget) -> bool {
        budget == Budget::Granted
    }

    /// Most of these times, in milliseconds, that any minute has
    fn in_the_busiest_minute(times: &[u64]) -> usize {
        let within = |from: &u64| times.iter().filter(|at| (*from..from + 60_000).contains(at)).count();
        times.iter().map(within).max().unwrap_or_default()
    }

    #[test]
    fn no_minute_ever_sees_more_sessions_than_the_verifier_allows() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        let mut times = Vec::new();
        // a quiet spell that fills the bucket, then a thousand devices at once
        for millis in (120_000u64..420_000).step_by(50) {
            let now = start + Duration::from_millis(millis);
            if granted(budget.request(&format!("device-{}", millis % 1000), Standing::Healthy, now)) {
                times.push(millis);
            }
        }
        assert!(in_the_busiest_minute(&times) <= LIMIT as usize);
        assert!(times.len() >= 5 * 38, "and the budget is used: {}", times.len());
    }

    #[test]
    fn no_minute_sees_more_over_restarts_however_often() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        let mut times = Vec::new();
        for millis in (0u64..300_000).step_by(50) {
            let now = start + Duration::from_millis(millis);
            if millis % 5000 == 0 {
                let filling_for = budget.filling_for(now);
                budget = SessionBudget::new(LIMIT, 1, now);
                budget.go_on(filling_for);
            }
            if granted(budget.request(&format!("device-{millis}"), Standing::Healthy, now)) {
                times.push(millis);
            }
        }
        assert!(in_the_busiest_minute(&times) <= LIMIT as usize);
        assert!(times.len() >= 5 * 38, "and the budget is used: {}", times.len());
    }

    #[test]
    fn a_429_silences_every_device_for_the_time_it_names() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        budget.rate_limited(Some(Duration::from_secs(120)), start);
        assert_eq!(budget.request("a", Standing::Healthy, start), Budget::Wait(Duration::from_secs(120)));
        assert!(!granted(budget.request("b", Standing::Healthy, start + Duration::from_secs(119))));
        assert!(granted(budget.request("b", Standing::Healthy, start + Duration::from_secs(121))));
    }

    #[test]
    fn a_429_for_one_device_silences_that_one_alone() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        budget.agent_limited("a", Some(Duration::from_secs(120)), start);
        for standing in [Standing::Healthy, Standing::Unproven] {
            assert_eq!(budget.request("a", standing, start), Budget::Wait(Duration::from_secs(120)));
        }
        assert!(!budget.has_spare("a", start + Duration::from_secs(119)));
        assert!(granted(budget.request("b", Standing::Unproven, start)));
        assert!(granted(budget.request("a", Standing::Healthy, start + Duration::from_secs(120))));
    }

    #[test]
    fn bridges_that_share_a_device_share_what_the_verifier_allows_it() {
        let start = Instant::now();
        let mut bridges = [(); 3].map(|()| SessionBudget::new(LIMIT, 3, start));
        let mut times = Vec::new();
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            for bridge in &mut bridges {
                if granted(bridge.request("a", Standing::Healthy, now)) {
                    times.push(second * 1000);
                }
            }
        }
        assert!(in_the_busiest_minute(&times) <= 15);
    }

    #[test]
    fn a_device_whose_proofs_fail_waits_twice_as_long_each_time_up_to_a_cap() {
        let mut now = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            now += Duration::from_secs(600);
            assert!(granted(budget.request("a", Standing::Unproven, now)));
            budget.proof_failed("a", now);
            match budget.request("a", Standing::Unproven, now) {
                Budget::Wait(wait) => waits.push(wait.as_secs()),
                Budget::Granted => panic!("granted right after a failed proof"),
            }
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300, 300]);
        budget.proof_passed("a");
        now += Duration::from_secs(600);
        assert!(granted(budget.request("a", Standing::Healthy, now)));
        assert_eq!(budget.request("a", Standing::Healthy, now), Budget::Wait(SPACING));
    }

    #[test]
    fn proofs_that_others_failed_in_its_name_delay_no_device_that_has_proven_itself() {
        let mut now = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, now);
        for _ in 0..9 {
            now += Duration::from_secs(600);
            assert!(granted(budget.request("a", Standing::Unproven, now)));
            budget.proof_failed("a", now);
        }
        assert_eq!(budget.request("a", Standing::Unproven, now), Budget::Wait(MAX_SPACING));
        assert_eq!(budget.request("a", Standing::Healthy, now), Budget::Wait(SPACING));
        assert!(granted(budget.request("a", Standing::Healthy, now + SPACING)));
    }

    #[test]
    fn strangers_cannot_use_up_what_is_kept_for_devices_in_good_standing() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        let now = start + Duration::from_secs(60);
        let strangers = (0..100)
            .filter(|n| granted(budget.request(&format!("stranger-{n}"), Standing::Unproven, now)))
            .count();
        assert!(strangers > 0);
        assert!(granted(budget.request("known", Standing::Healthy, now)));
    }

    #[test]
    fn sessions_are_spared_only_while_half_of_what_may_be_spent_at_once_is_left() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        let mut spared = 0;
        while budget.has_spare(&format!("device-{spared}"), start) {
            assert!(granted(budget.request(&format!("device-{spared}"), Standing::Healthy, start)));
            spared += 1;
        }
        assert_eq!(spared, 5, "of ten");
        assert!(granted(budget.request("in need", Standing::Healthy, start)));
        let later = start + WINDOW;
        assert!(budget.has_spare("device-0", later));
        budget.rate_limited(None, later);
        assert!(!budget.has_spare("device-0", later + Duration::from_secs(1)));
    }

    #[test]
    fn those_are_forgotten_whose_wait_has_passed_when_too_many_are_remembered() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 1, start);
        for n in 0..=MAX_DEVICES + 100 {
            let now = start + Duration::from_secs(2) * u32::try_from(n).unwrap();
            assert!(granted(budget.request(&format!("device-{n}"), Standing::Healthy, now)));
            assert!(budget.devices.len() <= MAX_DEVICES);
        }
    }

    #[test]
    fn the_wait_that_is_named_suffices() {
        let start = Instant::now();
        let mut budget = SessionBudget::new(LIMIT, 2, start);
        let mut now = start;
        for n in 0..200 {
            let agent = format!("device-{n}");
            while let Budget::Wait(wait) = budget.request(&agent, Standing::Unproven, now) {
                assert!(wait > Duration::ZERO);
                now += wait;
            }
        }
        assert!(now - start <= Duration::from_secs(200 * 60 / 19));
    }
}
