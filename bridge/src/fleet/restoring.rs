//! `Command::Restore`: from what a device sent to what Keylime reads, or why not.

use crate::restore::{
    ImaReplay, ImaState, PcrValues, UefiReplay, Unbound, Unexplained, bind, follows_from_pcr, pcr_blob,
    replay_ima, replay_uefi,
};
use crate::tpm::AkPublic;
use keylime_mqtt_schemas::exchange::relay::{self, ImaText, Offer, Restored, Restoring};
use keylime_mqtt_schemas::messages::{Digest, Evidence};
use std::sync::Arc;

/// The PCR that IMA extends
const IMA_PCR: u8 = 10;

/// All that restoring needs; moved to a thread of its own
pub(super) struct Job {
    pub(super) offer: Offer,
    pub(super) evidence: Evidence,
    pub(super) ak_public: Vec<u8>,
    pub(super) ima: Option<ImaText>,
    /// The UEFI log that the evidence names
    pub(super) uefi: Option<Arc<Vec<u8>>>,
    /// The UEFI log that was submitted for this device before
    pub(super) submitted_uefi: Option<Digest>,
    /// PCR 10 of the device's last bound quote: where the verifier goes on reading the IMA log, if that quote passed
    pub(super) last_pcr10: Option<[u8; 32]>,
}

/// What came of it, and PCR 10 of the quote if it is bound
pub(super) fn restore(job: Job) -> (Restoring, Option<[u8; 32]>) {
    match bound(&job) {
        Err(unbound) => (Restoring::Unbound(name(unbound)), None),
        Ok(values) => {
            let pcr10 = values.value(IMA_PCR).copied();
            (explain(job, &values), pcr10)
        }
    }
}

fn bound(job: &Job) -> Result<PcrValues, Unbound> {
    let Evidence { quote, pcr_values, .. } = &job.evidence;
    let ak = AkPublic::parse(&job.ak_public).map_err(|_| Unbound::Kind)?;
    let mask = u32::from(job.offer.pcrs);
    let (digests, rest) = pcr_values.as_slice().as_chunks::<32>();
    let values = PcrValues::new(mask, digests).filter(|_| rest.is_empty()).ok_or(Unbound::Values)?;
    let nonce = job.offer.nonce.as_bytes();
    let bound = bind(&ak, nonce, mask, quote.attest.as_slice(), quote.signature.as_slice(), values)?;
    Ok(bound.into_values())
}

fn explain(job: Job, values: &PcrValues) -> Restoring {
    let (ima_lines, ima) = match (job.offer.ima_offset(), job.ima) {
        (Some(offset), gathered) => {
            let state = gathered.as_ref().and_then(|gathered| gathered.state);
            let mut lines = gathered.map(|gathered| gathered.lines).unwrap_or_default();
            lines.extend_from_slice(job.evidence.ima.as_ref().map_or(&[], |ima| ima.lines.as_slice()));
            let from = known_start(offset, state, job.last_pcr10);
            let explained = explain_ima(from, &lines, values);
            (Some(lines), Some(explained))
        }
        (None, _) => (None, None),
    };
    let submitted = job.submitted_uefi == job.evidence.uefi;
    let uefi = job.offer.wants_uefi().then(|| explain_uefi(job.uefi.as_deref(), submitted, values));
    let mut restored = Box::new(Restored {
        quote: job.evidence.quote,
        pcr_blob: pcr_blob(values),
        ima: ima_lines,
        uefi: job.evidence.uefi,
    });
    match (ima, uefi) {
        (Some(Err(what)), _) | (_, Some(Err(what))) => Restoring::Unexplained { restored, what },
        (ima, _) => {
            let (state, covered) = ima.and_then(Result::ok).unzip();
            // lines beyond the quote are anybody's, and the verifier would judge them
            if let (Some(lines), Some(covered)) = (&mut restored.ima, covered) {
                lines.truncate(covered);
            }
            Restoring::Explained { restored, ima: state }
        }
    }
}

/// PCR 10 before the first line: zero at boot, else what the exchange or the last quote knows
///
/// A wrong start cannot explain anything, so a guess is safe.
fn known_start(
    offset: u64,
    state: Option<relay::ImaState>,
    last_pcr10: Option<[u8; 32]>,
) -> Option<ImaState> {
    if offset == 0 {
        return Some(ImaState::BOOT);
    }
    let known = state.filter(|state| state.entries == offset).map(|state| *state.pcr10.as_bytes());
    known.or(last_pcr10).map(|pcr10| ImaState { entries: offset, pcr10 })
}

fn explain_ima(
    from: Option<ImaState>,
    lines: &[u8],
    values: &PcrValues,
) -> Result<(relay::ImaState, usize), &'static str> {
    let from = from.ok_or("the IMA log before the first line sent is not known to this bridge")?;
    let text = str::from_utf8(lines).map_err(|_| "the IMA log holds a name that is not UTF-8")?;
    let quoted = values.value(IMA_PCR).ok_or("the IMA log is wanted without PCR 10")?;
    match replay_ima(from, text, quoted) {
        ImaReplay::Explained { at, covered } if text.get(..covered).is_some_and(follows_from_pcr) => {
            Ok((relay::ImaState { entries: at.entries, pcr10: Digest::from(at.pcr10) }, covered))
        }
        ImaReplay::Explained { .. } => Err("the IMA log has columns that PCR 10 does not cover"),
        ImaReplay::Unexplained(Unexplained::UnknownTemplate(_)) => Err("the IMA log has an unknown template"),
        ImaReplay::Unexplained(Unexplained::Malformed(_)) => Err("the IMA log is malformed"),
        ImaReplay::Unexplained(_) => Err("the IMA log does not lead to the quoted PCR 10"),
    }
}

fn explain_uefi(log: Option<&Vec<u8>>, submitted: bool, values: &PcrValues) -> Result<(), &'static str> {
    let log = log.ok_or("the UEFI log is not held any more")?;
    match replay_uefi(log, values) {
        UefiReplay::Explained if submitted => Ok(()),
        // the PCRs do not cover all that a policy reads in it
        UefiReplay::Explained => Err("the device has not stated yet that this is its UEFI log"),
        UefiReplay::Unexplained(Unexplained::Malformed(_)) => Err("the UEFI log is malformed"),
        UefiReplay::Unexplained(_) => Err("the UEFI log does not lead to the quoted PCRs"),
    }
}

/// A fixed text per reason, so that they can be counted
fn name(unbound: Unbound) -> &'static str {
    match unbound {
        Unbound::Malformed(_) => "the attestation structure is malformed",
        Unbound::Kind => "of another kind than asked for, or the AK is unfit",
        Unbound::Nonce => "over another nonce",
        Unbound::Signature(_) => "not signed by the trusted AK",
        Unbound::Selection => "over other PCRs than asked for",
        Unbound::Values => "the PCR values are not those quoted",
        Unbound::ClockUnsafe => "the TPM's clock is not safe",
    }
}
