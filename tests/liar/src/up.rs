//! Lies about what a device says.

use keylime_mqtt_schemas::compact::{pack_ima, unpack_ima};
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    Activation, Blob, BootMarker, Brief, Digest, Enrol, Evidence, ImaSegment, NotYet, NotYetReason, PcrMask,
    PcrValues, Proof, Quote, Ready, ReadyTag, Signed, UefiLog, Unchanged, Up,
};
use keylime_mqtt_schemas::statement::boot_statement as said_of_boot;
use rand::Rng as _;

use crate::known::{Known, Stamp};

/// A line that no device has written.
const LINE: &str = "10 0000000000000000000000000000000000000000 ima-ng \
     sha256:0000000000000000000000000000000000000000000000000000000000000000 /usr/bin/program-99999\n";

fn enrol(up: &mut Up, edit: impl FnOnce(&mut Enrol) -> bool) -> bool {
    if let Up::Enrol(enrol) = up { edit(enrol) } else { false }
}

pub(crate) fn another_ek(up: &mut Up, known: &mut Known<'_>) -> bool {
    enrol(up, |enrol| {
        match known.others_last("Enrol") {
            Some(Up::Enrol(other)) => {
                enrol.ek_public = other.ek_public;
                enrol.ek_certificate = other.ek_certificate;
            }
            _ => enrol.ek_public = known.flipped(&enrol.ek_public),
        }
        true
    })
}

pub(crate) fn own_ak_enrolled(up: &mut Up, known: &mut Known<'_>) -> bool {
    enrol(up, |enrol| {
        known.forger.public().try_into().is_ok_and(|ak| {
            enrol.ak_public = ak;
            true
        })
    })
}

pub(crate) fn no_certificate(up: &mut Up, _: &mut Known<'_>) -> bool {
    enrol(up, |enrol| enrol.ek_certificate.take().is_some())
}

pub(crate) fn activation_tag(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Activation(Activation { auth_tag, .. }) = up else { return false };
    *auth_tag = known.flipped_array(auth_tag.as_bytes()).into();
    true
}

pub(crate) fn activation_credential(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Activation(Activation { credential, .. }) = up else { return false };
    *credential = Digest::from(known.flipped_array(credential.as_bytes()));
    true
}

fn ready(up: &mut Up, edit: impl FnOnce(&mut Ready) -> bool) -> bool {
    if let Up::Ready(ready) = up { edit(ready) } else { false }
}

pub(crate) fn boot_time(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        let by = known.rng.random_range(1..10_000_000);
        ready.boot_time =
            if known.rng.random() { ready.boot_time + by } else { ready.boot_time.saturating_sub(by) };
        true
    })
}

pub(crate) fn boot_marker(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        ready.boot = BootMarker::from(known.rng.random::<[u8; 16]>());
        true
    })
}

pub(crate) fn boot_statement(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        if known.rng.random() {
            ready.statement.attest = known.flipped(&ready.statement.attest);
        } else {
            ready.statement.signature = known.flipped(&ready.statement.signature);
        }
        true
    })
}

/// Another device's, or the liar's own, and nothing else changed.
pub(crate) fn ready_ak(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        let ak = match known.others_last("Ready") {
            Some(Up::Ready(other)) if known.rng.random() => Ok(other.ak_public),
            _ => known.forger.public().try_into(),
        };
        ak.is_ok_and(|ak| {
            ready.ak_public = ak;
            true
        })
    })
}

/// The liar answers for the device, with a key of its own and everything signed as it should be.
pub(crate) fn key_substitution(up: &mut Up, known: &mut Known<'_>) -> bool {
    match up {
        Up::Ready(ready) => {
            let Ok(ak) = known.forger.public().try_into() else { return false };
            let said = said_of_boot(&known.id, &(&*ready).into());
            ready.ak_public = ak;
            ready.statement = known.forger.sign(Stamp::Statement(&said));
            true
        }
        Up::Proof(proof) => {
            let Some(prove) = known.own.prove else { return false };
            proof.signed = known.forger.sign(Stamp::Certify(prove.nonce.as_bytes()));
            true
        }
        Up::Evidence(evidence) => {
            let Some(challenge) = &known.own.challenge else { return false };
            let zeros = vec![[0; 32]; challenge.pcrs.count()];
            let Ok(values) = PcrValues::new(challenge.pcrs, zeros) else { return false };
            evidence.tag = challenge.nonce.tag();
            evidence.quote =
                Quote::Full(known.forger.sign(Stamp::Quote(challenge.nonce.as_bytes(), &values)));
            evidence.pcrs = Some(values);
            true
        }
        _ => false,
    }
}

