//! Parts of the logs that the bridge asked for: bytes of the packed UEFI log, packed whole lines of the IMA log.

use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::messages::limits::MAX_PART;
use keylime_mqtt_schemas::messages::{Blob, LogKind, Need};

use super::{Device, EvidenceError, bounded};

/// Bytes of IMA lines in one part: they pack into about one payload of 15 KiB, or a fifth of that with a reference. Lines
/// that cannot be packed travel as they are with a head of some bytes, and still have to fit.
const IMA_PART: usize = MAX_PART - 1024;
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

#[cfg(test)]
mod tests {
    use rand::RngCore;

    use super::*;

    #[test]
    fn lines_that_cannot_be_packed_still_fit_a_part() {
        for line in [100, 1000, IMA_PART] {
            let mut lines = vec![0; IMA_PART];
            rand::rng().fill_bytes(&mut lines);
            lines.iter_mut().skip(line - 1).step_by(line).for_each(|byte| *byte = b'\n');
            let packed = pack_ima(&lines, None).len();
            assert!(packed <= MAX_PART, "{packed} bytes of lines of {line}");
        }
    }

    #[test]
    fn a_part_of_the_uefi_log_with_all_around_it_fills_one_payload() {
        let part = vec![0xFF; uefi_part(15 * 1024)].try_into().unwrap();
        let boot = [0xFF; 4].into();
        let blob = Blob { log: LogKind::Uefi, boot, offset: u64::MAX, part, total: Some(u32::MAX) };
        let size = keylime_mqtt_schemas::codec::encode(&keylime_mqtt_schemas::messages::Up::Blob(blob))
            .unwrap()
            .len();
        assert!((15 * 1024 - 32..=15 * 1024).contains(&size), "{size}");
    }
}
