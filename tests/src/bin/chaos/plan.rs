//! What is struck, when, and in which order: all of it drawn from one seed.
//!
//! The run has three parts, so that growth can be seen in processes that live long: in the first no bridge is killed, in
//! the second no agent, in the third everything.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// A process that can be struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    Agent,
    Bridge,
    Broker,
    Registrar,
    Verifier,
    /// The device loses its power: TPM and agent at once, no TPM2_Shutdown, and it boots anew
    Swtpm,
}

pub(crate) const PARTS: [Part; 6] =
    [Part::Agent, Part::Bridge, Part::Broker, Part::Registrar, Part::Verifier, Part::Swtpm];

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "agent",
            Self::Bridge => "bridge",
            Self::Broker => "broker",
            Self::Registrar => "registrar",
            Self::Verifier => "verifier",
            Self::Swtpm => "swtpm",
        })
    }
}

/// When a strike falls: at a point of the exchange, seen on the broker or in the verifier's log, or at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Moment {
    AnyTime,
    /// The challenge is out, the evidence is not
    PostToPatch,
    /// The verifier has answered 202 and judges; no result yet
    AcceptedToOutcome,
    /// The registrar's challenge is out, the answer is not
    CredentialToActivation,
    /// The session's nonce is out, the proof is not
    ProveToProof,
    /// A part of a log is on its way
    MidBlob,
}

pub(crate) const MOMENTS: [Moment; 6] = [
    Moment::AnyTime,
    Moment::PostToPatch,
    Moment::AcceptedToOutcome,
    Moment::CredentialToActivation,
    Moment::ProveToProof,
    Moment::MidBlob,
];

impl Moment {
    pub(crate) fn is_named(self) -> bool {
        self != Self::AnyTime
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AnyTime => "any time",
            Self::PostToPatch => "POST..PATCH",
            Self::AcceptedToOutcome => "202..outcome",
            Self::CredentialToActivation => "Credential..Activation",
            Self::ProveToProof => "Prove..Proof",
            Self::MidBlob => "mid Blob",
        })
    }
}

/// Which processes live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// No bridge is killed
    Devices,
    /// No agent is killed
    Servers,
    Everything,
}

/// Parts killed together.
#[derive(Clone, Debug)]
pub(crate) struct Strike {
    pub(crate) act: Act,
    /// In the order of their deaths; they come back in the order of `back`
    pub(crate) parts: Vec<Part>,
    pub(crate) back: Vec<Part>,
    pub(crate) moment: Moment,
    /// Which device it befalls, and whose exchange is waited for
    pub(crate) victim: usize,
    /// Of a strike at any time: how long after the last
    pub(crate) pause: Duration,
    /// How long they stay away
    pub(crate) down: Duration,
}

/// All strikes of a run.
pub(crate) fn strikes(seed: u64, kills: usize, devices: &[Kind]) -> Vec<Strike> {
    let mut draw = StdRng::seed_from_u64(seed);
    let mut plan = Vec::new();
    let mut victims = VecDeque::new();
    for (act, kills) in acts(kills, &mut draw) {
        for mut parts in together(kills, &mut draw) {
            let moment = moment(act, &mut draw);
            if victims.is_empty() {
                let mut all: Vec<usize> = (0..devices.len()).collect();
                all.shuffle(&mut draw);
                victims.extend(all);
            }
            let fits = |victim: &usize| {
                moment != Moment::MidBlob || devices.get(*victim).is_some_and(|kind| kind.has_ima())
            };
            let place = victims.iter().position(fits).and_then(|place| victims.remove(place));
            let victim = place.or_else(|| (0..devices.len()).find(fits)).unwrap_or(0);
            parts.shuffle(&mut draw);
            let mut back = parts.clone();
            back.shuffle(&mut draw);
            let pause = Duration::from_millis(draw.random_range(0..4000));
            let down = Duration::from_millis(draw.random_range(0..2000));
            plan.push(Strike { act, parts, back, moment, victim, pause, down });
        }
    }
    plan
}

/// Of each part an eighth of all kills, and a quarter drawn freely.
fn acts(kills: usize, draw: &mut StdRng) -> [(Act, Vec<Part>); 3] {
    let mut all: Vec<Part> =
        PARTS.into_iter().flat_map(|part| std::iter::repeat_n(part, kills / 8)).collect();
    while all.len() < kills {
        all.extend(PARTS.choose(draw));
    }
    all.shuffle(draw);
    let (mut devices, mut servers, mut everything) = (Vec::new(), Vec::new(), Vec::new());
    for part in all {
        let last_act = draw.random_ratio(2, 5);
        match part {
            _ if last_act => everything.push(part),
            Part::Agent | Part::Swtpm => devices.push(part),
            Part::Bridge => servers.push(part),
            _ if draw.random() => devices.push(part),
            _ => servers.push(part),
        }
    }
    [(Act::Devices, devices), (Act::Servers, servers), (Act::Everything, everything)]
}

/// Two strikes in three befall one part, the others two or three different ones.
fn together(mut kills: Vec<Part>, draw: &mut StdRng) -> Vec<Vec<Part>> {
    let mut strikes = Vec::new();
    while let Some(part) = kills.pop() {
        let size = *[1, 1, 1, 1, 2, 3].choose(draw).unwrap_or(&1);
        let mut parts = vec![part];
        // A power cut ends the agent too: both in one strike would count one death twice.
        let clash = |held: &[Part], next: Part| {
            let device = |part: &Part| matches!(part, Part::Agent | Part::Swtpm);
            held.contains(&next) || (device(&next) && held.iter().any(device))
        };
        while parts.len() < size
            && let Some(place) = kills.iter().position(|next| !clash(&parts, *next))
        {
            parts.push(kills.swap_remove(place));
        }
        strikes.push(parts);
    }
    strikes
}

/// Two in three at a named point, for some of these come to nothing.
fn moment(act: Act, draw: &mut StdRng) -> Moment {
    use Moment::{AcceptedToOutcome, CredentialToActivation, MidBlob, PostToPatch, ProveToProof};
    if draw.random_ratio(1, 3) {
        return Moment::AnyTime;
    }
    // A device is given a credential again only by a bridge that has forgotten it, so both are restarted for it.
    let choices: &[(Moment, u32)] = match act {
        Act::Devices => &[(PostToPatch, 4), (AcceptedToOutcome, 4), (MidBlob, 3)],
        Act::Servers => &[(PostToPatch, 3), (AcceptedToOutcome, 3), (ProveToProof, 2), (MidBlob, 1)],
        Act::Everything => &[
            (PostToPatch, 1),
            (AcceptedToOutcome, 1),
            (CredentialToActivation, 4),
            (ProveToProof, 2),
            (MidBlob, 1),
        ],
    };
    choices.choose_weighted(draw, |(_, weight)| *weight).map_or(PostToPatch, |(moment, _)| *moment)
}

/// What a device is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    QuoteOnly,
    Ima,
    MeasuredBoot,
    All,
}

impl Kind {
    /// Keylime fails such a device for good after a reboot, until it is added again.
    pub(crate) fn has_ima(self) -> bool {
        matches!(self, Self::Ima | Self::All)
    }
}