pub(crate) fn ima_entries(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        let Some(entries) = ready.ima_entries else { return false };
        let choices = [None, Some(1), Some(entries + 1), Some(entries + 1000), Some(u64::MAX)];
        ready.ima_entries = choices.get(known.rng.random_range(0..5)).copied().flatten();
        true
    })
}

pub(crate) fn uefi_announced(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        let digest = Digest::from(known.rng.random::<[u8; 32]>());
        ready.uefi = match ready.uefi {
            Some(_) if known.rng.random() => None,
            _ => Some(UefiLog { digest, size: 1000 }),
        };
        true
    })
}

pub(crate) fn no_ticket(up: &mut Up, _: &mut Known<'_>) -> bool {
    ready(up, |ready| ready.ticket.take().is_some())
}

pub(crate) fn others_ticket(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        known.others_ticket().is_some_and(|ticket| {
            ready.ticket = Some(ticket);
            true
        })
    })
}

pub(crate) fn superseded_ticket(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        known.superseded_ticket().is_some_and(|ticket| {
            ready.ticket = Some(ticket);
            true
        })
    })
}

pub(crate) fn edited_ticket(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| match &ready.ticket {
        Some(ticket) => {
            ready.ticket = Some(known.flipped(ticket));
            true
        }
        None => false,
    })
}

pub(crate) fn sleep(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        ready.sleep = if known.rng.random() { Some(0) } else { Some(u32::MAX) };
        true
    })
}

pub(crate) fn pcrs_offered(up: &mut Up, known: &mut Known<'_>) -> bool {
    ready(up, |ready| {
        ready.pcrs = PcrMask::try_from(known.rng.random_range(0..0x00ff_ffff)).unwrap_or_default();
        true
    })
}

pub(crate) fn unchanged(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Unchanged(Unchanged { ready, .. }) = up else { return false };
    *ready = ReadyTag::from(known.rng.random::<[u8; 8]>());
    true
}

pub(crate) fn certification(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Proof(Proof { signed, .. }) = up else { return false };
    signed.attest = known.flipped(&signed.attest);
    true
}

pub(crate) fn proof_signature(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Proof(Proof { signed, .. }) = up else { return false };
    signed.signature = known.flipped(&signed.signature);
    true
}

fn evidence(up: &mut Up, edit: impl FnOnce(&mut Evidence) -> bool) -> bool {
    if let Up::Evidence(evidence) = up { edit(evidence) } else { false }
}

pub(crate) fn evidence_tag(up: &mut Up, known: &mut Known<'_>) -> bool {
    evidence(up, |evidence| {
        evidence.tag = known.rng.random::<[u8; 4]>().into();
        true
    })
}

pub(crate) fn clock(up: &mut Up, known: &mut Known<'_>) -> bool {
    evidence(up, |evidence| {
        match &mut evidence.quote {
            Quote::Full(Signed { attest, .. }) => *attest = known.flipped(attest),
            Quote::Brief(Brief { restart_count, .. }) if known.rng.random() => {
                *restart_count = Some(known.rng.random());
            }
            Quote::Brief(Brief { clock, .. }) => *clock = clock.wrapping_add(known.rng.random_range(1..1000)),
        }
        true
    })
}

pub(crate) fn signature(up: &mut Up, known: &mut Known<'_>) -> bool {
    evidence(up, |evidence| {
        match &mut evidence.quote {
            Quote::Full(Signed { signature, .. }) => *signature = known.flipped(signature),
            Quote::Brief(Brief { signature, .. }) => *signature = known.flipped(signature),
        }
        true
    })
}

/// One value is another, whether it was sent or not.
pub(crate) fn values(up: &mut Up, known: &mut Known<'_>) -> bool {
    evidence(up, |evidence| {
        let asked = known.own.challenge.as_ref().map(|challenge| challenge.pcrs).unwrap_or_default();
        let Some(pcr) = asked.iter().nth(known.rng.random_range(0..asked.count().max(1))) else {
            return false;
        };
        let Ok(mask) = PcrMask::try_from(1 << u32::from(pcr)) else { return false };
        let Ok(lie) = PcrValues::new(mask, vec![known.rng.random::<[u8; 32]>()]) else { return false };
        evidence.pcrs = Some(evidence.pcrs.clone().unwrap_or_default().overlaid(&lie));
        true
    })
}

