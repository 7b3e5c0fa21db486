//! The named points: how the exchange is brought there, how the moment is seen, and whether a strike really fell into it.

use crate::plan::Moment;
use crate::rig::{Rig, burst};
use anyhow::{Context, Result};
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::fragment::is_fragment;
use keylime_mqtt_schemas::messages::{Down, Question, Up};
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::scratch::Tail;
use std::fs;
use std::time::{Duration, Instant};

/// Longer than any exchange takes to come to a point; then the strike falls at any time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at the verifier's log, which cannot announce itself.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Of the victim's link, bytes a second, while a log goes up: a part of a log then takes about a second.
const SLOW_FOR_LOGS: u32 = 16 * 1024;
/// While it answers a question: an answer of 300 to 700 bytes then takes some tenths of a second.
const SLOW_FOR_ANSWERS: u32 = 2 * 1024;

/// Where the victim's exchange is followed.
pub(crate) struct Watch {
    moment: Moment,
    id: String,
    mark: usize,
    log: Tail,
}

/// Whether the moment came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Yes,
    No,
}

impl Watch {
    /// Brings the victim's exchange on the way to the moment.
    pub(crate) fn provoke(rig: &mut Rig, moment: Moment, victim: usize, kills_agents: bool) -> Result<Self> {
        let id = rig.member(victim)?.id();
        let log = Tail::of(&rig.world.scratch.log("verifier"));
        let mark = rig.world.observer()?.mark();
        match moment {
            Moment::AnyTime | Moment::AcceptedToOutcome => {}
            Moment::PostToPatch => rig.member(victim)?.link.slow_down(Some(SLOW_FOR_ANSWERS)),
            Moment::CredentialToActivation => {
                rig.member(victim)?.device.forget_enrolment()?;
                rig.world.bridge.kill();
                rig.world.bridge.start()?;
                let member = rig.member(victim)?;
                member.device.start_agent()?;
                member.link.slow_down(Some(SLOW_FOR_ANSWERS));
            }
            Moment::ProveToProof => {
                rig.member(victim)?.link.slow_down(Some(SLOW_FOR_ANSWERS));
                // Without its keys the bridge can open no ticket.
                rig.world.bridge.kill();
                fs::remove_file(rig.bridge_dir.join("ticket.key"))?;
                rig.world.bridge.start()?;
            }
            Moment::MidBlob => {
                let member = rig.member(victim)?;
                member.device.run_programs(&burst())?;
                member.link.slow_down(Some(SLOW_FOR_LOGS));
                // Whoever comes anew says how long the log is now.
                if kills_agents {
                    member.device.kill_agent();
                    member.device.start_agent()?;
                } else {
                    rig.world.bridge.kill();
                    rig.world.bridge.start()?;
                }
            }
        }
        Ok(Self { moment, id, mark, log })
    }

    /// Returns when the moment has come.
    pub(crate) fn wait(&mut self, rig: &Rig, pause: Duration) -> Result<Came> {
        match self.moment {
            Moment::AnyTime => {
                std::thread::sleep(pause);
                return Ok(Came::Yes);
            }
            Moment::AcceptedToOutcome => {
                let words = format!("for agent '{}'...", self.id);
                let deadline = Instant::now() + PATIENCE;
                while Instant::now() < deadline {
                    let begins = |line: &str| line.contains("Starting verification") && line.contains(&words);
                    if self.log.read()?.lines().any(begins) {
                        self.mark = rig.world.observer()?.mark();
                        return Ok(Came::Yes);
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
                return Ok(Came::No);
            }
            _ => {}
        }
        let deadline = Instant::now() + PATIENCE;
        let observer = rig.world.observer()?;
        let opens = |seen: &Seen| self.opens(seen).then_some(());
        Ok(observer.wait_until(deadline, self.mark, opens).map_or(Came::No, |()| Came::Yes))
    }

    /// Whether the moment was still there at `struck`.
    pub(crate) fn was_hit(&self, rig: &Rig, struck: Instant) -> Result<bool> {
        let messages = rig.world.observer()?.seen_from(self.mark);
        let mut open = self.moment == Moment::AcceptedToOutcome;
        for seen in messages.iter().filter(|seen| seen.at <= struck) {
            if self.opens(seen) {
                open = true;
            } else if self.closes(seen) {
                open = false;
            }
        }
        Ok(open && self.moment.is_named())
    }

    fn opens(&self, seen: &Seen) -> bool {
        match self.moment {
            Moment::AnyTime | Moment::AcceptedToOutcome => false,
            Moment::PostToPatch => matches!(self.question(seen), Some(Question::Challenge(_))),
            Moment::CredentialToActivation => matches!(self.question(seen), Some(Question::Credential(_))),
            Moment::ProveToProof => matches!(self.question(seen), Some(Question::Prove(_))),
            Moment::MidBlob => matches!(self.question(seen), Some(Question::Need(_))),
        }
    }

    fn closes(&self, seen: &Seen) -> bool {
        match self.moment {
            Moment::AnyTime => false,
            Moment::AcceptedToOutcome => {
                seen.result().is_some_and(|result| result.agent_id.as_str() == self.id)
            }
            Moment::MidBlob => self.ends_a_part(seen),
            Moment::PostToPatch | Moment::CredentialToActivation | Moment::ProveToProof => self.speaks(seen),
        }
    }

    /// What the bridge asks the victim.
    fn question(&self, seen: &Seen) -> Option<Question> {
        question(seen, &self.id)
    }

    /// Whether the victim says anything but that it is there.
    fn speaks(&self, seen: &Seen) -> bool {
        let evidence = format!("/{}/evidence", self.id);
        let greets = || matches!(decode(&seen.payload), Ok(Up::Ready(_) | Up::Unchanged(_) | Up::Enrol(_)));
        seen.topic.ends_with(&evidence) && !greets()
    }

    /// Whether this is the last piece of a part of a log, or all of it.
    fn ends_a_part(&self, seen: &Seen) -> bool {
        if !self.speaks(seen) {
            return false;
        }
        if !is_fragment(&seen.payload) {
            return matches!(decode(&seen.payload), Ok(Up::Blob(_)));
        }
        let fragment: Option<ciborium::Value> = ciborium::from_reader(seen.payload.as_slice()).ok();
        let number = |place: usize| fragment.as_ref()?.as_array()?.get(place)?.as_integer();
        let (index, count) = (number(1).map(u64::try_from), number(2).map(u64::try_from));
        matches!((index, count), (Some(Ok(index)), Some(Ok(count))) if index + 1 == count)
    }
}

/// What a bridge asks the device with this id.
pub(crate) fn question(seen: &Seen, id: &str) -> Option<Question> {
    let challenge = format!("/{id}/challenge");
    if !seen.topic.ends_with(&challenge) {
        return None;
    }
    decode::<Down>(&seen.payload).ok().map(|down| down.question)
}

/// Ends what [`Watch::provoke`] did to links.
pub(crate) fn calm(rig: &mut Rig, victim: usize) -> Result<()> {
    rig.members.get(victim).context("no such device")?.link.slow_down(None);
    Ok(())
}
