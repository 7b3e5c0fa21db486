//! The machine that lies: every payload passes through it, and comes out as it was or not.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::messages::{Down, Presence, Up};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use crate::flow::Flow;
use crate::known::{Forger, Known, Memory};
use crate::lie::{LIES, Tell, Traffic};
use crate::table::Table;

/// Copies in a flood, besides as much rubbish.
const FLOOD: usize = 30;
/// A delayed message comes within so many intervals.
const LATE_INTERVALS: u32 = 2;
/// Copies of a message come apart by this.
const APART: Duration = Duration::from_millis(20);
/// So many forged presences at most, within an interval.
const PRESENCES: u32 = 8;

/// Which way a message goes, and on which of the device's topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From a device to the bridge.
    Up,
    /// From the bridge to a device.
    Down,
    /// From a device to the bridge: that it is there, or gone.
    Presence,
}

/// What arrives: on which topic of which device, how much later than it would have, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The device in the topic.
    pub device: String,
    /// What the topic is for.
    pub on: Direction,
    /// After so long.
    pub after: Duration,
    /// What.
    pub payload: Vec<u8>,
}

/// What the liar is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It carries what it is given, and remembers it.
    Honest,
    /// One lie of the list in one flow, to one in so many of the messages to which it can be told.
    One(usize, Flow, u32),
    /// Any lie, those before the others that were told least in the flow; to one in so many messages.
    Any(u32),
}

/// A lie that was told and of which nothing has come yet.
#[derive(Debug)]
struct Open {
    device: String,
    lie: usize,
    flow: Flow,
    at: Duration,
}

/// A broker that lies.
pub struct Liar {
    rng: StdRng,
    forger: Box<dyn Forger + Send>,
    interval: Duration,
    plan: Plan,
    memories: BTreeMap<String, Memory>,
    flows: BTreeMap<String, Flow>,
    /// What waits until another message of its kind has passed it.
    held: BTreeMap<(String, Direction), Vec<u8>>,
    open: Vec<Open>,
    table: Table,
}