pub(crate) fn no_values(up: &mut Up, _: &mut Known<'_>) -> bool {
    evidence(up, |evidence| evidence.pcrs.take().is_some())
}

fn lines(up: &mut Up, edit: impl FnOnce(&mut ImaSegment, Vec<u8>) -> Option<Vec<u8>>) -> bool {
    evidence(up, |evidence| {
        let Some(segment) = &mut evidence.ima else { return false };
        // with a reference it does not unpack here, and other lies have their turn
        let Ok(lines) = unpack_ima(segment.packed.as_slice(), MAX_INLINE_IMA, None) else { return false };
        let edited = edit(segment, lines).and_then(|lines| pack_ima(&lines, None).try_into().ok());
        edited.is_some_and(|packed| {
            segment.packed = packed;
            true
        })
    })
}

/// One hexadecimal digit of a file's digest, so that the lines stay lines.
pub(crate) fn ima_edited(up: &mut Up, known: &mut Known<'_>) -> bool {
    lines(up, |_, mut lines| {
        let starts: Vec<usize> =
            lines.windows(7).enumerate().filter(|(_, text)| *text == b"sha256:").map(|(at, _)| at).collect();
        let start = starts.get(known.rng.random_range(0..starts.len().max(1)))?;
        let digit = lines.get_mut(start + 7 + known.rng.random_range(0..64))?;
        *digit = if *digit == b'0' { b'1' } else { b'0' };
        Some(lines)
    })
}

/// The last line, or all of them.
pub(crate) fn ima_removed(up: &mut Up, known: &mut Known<'_>) -> bool {
    if known.rng.random() {
        return evidence(up, |evidence| evidence.ima.take().is_some());
    }
    lines(up, |_, lines| {
        let whole = lines.strip_suffix(b"\n")?;
        let end = whole.iter().rposition(|byte| *byte == b'\n')? + 1;
        Some(lines.get(..end)?.to_vec())
    })
}

pub(crate) fn ima_added(up: &mut Up, known: &mut Known<'_>) -> bool {
    let first = known.rng.random();
    lines(up, |_, lines| {
        Some(if first { [LINE.as_bytes(), &lines].concat() } else { [&lines, LINE.as_bytes()].concat() })
    })
}

pub(crate) fn ima_offset(up: &mut Up, known: &mut Known<'_>) -> bool {
    evidence(up, |evidence| {
        let Some(segment) = &mut evidence.ima else { return false };
        segment.offset = if known.rng.random() { segment.offset + 1 } else { u64::MAX };
        true
    })
}

/// In place of the evidence.
pub(crate) fn not_yet(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Evidence(evidence) = up else { return false };
    let reasons = [NotYetReason::ClockNotSafe, NotYetReason::Tpm, NotYetReason::Log];
    let reason = reasons.get(known.rng.random_range(0..3)).copied().unwrap_or(NotYetReason::Tpm);
    *up = Up::NotYet(NotYet { tag: evidence.tag, reason, seconds: u32::MAX });
    true
}

fn blob(up: &mut Up, edit: impl FnOnce(&mut Blob) -> bool) -> bool {
    if let Up::Blob(blob) = up { edit(blob) } else { false }
}

pub(crate) fn part(up: &mut Up, known: &mut Known<'_>) -> bool {
    blob(up, |blob| {
        blob.part = known.flipped(&blob.part);
        true
    })
}

pub(crate) fn part_offset(up: &mut Up, known: &mut Known<'_>) -> bool {
    blob(up, |blob| {
        blob.offset = blob.offset.wrapping_add(known.rng.random_range(1..1000));
        true
    })
}

pub(crate) fn total(up: &mut Up, known: &mut Known<'_>) -> bool {
    blob(up, |blob| {
        let choices = [None, Some(0), Some(1), blob.total.map(|total| total + 7), Some(u32::MAX)];
        let choice = choices.get(known.rng.random_range(0..5)).copied().flatten();
        let other = choice != blob.total;
        blob.total = choice;
        other
    })
}

pub(crate) fn part_empty(up: &mut Up, _: &mut Known<'_>) -> bool {
    blob(up, |blob| {
        blob.part = keylime_mqtt_schemas::messages::Bounded::default();
        true
    })
}

pub(crate) fn statement(up: &mut Up, known: &mut Known<'_>) -> bool {
    let Up::Statement(statement) = up else { return false };
    if known.rng.random() {
        statement.signed.attest = known.flipped(&statement.signed.attest);
    } else {
        statement.signed.signature = known.flipped(&statement.signed.signature);
    }
    true
}
