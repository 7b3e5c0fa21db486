//! The answer to a challenge: one quote, and of what it covers only what the bridge does not hold.

use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    BootMarker, Brief, Challenge, Evidence, IMA_PCR, ImaSegment, NonceTag, NotYet, NotYetReason, PcrMask,
    PcrValues, Quote,
};

use super::explain::{Explained, Known};
use super::{Device, EvidenceError, SOON, bounded, signed};
use crate::logs::LogError;
use crate::logs::ima::Growth;
use crate::tpm::{Clock, Quoted, TpmError};

/// Quotes made until one is explained by the values read after it. Only PCRs other than IMA's can need a second one.
const QUOTE_TRIES: usize = 8;
/// Bytes of IMA lines in one answer. Lines that cannot be packed travel as they are with a head of some bytes.
const MOST_LINES: usize = MAX_INLINE_IMA - 1024;
/// Head of a TPMT_SIGNATURE: RSASSA with SHA-256. TPM 2.0 Part 2, 11.3.4.
const RSASSA_SHA256: [u8; 4] = [0x00, 0x14, 0x00, 0x0B];

/// The IMA lines of one answer.
#[derive(Debug, Default)]
struct Lines {
    segment: Option<ImaSegment>,
    /// The line after the last one that the bridge then has; nothing when none were asked for.
    end: Option<u64>,
    /// PCR 10 is what they lead to.
    lead: bool,
}

impl Device {
    /// Makes evidence, and says at which line of the IMA log it ends where lines were asked for.
    ///
    /// In the steady state this is one TPM command, TPM2_Quote.
    pub(super) async fn collect(
        &mut self,
        challenge: &Challenge,
    ) -> Result<(Evidence, Option<u64>), EvidenceError> {
        let (quoted, boot, explained) = self.quote(challenge).await?;
        let lines = self.lines(challenge, &explained)?;
        let brief = if challenge.full { None } else { self.brief(&quoted, boot) };
        let (quote, pcrs) = match brief {
            Some(brief) => (Quote::Brief(brief), self.values_missing(challenge, &explained, lines.lead)),
            None => (Quote::Full(signed(quoted.attest, quoted.signature)?), Some(explained.values.clone())),
        };
        self.store.show_clock(quoted.clock)?;
        let entries = self.ima.as_ref().map(crate::logs::ima::ImaLog::entries);
        if let Some(known) = &mut self.known {
            known.remember(&explained, entries);
        }
        Ok((Evidence { tag: challenge.nonce.tag(), quote, pcrs, ima: lines.segment }, lines.end))
    }

    /// A quote and the values it covers.
    async fn quote(
        &mut self,
        challenge: &Challenge,
    ) -> Result<(Quoted, BootMarker, Explained), EvidenceError> {
        let mask = challenge.pcrs;
        for _ in 0..QUOTE_TRIES {
            let quoted = self.tpm.quote(challenge.nonce.as_bytes().to_vec(), mask.into()).await?;
            let boot = self.boot.marker(quoted.clock.reset_count)?;
            if boot.tag() != challenge.boot {
                return Err(EvidenceError::Rebooted);
            }
            may_be_shown(quoted.clock, self.store.state().last_quote).map_err(EvidenceError::Clock)?;
            if self.known.as_ref().is_none_or(|known| known.boot() != boot) {
                self.known = Some(Known::nothing(boot));
            }
            let log = self.read_ima_after_quote(challenge)?.then_some(()).and(self.ima.as_ref());
            let Some(known) = &self.known else { continue };
            if let Some(explained) = known.explain(mask, &quoted.pcr_digest, log)? {
                return Ok((quoted, boot, explained));
            }
            let read = self.tpm.pcrs(mask.into()).await?;
            let read = PcrValues::new(mask, read).map_err(|_| TpmError::Malformed("list of PCR values"))?;
            if let Some(explained) = known.explain_with(read, &quoted.pcr_digest, log)? {
                return Ok((quoted, boot, explained));
            }
        }
        Err(TpmError::PcrsMoving { mask: mask.into(), tries: QUOTE_TRIES }.into())
    }