impl Liar {
    /// A liar that does not lie yet. `interval` is the verifier's.
    pub fn new(seed: u64, interval: Duration, forger: Box<dyn Forger + Send>) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            forger,
            interval,
            plan: Plan::Honest,
            memories: BTreeMap::new(),
            flows: BTreeMap::new(),
            held: BTreeMap::new(),
            open: Vec::new(),
            table: Table::default(),
        }
    }

    /// What it is about from now on.
    pub fn plan(&mut self, plan: Plan) {
        self.plan = plan;
    }

    /// Lies no more, and lets go of what it held back: what was sent before is lost.
    pub fn stop(&mut self) {
        self.plan = Plan::Honest;
        self.held.clear();
    }

    /// Where in its life this device is from now on.
    pub fn in_flow(&mut self, device: &str, flow: Flow) {
        self.flows.insert(device.to_owned(), flow);
    }

    /// The device or its bridge has restarted: what was said before is of another life.
    pub fn restarted(&mut self, device: &str) {
        self.memories.entry(device.to_owned()).or_default().restarted();
    }

    /// The verifier has judged the device: so much came of the lies about it.
    pub fn judged(&mut self, device: &str, now: Duration) {
        let (of_it, others) =
            std::mem::take(&mut self.open).into_iter().partition(|open| open.device == device);
        self.open = others;
        let of_it: Vec<Open> = of_it;
        for open in of_it {
            let cell = self.table.cell(open.lie, open.flow);
            // an attestation ends within its interval; the next one has its own
            if now.saturating_sub(open.at) > self.interval * 3 / 2 {
                cell.delayed += 1;
            } else {
                cell.refused += 1;
            }
        }
    }

    /// What was told and what came of it.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A payload passes. What arrives instead may be the same, nothing, or much.
    pub fn pass(
        &mut self,
        device: &str,
        direction: Direction,
        payload: &[u8],
        now: Duration,
    ) -> Vec<Delivery> {
        let said = Said::read(direction, payload);
        let memory = self.memories.entry(device.to_owned()).or_default();
        match &said {
            Said::Up(up) => memory.saw_up(payload, Some(up)),
            Said::Down(down) => memory.saw_down(payload, Some(down)),
            Said::Other(Direction::Up) => memory.saw_up(payload, None),
            Said::Other(Direction::Down) => memory.saw_down(payload, None),
            Said::Other(Direction::Presence) => memory.saw_presence(payload),
        }
        let context = self.flows.get(device).copied().unwrap_or(Flow::First);
        let flow = said.kind().and_then(Flow::of_kind).unwrap_or(context);
        let waited = self.held.remove(&(device.to_owned(), direction));
        let mut deliveries = self
            .lie(device, direction, payload, &said, flow, now)
            .unwrap_or_else(|| vec![arrives(device, direction, Duration::ZERO, payload)]);
        if let Some(payload) = waited {
            deliveries.push(arrives(device, direction, APART, &payload));
        }
        deliveries
    }

    /// Nothing when there is no lie to tell about this message.
    fn lie(
        &mut self,
        device: &str,
        direction: Direction,
        payload: &[u8],
        said: &Said,
        flow: Flow,
        now: Duration,
    ) -> Option<Vec<Delivery>> {
        for lie in self.candidates(flow) {
            if let Some(deliveries) = self.tell(lie, device, direction, payload, said) {
                self.table.cell(lie, flow).told += 1;
                self.open.push(Open { device: device.to_owned(), lie, flow, at: now });
                return Some(deliveries);
            }
        }
        None
    }

    fn candidates(&mut self, flow: Flow) -> Vec<usize> {
        match self.plan {
            Plan::Honest => Vec::new(),
            Plan::One(lie, where_to, one_in) => {
                let now = where_to == flow && self.rng.random_range(0..one_in.max(1)) == 0;
                if now { vec![lie] } else { Vec::new() }
            }
            Plan::Any(one_in) => {
                if self.rng.random_range(0..one_in.max(1)) != 0 {
                    return Vec::new();
                }
                let mut lies: Vec<usize> = LIES
                    .iter()
                    .enumerate()
                    .filter(|(_, lie)| lie.flows.contains(&flow))
                    .map(|(at, _)| at)
                    .collect();
                lies.shuffle(&mut self.rng);
                lies.sort_by_key(|lie| self.table.told(*lie, flow));
                lies
            }
        }
    }

    fn tell(
        &mut self,
        lie: usize,
        device: &str,
        direction: Direction,
        payload: &[u8],
        said: &Said,
    ) -> Option<Vec<Delivery>> {
        let at_once = |payload: Vec<u8>| vec![arrives(device, direction, Duration::ZERO, &payload)];
        match &LIES.get(lie)?.tell {
            Tell::Traffic(traffic) => self.divert(*traffic, device, direction, payload),
            Tell::Bytes(edit) => {
                let mut changed = payload.to_vec();
                edit(&mut changed, &mut self.rng);
                (changed != payload).then(|| at_once(changed))
            }
            Tell::Up(edit) => {
                let Said::Up(up) = said else { return None };
                let mut up = (**up).clone();
                let edited = edit(&mut up, &mut self.known(device)?);
                let changed = encode(&up).ok().filter(|changed| edited && changed != payload)?;
                Some(at_once(changed))
            }
            Tell::Down(edit) => {
                let Said::Down(down) = said else { return None };
                let mut down = (**down).clone();
                let edited = edit(&mut down.question, &mut self.known(device)?);
                let changed = encode(&down).ok().filter(|changed| edited && changed != payload)?;
                Some(at_once(changed))
            }
        }
    }

    fn known(&mut self, device: &str) -> Option<Known<'_>> {
        let own = self.memories.get(device)?;
        let others = self.memories.iter().filter(|(other, _)| *other != device);
        Some(Known {
            rng: &mut self.rng,
            id: device.parse().ok()?,
            own,
            others: others.map(|(_, memory)| memory).collect(),
            forger: &*self.forger,
        })
    }

    fn divert(
        &mut self,
        traffic: Traffic,
        device: &str,
        direction: Direction,
        payload: &[u8],
    ) -> Option<Vec<Delivery>> {
        let to = |device: &str, after, payload: &[u8]| arrives(device, direction, after, payload);
        let real = to(device, Duration::ZERO, payload);
        Some(match traffic {
            Traffic::Drop => Vec::new(),
            Traffic::Delay => {
                let most = self.interval * LATE_INTERVALS;
                vec![to(device, most.mul_f64(self.rng.random_range(0.05..1.0)), payload)]
            }
            Traffic::Repeat => vec![real, to(device, APART, payload), to(device, APART * 10, payload)],
            Traffic::Reorder => {
                self.held.insert((device.to_owned(), direction), payload.to_vec());
                Vec::new()
            }
            Traffic::Replay => {
                let memory = self.memories.get(device)?;
                let past: Vec<&Vec<u8>> =
                    memory.past(direction).iter().filter(|past| *past != payload).collect();
                let past = past.choose(&mut self.rng)?;
                if self.rng.random() {
                    vec![to(device, Duration::ZERO, past)]
                } else {
                    vec![to(device, Duration::ZERO, past), real]
                }
            }
            Traffic::ReplayFormer => {
                let memory = self.memories.get(device)?;
                let past: Vec<&Vec<u8>> = memory.former(direction)?.iter().collect();
                let past = past.choose(&mut self.rng)?;
                if self.rng.random() {
                    vec![to(device, Duration::ZERO, past)]
                } else {
                    vec![to(device, Duration::ZERO, past), real]
                }
            }
            Traffic::Swap => {
                let others: Vec<&String> = self.memories.keys().filter(|other| *other != device).collect();
                let other = (*others.choose(&mut self.rng)?).clone();
                let memory = self.memories.get(&other)?;
                let theirs = memory.past(direction).back();
                let mut both = vec![to(&other, Duration::ZERO, payload)];
                both.extend(theirs.map(|theirs| to(device, Duration::ZERO, theirs)));
                both
            }
            Traffic::Flood => {
                let mut all = vec![real];
                for at in 1..=FLOOD {
                    let after = APART * u32::try_from(at).unwrap_or(u32::MAX);
                    all.push(to(device, after, payload));
                    let rubbish: Vec<u8> =
                        (0..self.rng.random_range(0..200)).map(|_| self.rng.random()).collect();
                    all.push(to(device, after, &rubbish));
                }
                all
            }
            Traffic::Presence => {
                let mut all = vec![real];
                for _ in 0..self.rng.random_range(1..=PRESENCES) {
                    let presence = encode(&Presence { online: self.rng.random() }).ok()?;
                    let after = self.interval.mul_f64(self.rng.random_range(0.0..1.0));
                    all.push(arrives(device, Direction::Presence, after, &presence));
                }
                all
            }
        })
    }
}

