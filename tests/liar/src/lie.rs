//! The list of lies. An entry is a lie that a broker can tell, with the flows in which there is something to lie about.

use rand::rngs::StdRng;

use keylime_mqtt_schemas::messages::{Question, Up};

use crate::flow::Flow;
use crate::known::{Known, flip};
use crate::{down, up};
use rand::Rng as _;

/// A lie.
#[derive(Debug)]
pub struct Lie {
    /// What is done, in words.
    pub name: &'static str,
    /// Where.
    pub flows: &'static [Flow],
    pub(crate) tell: Tell,
}

/// How it is told. Edits say whether there was something to edit.
pub(crate) enum Tell {
    Traffic(Traffic),
    Bytes(fn(&mut Vec<u8>, &mut StdRng)),
    Up(fn(&mut Up, &mut Known<'_>) -> bool),
    Down(fn(&mut Question, &mut Known<'_>) -> bool),
}

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Traffic(_) => "Traffic",
            Self::Bytes(_) => "Bytes",
            Self::Up(_) => "Up",
            Self::Down(_) => "Down",
        })
    }
}

/// What can be done to a message without looking into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Drop,
    Delay,
    Repeat,
    Reorder,
    Replay,
    ReplayFormer,
    Swap,
    Flood,
    /// As it is, and then the device is said to come and go.
    Presence,
}

use Flow::{BridgeRestart, Enrolment, First, Logs, Proof, Reboot, Sleeping, Statement, Steady};

const ANY: &[Flow] = &Flow::ALL;
/// Flows in which a device is challenged.
const CHALLENGED: &[Flow] = &[First, Steady, Reboot, Sleeping, BridgeRestart];
/// Flows in which it says all about its boot.
const READY: &[Flow] = &[First, Reboot, BridgeRestart];
/// Flows in which it says `Ready` and has seen a ticket.
const TICKETED: &[Flow] = &[Reboot, BridgeRestart];
/// Flows of a device with an IMA policy whose log goes on.
const LINES: &[Flow] = &[First, Steady, Sleeping, BridgeRestart];

const fn traffic(name: &'static str, flows: &'static [Flow], what: Traffic) -> Lie {
    Lie { name, flows, tell: Tell::Traffic(what) }
}

const fn up(name: &'static str, flows: &'static [Flow], edit: fn(&mut Up, &mut Known<'_>) -> bool) -> Lie {
    Lie { name, flows, tell: Tell::Up(edit) }
}

const fn down(
    name: &'static str,
    flows: &'static [Flow],
    edit: fn(&mut Question, &mut Known<'_>) -> bool,
) -> Lie {
    Lie { name, flows, tell: Tell::Down(edit) }
}

/// Every lie there is.
pub const LIES: &[Lie] = &[
    traffic("dropped", ANY, Traffic::Drop),
    traffic("delayed", ANY, Traffic::Delay),
    traffic("repeated", ANY, Traffic::Repeat),
    traffic("reordered", ANY, Traffic::Reorder),
    traffic("replayed", ANY, Traffic::Replay),
    traffic("replayed from before a restart", TICKETED, Traffic::ReplayFormer),
    traffic("swapped with another device's", ANY, Traffic::Swap),
    traffic("flooded", ANY, Traffic::Flood),
    traffic("a forged presence", ANY, Traffic::Presence),
    Lie { name: "a bit turned", flows: ANY, tell: Tell::Bytes(|bytes, rng| flip(bytes, rng)) },
    Lie {
        name: "truncated",
        flows: ANY,
        tell: Tell::Bytes(|bytes, rng| bytes.truncate(rng.random_range(0..bytes.len().max(1)))),
    },
    Lie {
        name: "lengthened",
        flows: ANY,
        tell: Tell::Bytes(|bytes, rng| {
            bytes.extend((0..rng.random_range(1..40)).map(|_| rng.random::<u8>()));
        }),
    },
    up("another EK", &[Enrolment], up::another_ek),
    up("the liar's AK for the device's EK", &[Enrolment], up::own_ak_enrolled),
    up("no EK certificate", &[Enrolment], up::no_certificate),
    up("an edited activation tag", &[Enrolment], up::activation_tag),
    up("another credential answered", &[Enrolment], up::activation_credential),
    up("an edited boot time", READY, up::boot_time),
    up("another boot", READY, up::boot_marker),
    up("an edited boot statement", READY, up::boot_statement),
    up("another AK in Ready", READY, up::ready_ak),
    up("the liar's key in place of the AK", &[Proof, First, Reboot, BridgeRestart], up::key_substitution),
    up("another length of the IMA log", &[First, BridgeRestart], up::ima_entries),
    up("another UEFI log announced", READY, up::uefi_announced),
    up("the ticket taken away", TICKETED, up::no_ticket),
    up("another device's ticket", READY, up::others_ticket),
    up("a superseded ticket", TICKETED, up::superseded_ticket),
    up("an edited ticket", TICKETED, up::edited_ticket),
    up("a sleep that is none", READY, up::sleep),
    up("other PCRs offered", READY, up::pcrs_offered),
    up("another Ready referred to", &[Sleeping], up::unchanged),
    up("an edited certification", &[Proof], up::certification),
    up("an edited proof's signature", &[Proof], up::proof_signature),
    up("an edited tag", CHALLENGED, up::evidence_tag),
    up("edited clock information", CHALLENGED, up::clock),
    up("an edited signature", CHALLENGED, up::signature),
    up("edited PCR values", CHALLENGED, up::values),
    up("PCR values taken away", &[First, Reboot, BridgeRestart], up::no_values),
    up("edited IMA lines", LINES, up::ima_edited),
    up("IMA lines taken away", LINES, up::ima_removed),
    up("IMA lines added", LINES, up::ima_added),
    up("another offset of IMA lines", LINES, up::ima_offset),
    up("a forged NotYet", CHALLENGED, up::not_yet),
    up("an edited part", &[Logs], up::part),
    up("a part of elsewhere", &[Logs], up::part_offset),
    up("another total", &[Logs], up::total),
    up("an end of the log", &[Logs], up::part_empty),
    up("an edited statement", &[Statement], up::statement),
    down("an edited credential", &[Enrolment], down::credential),
    down("a forged Enrolled", &[Enrolment], down::enrolled),
    down("another session nonce", &[Proof], down::session_nonce),
    down("another nonce", CHALLENGED, down::nonce),
    down("a challenge for another boot", CHALLENGED, down::boot),
    down("other PCRs asked for", CHALLENGED, down::pcrs),
    down("IMA lines asked for from elsewhere", CHALLENGED, down::ima_offset),
    down("other values said to be held", CHALLENGED, down::held),
    down("a challenge without time", CHALLENGED, down::no_time),
    down("an edited ticket to keep", &[First], down::ticket),
    down("another range of a log", &[Logs], down::need),
    down("another log asked for", &[Logs], down::need_other),
    down("a statement about something else", &[Statement], down::state),
    down("a forged Accepted", ANY, down::accepted),
    down("a forged Later", ANY, down::later),
    down("a forged Refused", ANY, down::refused),
];

/// The place of a lie in the list.
pub fn lie_named(name: &str) -> Option<usize> {
    LIES.iter().position(|lie| lie.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lie_has_a_name_of_its_own_and_a_flow() {
        for (at, lie) in LIES.iter().enumerate() {
            assert_eq!(lie_named(lie.name), Some(at), "{}", lie.name);
            assert!(!lie.flows.is_empty(), "{}", lie.name);
        }
    }
}
