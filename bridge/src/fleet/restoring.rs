//! `Command::Restore`: from what a device sent to what Keylime reads, or why not.
//!
//! Invariant: whatever was left out or guessed is handed on only under a signature of the trusted AK that covers it.

use super::uefi_cache::UefiLog;
use crate::restore::{Bound, UefiReplay, Unbound, bind, pcr_blob, restore_brief};
use crate::tpm::{AkPublic, Attest};
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::relay::{self, ImaText, Restore, Restored, Restoring};
use keylime_mqtt_schemas::ima::{ImaProblem, ImaReplay, ImaState, extend_by, follows_from_pcr, replay_ima};
use keylime_mqtt_schemas::messages::{Digest, IMA_PCR, PcrMask, PcrValues, Quote, Signed};
use std::sync::Arc;

/// More bytes of IMA lines than that are followed on a thread of their own; fewer cost less than getting there
const FEW_LINES: usize = 32 * 1024;

/// All that restoring needs
pub(super) struct Job {
    pub(super) restore: Restore,
    /// The UEFI log that is wanted
    pub(super) uefi: Option<Arc<UefiLog>>,
    /// Files that the device may have packed its lines with
    pub(super) references: Arc<[Reference]>,
}

impl Job {
    /// Whether it takes longer than a handover to another thread
    pub(super) fn is_long(&self) -> bool {
        // what a few packed bytes become is not known beforehand
        let ima = self.restore.ima.as_ref();
        let long = ima.is_some_and(|ima| ima.gathered.len() > FEW_LINES || !ima.packed.is_empty());
        long || self.uefi.as_ref().is_some_and(|log| !log.is_replayed())
    }
}

/// What came of it
pub(super) fn restore(job: Job) -> Restoring {
    let Job { restore, uefi, references } = job;
    let Restore { offer, quote, boot_statement, ak_public, pcrs, ima, uefi: uefi_digest } = restore;
    let Ok(ak) = AkPublic::parse(ak_public.as_slice()) else {
        return Restoring::Unbound(name(Unbound::Kind));
    };
    let ima = match ima.map(|parts| parts.text(&references)).transpose() {
        Ok(ima) => ima,
        Err(why) => return Restoring::Unreadable(why),
    };
    let from = ima.as_ref().and_then(known_start);
    let nonce = offer.nonce.as_bytes();
    let (quote, bound, led_to) = match quote {
        Quote::Full(quote) => {
            let (attest, signature) = (quote.attest.as_slice(), quote.signature.as_slice());
            match bind(&ak, nonce, offer.pcrs, attest, signature, pcrs) {
                Ok(bound) if !is_of_boot(&bound, &boot_statement) => return Restoring::OtherBoot,
                Ok(bound) => (quote, bound, None),
                Err(unbound) => return Restoring::Unbound(name(unbound)),
            }
        }
        Quote::Brief(brief) => {
            let boot_attest = boot_statement.attest.as_slice();
            let whole = all_values(offer.pcrs, &pcrs, from, ima.as_ref()).and_then(|(values, led_to)| {
                let (quote, bound) = restore_brief(&ak, nonce, boot_attest, &brief, values).ok()?;
                Some((quote, bound, led_to))
            });
            match whole {
                Some(whole) => whole,
                None => return Restoring::Refuted,
            }
        }
    };
    let logs = Logs { from, led_to, ima, wants_uefi: offer.wants_uefi(), uefi, uefi_digest };
    explain(quote, bound, logs)
}

/// A brief quote is made with the statement's `resetCount`; a full one may be of a later boot than a broker lets the bridge know of,
/// with other logs
fn is_of_boot(bound: &Bound, boot_statement: &Signed) -> bool {
    let stated = Attest::parse(boot_statement.attest.as_slice());
    stated.is_ok_and(|stated| stated.clock.reset_count == bound.clock().reset_count)
}

/// The values of all PCRs asked for; PCR 10, where it was left out, is what the lines lead to
fn all_values(
    asked: PcrMask,
    known: &PcrValues,
    from: Option<ImaState>,
    ima: Option<&ImaText>,
) -> Option<(PcrValues, Option<ImaState>)> {
    let known = known.only(asked);
    if known.mask() == asked {
        return Some((known, None));
    }
    if !asked.contains(IMA_PCR) || known.mask() != asked.without(IMA_PCR) {
        return None;
    }
    let mut at = from?;
    for line in ima?.lines.split_inclusive(|byte| *byte == b'\n') {
        extend_by(&mut at, line).ok()?;
    }
    let pcr10 = PcrValues::new(PcrMask::try_from(1 << IMA_PCR).ok()?, vec![at.pcr10]).ok()?;
    Some((known.overlaid(&pcr10), Some(at)))
}