fn arrives(device: &str, on: Direction, after: Duration, payload: &[u8]) -> Delivery {
    Delivery { device: device.to_owned(), on, after, payload: payload.to_vec() }
}

/// A payload as far as it can be read: a part of a longer message tells nothing of itself, and a presence nothing else.
enum Said {
    Up(Box<Up>),
    Down(Box<Down>),
    Other(Direction),
}

impl Said {
    fn read(direction: Direction, payload: &[u8]) -> Self {
        let read = match direction {
            Direction::Up => decode(payload).map(|up| Self::Up(Box::new(up))),
            Direction::Down => decode(payload).map(|down| Self::Down(Box::new(down))),
            Direction::Presence => return Self::Other(direction),
        };
        read.unwrap_or(Self::Other(direction))
    }

    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Up(up) => Some(up.kind()),
            Self::Down(down) => Some(down.question.kind()),
            Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use keylime_mqtt_schemas::messages::{Bounded, Signed};

    use super::*;
    use crate::known::Stamp;
    use crate::lie::lie_named;

    struct Nobody;

    impl Forger for Nobody {
        fn public(&self) -> Vec<u8> {
            Vec::new()
        }

        fn sign(&self, _: Stamp<'_>) -> Signed {
            Signed { attest: Bounded::default(), signature: Bounded::default() }
        }
    }

    fn told(name: &str, direction: Direction, payload: &[u8]) -> Vec<Delivery> {
        let mut liar = Liar::new(1, Duration::from_secs(10), Box::new(Nobody));
        liar.in_flow("device-1", Flow::Steady);
        liar.plan(Plan::One(lie_named(name).unwrap(), Flow::Steady, 1));
        liar.pass("device-1", direction, payload, Duration::ZERO)
    }

    #[test]
    fn a_presence_is_dropped_delayed_and_flooded_like_any_message_and_forged_beside_others() {
        let online = encode(&Presence { online: true }).unwrap();
        assert_eq!(told("dropped", Direction::Presence, &online), []);
        let late = told("delayed", Direction::Presence, &online);
        assert!(
            matches!(&late[..], [one] if one.on == Direction::Presence && !one.after.is_zero()),
            "{late:?}"
        );
        let flood = told("flooded", Direction::Presence, &online);
        assert_eq!(flood.iter().filter(|one| one.payload == online).count(), 1 + FLOOD);
        for direction in [Direction::Up, Direction::Down] {
            let arrives = told("a forged presence", direction, b"said");
            let (said, forged) = arrives.split_first().unwrap();
            assert_eq!((said.on, &said.payload[..]), (direction, &b"said"[..]));
            assert!(!forged.is_empty());
            for one in forged {
                assert_eq!(one.on, Direction::Presence);
                decode::<Presence>(&one.payload).unwrap();
            }
        }
    }
}
