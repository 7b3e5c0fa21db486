//! Parts of the logs that the bridge asked for: bytes of the packed UEFI log, packed whole lines of the IMA log.

use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::messages::limits::MAX_PART;
use keylime_mqtt_schemas::messages::{Blob, LogKind, Need};

use super::{Device, EvidenceError, bounded};

/// Bytes of IMA lines in one part: they pack into about one payload of 15 KiB, or a fifth of that with a reference.
const IMA_PART: usize = 64 * 1024;
/// What a Blob has around the bytes of its part: seven heads, the kind, the log, tag, offset and total.
const BLOB_FRAME: usize = 48;

/// The part of the packed UEFI log that fills one payload.
pub(super) fn uefi_part(payload_bytes: usize) -> usize {
    payload_bytes.saturating_sub(BLOB_FRAME).clamp(1, MAX_PART)
}

impl Device {
    /// One part, and where the next one begins.
    pub(super) fn read(&mut self, need: &Need) -> Result<(Blob, u64), EvidenceError> {
        let boot = self.described.as_ref().map(|described| described.boot.marker);
        let Some(boot) = boot.filter(|boot| boot.tag() == need.boot) else {
            return Err(EvidenceError::Rebooted);
        };
        let reference = self.reference.as_ref().filter(|_| need.reference);
        let (part, next, total) = match (need.log, &mut self.uefi, &mut self.ima) {
            (LogKind::Uefi, Some(log), _) => {
                let packed = log.packed(boot, reference)?;
                let wanted = usize::try_from(need.upto.saturating_sub(need.offset)).unwrap_or(usize::MAX);
                let start = usize::try_from(need.offset).unwrap_or(usize::MAX).min(packed.len());
                let end = start.saturating_add(wanted.min(self.uefi_part)).min(packed.len());
                let part = packed.get(start..end).unwrap_or_default().to_vec();
                (part, need.offset + (end - start) as u64, u32::try_from(packed.len()).ok())
            }
            (LogKind::Ima, _, Some(log)) => {
                log.refresh()?;
                let lines = log.lines(need.offset.min(log.entries()), need.upto, IMA_PART)?;
                let part =
                    if lines.bytes.is_empty() { Vec::new() } else { pack_ima(&lines.bytes, reference) };
                (part, lines.end.max(need.offset), None)
            }
            _ => (Vec::new(), need.offset, None),
        };
        let part = bounded("part of a log", part)?;
        Ok((Blob { log: need.log, boot: need.boot, offset: need.offset, part, total }, next))
    }
}