struct Logs {
    from: Option<ImaState>,
    /// Where all lines lead, if the signature has confirmed it
    led_to: Option<ImaState>,
    ima: Option<ImaText>,
    wants_uefi: bool,
    uefi: Option<Arc<UefiLog>>,
    uefi_digest: Option<Digest>,
}

fn explain(quote: Signed, bound: Bound, logs: Logs) -> Restoring {
    let pcrs = bound.into_values();
    let ima = logs.ima.as_ref().map(|text| {
        let (at, covered) = match logs.led_to {
            Some(at) => (at, text.lines.len()),
            None => led_to_quote(logs.from, &text.lines, &pcrs)?,
        };
        if text.lines.get(..covered).is_some_and(|lines| follows_from_pcr(lines, text.sha256)) {
            Ok((relay::ImaState { entries: at.entries, pcr10: Digest::from(at.pcr10) }, covered))
        } else {
            Err("the IMA log has columns that PCR 10 does not cover")
        }
    });
    let uefi = logs.wants_uefi.then(|| explain_uefi(logs.uefi.as_deref(), &pcrs));
    let mut restored = Restored {
        quote,
        pcr_blob: pcr_blob(&pcrs),
        ima: logs.ima.map(|text| Arc::new(text.lines)),
        uefi: logs.uefi_digest,
    };
    match (ima, uefi) {
        (Some(Err(what)), _) | (_, Some(Err(what))) => {
            Restoring::Unexplained { restored: Arc::new(restored), pcrs, what }
        }
        (ima, _) => {
            let (state, covered) = ima.and_then(Result::ok).unzip();
            // lines beyond the quote are anybody's, and the verifier would judge them
            if let (Some(lines), Some(covered)) = (&mut restored.ima, covered) {
                Arc::make_mut(lines).truncate(covered);
            }
            Restoring::Explained { restored: Arc::new(restored), pcrs, ima: state }
        }
    }
}

/// PCR 10 before the first line: zero at boot, else where Keylime itself has followed the log to a PASS
///
/// Nothing else will do: whoever takes lines away on the way would have the quote explained by a start that is the quoted value itself.
fn known_start(text: &ImaText) -> Option<ImaState> {
    if text.offset == 0 {
        return Some(ImaState::BOOT);
    }
    let state = text.state.filter(|state| state.entries == text.offset)?;
    Some(ImaState { entries: state.entries, pcr10: *state.pcr10.as_bytes() })
}

/// Where the quote was taken, and how many bytes of the lines lead there
fn led_to_quote(
    from: Option<ImaState>,
    lines: &[u8],
    values: &PcrValues,
) -> Result<(ImaState, usize), &'static str> {
    let from = from.ok_or("the IMA log before the first line sent is not known to this bridge")?;
    let quoted = values.value(IMA_PCR).ok_or("the IMA log is wanted without PCR 10")?;
    match replay_ima(from, lines, quoted) {
        ImaReplay::Explained { at, covered } => Ok((at, covered)),
        ImaReplay::Stopped { problem: ImaProblem::UnknownTemplate, .. } => {
            Err("the IMA log has an unknown template")
        }
        ImaReplay::Stopped { problem: ImaProblem::Malformed, .. } => Err("the IMA log is malformed"),
        ImaReplay::Differs { .. } => Err("the IMA log does not lead to the quoted PCR 10"),
    }
}

/// The device has stated the log's digest with its boot, so what no PCR covers of it is its own as well
fn explain_uefi(log: Option<&UefiLog>, values: &PcrValues) -> Result<(), &'static str> {
    let log = log.ok_or("the UEFI log is not held any more")?;
    match log.replayed().explains(values) {
        UefiReplay::Explained => Ok(()),
        UefiReplay::Malformed(_) => Err("the UEFI log is malformed"),
        UefiReplay::Differs(_) | UefiReplay::NotQuoted => {
            Err("the UEFI log does not lead to the quoted PCRs")
        }
    }
}

/// A fixed text per reason, so that they can be counted
pub(super) fn name(unbound: Unbound) -> &'static str {
    match unbound {
        Unbound::Malformed(_) => "the attestation structure is malformed",
        Unbound::Name => "about another key than the AK that the device named",
        Unbound::Kind => "of another kind than asked for, or the AK is unfit",
        Unbound::Nonce => "over another nonce",
        Unbound::Signature(_) => "not signed by the trusted AK",
        Unbound::Selection => "over other PCRs than asked for",
        Unbound::Values => "the PCR values are not those quoted",
        Unbound::ClockUnsafe => "the TPM's clock is not safe",
    }
}

#[cfg(test)]
mod tests;