    /// Reads what the IMA log has grown by. False when there is none that can be read and nobody asked for it.
    fn read_ima_after_quote(&mut self, challenge: &Challenge) -> Result<bool, LogError> {
        let Some(log) = &mut self.ima else { return Ok(false) };
        match log.refresh() {
            Ok(Growth::Lines(_)) => Ok(true),
            Ok(Growth::Replaced) => {
                tracing::info!("the IMA log begins anew");
                if let Some(known) = &mut self.known {
                    known.forget_ima();
                }
                Ok(true)
            }
            Err(error) if challenge.ima_offset.is_none() => {
                tracing::debug!(%error, "PCR 10 is read from the TPM instead");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The lines asked for, up to the one at which the quote was made.
    ///
    /// Not less than was announced, for Keylime was told of so many lines and refuses evidence with fewer.
    fn lines(&self, challenge: &Challenge, explained: &Explained) -> Result<Lines, EvidenceError> {
        // A log that this device did not describe explains nothing.
        let (Some(offset), Some(log)) = (challenge.ima_offset, &self.ima) else {
            return Ok(Lines::default());
        };
        let covered = explained.ima.map_or(log.entries(), |reached| reached.entries);
        let end = covered.max(self.announced.min(log.entries())).max(offset);
        let lines = log.lines(offset, end, MOST_LINES)?;
        if lines.end < end {
            return Err(EvidenceError::LogAhead { missing: lines.bytes.len() });
        }
        let segment = if lines.bytes.is_empty() {
            None
        } else {
            let reference = self.reference.as_ref().filter(|_| challenge.reference);
            let packed = bounded("IMA lines", pack_ima(&lines.bytes, reference))?;
            Some(ImaSegment { offset, packed })
        };
        let followed = self.known.as_ref().is_some_and(|known| known.leads_from(offset));
        let lead = followed && explained.ima.is_some_and(|reached| reached.entries == end);
        Ok(Lines { segment, end: Some(end), lead })
    }

    /// What a brief quote leaves of it; nothing when the bridge could not make the rest.
    fn brief(&self, quoted: &Quoted, boot: BootMarker) -> Option<Brief> {
        let described = self.described.as_ref().filter(|described| described.boot.marker == boot)?;
        let (size, signature) = quoted.signature.strip_prefix(&RSASSA_SHA256)?.split_first_chunk()?;
        if usize::from(u16::from_be_bytes(*size)) != signature.len() {
            return None;
        }
        let restarts = quoted.clock.restart_count;
        Some(Brief {
            clock: quoted.clock.clock_ms,
            signature: signature.to_vec().try_into().ok()?,
            restart_count: (restarts != described.restart_count).then_some(restarts),
        })
    }

    /// The values that the bridge can neither hold nor find where the lines lead.
    fn values_missing(
        &self,
        challenge: &Challenge,
        explained: &Explained,
        lines_lead: bool,
    ) -> Option<PcrValues> {
        let by_lines = challenge.ima_offset.is_some();
        let wanted = if by_lines { challenge.pcrs.without(IMA_PCR) } else { challenge.pcrs };
        let values = explained.values.only(wanted);
        let held = self.known.as_ref().and_then(|known| known.values(wanted));
        let mut missing = match held.filter(|held| challenge.held == Some(held.tag())) {
            Some(held) => values.changed_since(&held),
            None => values,
        };
        if by_lines && !lines_lead {
            let pcr10 = PcrMask::try_from(1 << IMA_PCR).unwrap_or_default();
            missing = missing.overlaid(&explained.values.only(pcr10));
        }
        Some(missing).filter(|missing| missing.mask().count() > 0)
    }

    /// Why there is no evidence yet, and when it may help to ask again.
    pub(super) async fn not_before(&self, tag: NonceTag, reason: NotYetReason) -> NotYet {
        let behind = match (self.tpm.clock().await, self.store.state().last_quote) {
            (Ok(now), Some(last)) => last.clock_ms.saturating_sub(now.clock_ms) / 1000,
            _ => 0,
        };
        NotYet { tag, reason, seconds: u32::try_from(behind).unwrap_or(u32::MAX).max(SOON) }
    }
}

/// TPM 2.0 Part 1, 36.3: after an unorderly stop the clock starts from a value kept earlier, and is `safe` only once it has
/// passed all it can have shown. Keylime demands `safe` and a growing clock.
fn may_be_shown(clock: Clock, last: Option<Clock>) -> Result<(), NotYetReason> {
    if !clock.safe {
        return Err(NotYetReason::ClockNotSafe);
    }
    if last.is_some_and(|last| clock.clock_ms <= last.clock_ms) {
        return Err(NotYetReason::ClockBehind);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn clock(clock_ms: u64, safe: bool) -> Clock {
        Clock { clock_ms, reset_count: 1, restart_count: 0, safe }
    }

    #[test]
    fn only_a_safe_clock_above_the_last_one_shown_may_be_shown() {
        let last = Some(clock(1000, true));
        assert_eq!(may_be_shown(clock(1001, true), last), Ok(()));
        assert_eq!(may_be_shown(clock(1, true), None), Ok(()));
        assert_eq!(may_be_shown(clock(1000, true), last), Err(NotYetReason::ClockBehind));
        assert_eq!(may_be_shown(clock(2000, false), last), Err(NotYetReason::ClockNotSafe));
        assert_eq!(may_be_shown(clock(2000, false), None), Err(NotYetReason::ClockNotSafe));
    }
}
