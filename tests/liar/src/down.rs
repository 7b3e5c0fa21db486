//! Lies about what a bridge says.

use keylime_mqtt_schemas::messages::{
    Accepted, Challenge, Credential, Enrolled, Later, LaterReason, LogKind, Need, Nonce, Outcome, PcrMask,
    PcrTag, Question, Refused, RefusedReason, State, Up,
};
use rand::Rng as _;

use crate::known::Known;

pub(crate) fn credential(question: &mut Question, known: &mut Known<'_>) -> bool {
    let Question::Credential(Credential { blob }) = question else { return false };
    *blob = known.flipped(blob);
    true
}

/// Said before the registrar has said so.
pub(crate) fn enrolled(question: &mut Question, _: &mut Known<'_>) -> bool {
    let before = matches!(question, Question::Credential(_));
    if before {
        *question = Question::Enrolled(Enrolled {});
    }
    before
}

pub(crate) fn session_nonce(question: &mut Question, known: &mut Known<'_>) -> bool {
    let Question::Prove(prove) = question else { return false };
    prove.nonce = Nonce::from(known.rng.random::<[u8; 16]>());
    true
}

fn challenge(question: &mut Question, edit: impl FnOnce(&mut Challenge) -> bool) -> bool {
    match question {
        Question::Challenge(challenge) => edit(challenge),
        _ => false,
    }
}

pub(crate) fn nonce(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        challenge.nonce = Nonce::from(known.rng.random::<[u8; 16]>());
        true
    })
}

/// None there was, or the one of which the device spoke last, whatever the bridge was let know of it.
pub(crate) fn boot(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        let asked = challenge.boot;
        challenge.boot = match known.own.last.get("Ready") {
            Some(Up::Ready(ready)) if ready.boot.tag() != asked => ready.boot.tag(),
            _ => known.rng.random::<[u8; 4]>().into(),
        };
        true
    })
}

pub(crate) fn pcrs(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        let other = u32::from(challenge.pcrs) ^ 1 << known.rng.random_range(0..24);
        PcrMask::try_from(other).is_ok_and(|mask| {
            challenge.pcrs = mask;
            true
        })
    })
}

pub(crate) fn ima_offset(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        let next = challenge.ima_offset.map_or(0, |from| from + 1);
        let choices = [None, Some(0), Some(next), Some(u64::MAX)];
        let choice = choices.get(known.rng.random_range(0..4)).copied().flatten();
        let other = choice != challenge.ima_offset;
        challenge.ima_offset = choice;
        other
    })
}

pub(crate) fn held(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        challenge.held = match challenge.held {
            Some(_) if known.rng.random() => None,
            _ => Some(PcrTag::from(known.rng.random::<[u8; 4]>())),
        };
        true
    })
}

/// Of use for no time, and silence is borne for ever.
pub(crate) fn no_time(question: &mut Question, _: &mut Known<'_>) -> bool {
    challenge(question, |challenge| {
        challenge.good_for = 0;
        challenge.silence = u32::MAX;
        true
    })
}

pub(crate) fn ticket(question: &mut Question, known: &mut Known<'_>) -> bool {
    challenge(question, |challenge| match &challenge.ticket {
        Some(ticket) => {
            challenge.ticket = Some(known.flipped(ticket));
            true
        }
        None => false,
    })
}

pub(crate) fn need(question: &mut Question, known: &mut Known<'_>) -> bool {
    let Question::Need(need) = question else { return false };
    match known.rng.random_range(0..3) {
        0 => need.offset += 1,
        1 => need.upto = u64::MAX,
        _ => need.offset = u64::MAX - 1,
    }
    true
}

pub(crate) fn need_other(question: &mut Question, _: &mut Known<'_>) -> bool {
    let Question::Need(Need { log, .. }) = question else { return false };
    *log = match log {
        LogKind::Uefi => LogKind::Ima,
        LogKind::Ima => LogKind::Uefi,
    };
    true
}

pub(crate) fn state(question: &mut Question, known: &mut Known<'_>) -> bool {
    let Question::State(State { tag, ima_from }) = question else { return false };
    if known.rng.random() {
        *tag = known.rng.random::<[u8; 4]>().into();
    } else {
        *ima_from = Some(ima_from.map_or(0, |from| from.wrapping_add(1)));
    }
    true
}

pub(crate) fn accepted(question: &mut Question, _: &mut Known<'_>) -> bool {
    *question = Question::Accepted(Accepted { seconds: u32::MAX, outcome: Outcome::Pass });
    true
}

pub(crate) fn later(question: &mut Question, known: &mut Known<'_>) -> bool {
    let reasons = [LaterReason::NotEnrolled, LaterReason::Again, LaterReason::Keylime, LaterReason::Rebooted];
    let reason = reasons.get(known.rng.random_range(0..4)).copied().unwrap_or(LaterReason::Again);
    *question = Question::Later(Later { seconds: u32::MAX, reason });
    true
}

pub(crate) fn refused(question: &mut Question, _: &mut Known<'_>) -> bool {
    *question = Question::Refused(Refused { seconds: u32::MAX, reason: RefusedReason::OtherAk });
    true
}
