//! What a statement's extraData is: a labelled hash, so that no other quote can be taken for one.
//!
//! A statement is a TPM2_Quote of no PCRs. A verifier's nonce is 16 bytes and this hash has 32, and the labels differ,
//! so a statement never answers a challenge and neither kind answers the other.
//! It proves that the holder of the AK said so; it proves nothing about what is true on the device.

use crate::AgentId;
use crate::messages::limits::MAX_PUBLIC;
use crate::messages::{BootMarker, Bounded, Digest, Nonce, PcrMask, Ready, Signed, UefiLog};

const BOOT: &[u8] = b"keylime-mqtt boot statement 1\0";
/// After the UEFI log's digest: how large the template hashes in the IMA log are.
const SHA1_TEMPLATES: &[u8] = &[20];
const SHA256_TEMPLATES: &[u8] = &[32];
const EVIDENCE: &[u8] = b"keylime-mqtt evidence statement 1\0";

/// What a device states of its boot, so that none of it can be changed on the way.
///
/// With the UEFI log's digest in it no further statement is needed for what the log's PCRs do not cover; with the size of
/// the template hashes none is needed for IMA lines, in which PCR 10 covers everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedBoot {
    /// The boot.
    pub boot: BootMarker,
    /// When it booted, in Unix seconds.
    pub boot_time: u64,
    /// The UEFI log, where there is one.
    pub uefi: Option<UefiLog>,
    /// Template hashes in the IMA log are SHA-256.
    pub ima_sha256: bool,
    /// PCRs that the device lets be quoted.
    pub pcrs: PcrMask,
    /// Seconds between wakings, of a device that sleeps.
    pub sleep: Option<u32>,
    /// The reference file that it has.
    pub reference: Option<Digest>,
}

impl From<&Ready> for StatedBoot {
    fn from(ready: &Ready) -> Self {
        let Ready { boot, boot_time, uefi, ima_sha256, pcrs, sleep, reference, .. } = *ready;
        Self { boot, boot_time, uefi, ima_sha256, pcrs, sleep, reference }
    }
}

impl StatedBoot {
    /// The `Ready` that says so, with the statement of it, of a device without IMA log and ticket.
    pub fn ready(self, ak_public: Bounded<MAX_PUBLIC>, statement: Signed) -> Ready {
        let Self { boot, boot_time, uefi, ima_sha256, pcrs, sleep, reference } = self;
        Ready {
            boot,
            boot_time,
            pcrs,
            ak_public,
            statement,
            ima_entries: None,
            uefi,
            ticket: None,
            sleep,
            reference,
            ima_sha256,
        }
    }
}

/// `H(label, boot marker, boot time, SHA-256 and size of the UEFI log or zeros, bytes of a template hash as one byte, PCRs,
/// a byte 1 and the seconds of a sleep or zeros, SHA-256 of the reference or zeros, agent id)`; times as u64, all else as u32, big endian.
///
/// It says nothing about when: a statement of an earlier boot is as good. That a quote is of the boot stated shows in its
/// `resetCount`, which is the statement's, and that what was stated besides is of that boot in [`evidence_statement`].
pub fn boot_statement(id: &AgentId, stated: &StatedBoot) -> Digest {
    let StatedBoot { boot, boot_time, uefi, ima_sha256, pcrs, sleep, reference } = stated;
    let UefiLog { digest, size } = uefi.unwrap_or(UefiLog { digest: [0; 32].into(), size: 0 });
    let templates = if *ima_sha256 { SHA256_TEMPLATES } else { SHA1_TEMPLATES };
    let (boot_time, size) = (boot_time.to_be_bytes(), size.to_be_bytes());
    let pcrs = u32::from(*pcrs).to_be_bytes();
    let (sleeps, sleep) = (u8::from(sleep.is_some()), sleep.unwrap_or(0).to_be_bytes());
    let reference = reference.unwrap_or([0; 32].into());
    Digest::of(&[
        BOOT,
        boot.as_bytes(),
        &boot_time,
        digest.as_bytes(),
        &size,
        templates,
        &pcrs,
        &[sleeps],
        &sleep,
        reference.as_bytes(),
        id.as_str().as_bytes(),
    ])
}

/// The IMA lines that a device states to belong to its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedLines {
    /// The first of them: the line that the question named.
    pub from: u64,
    /// SHA-256 of all from there to the last one of the evidence, with their newlines.
    pub digest: Digest,
}

/// Binds evidence to its nonce and boot: `H(label, nonce, boot marker, H(evidence as encoded), IMA lines, agent id)`, the
/// lines being a byte 1, their first line as u64 big endian and their digest; or as many zeros.
///
/// `ima` is what the device was asked for, not what it has: nothing when its challenge or the question for the statement named no
/// line. Otherwise a broker could take the line out of the challenge and have the device state truthfully that there
/// are no lines, of a log that has grown.
pub fn evidence_statement(
    id: &AgentId,
    nonce: &Nonce,
    boot: &BootMarker,
    evidence: &Digest,
    ima: Option<&StatedLines>,
) -> Digest {
    let (asked, from, lines) = match ima {
        Some(StatedLines { from, digest }) => (1_u8, *from, *digest),
        None => (0, 0, [0; 32].into()),
    };
    let from = from.to_be_bytes();
    let (nonce, boot, evidence) = (nonce.as_bytes(), boot.as_bytes(), evidence.as_bytes());
    Digest::of(&[EVIDENCE, nonce, boot, evidence, &[asked], &from, lines.as_bytes(), id.as_str().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_statement() {
        let (id, other_id): (AgentId, AgentId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (digest, other_digest) = (Digest::of(&[b"d"]), Digest::of(&[b"e"]));
        let (nonce, other_nonce) = (Nonce::from([1; 16]), Nonce::from([2; 16]));
        let log = UefiLog { digest, size: 1 };
        let (boot, other_boot) = (BootMarker::from([1; 16]), BootMarker::from([2; 16]));
        let stated = StatedBoot {
            boot,
            boot_time: 1,
            uefi: None,
            ima_sha256: false,
            pcrs: PcrMask::ALL,
            sleep: None,
            reference: None,
        };
        let lines = StatedLines { from: 0, digest: Digest::of(&[]) };
        let all = [
            evidence_statement(&id, &nonce, &boot, &digest, None),
            evidence_statement(&other_id, &nonce, &boot, &digest, None),
            evidence_statement(&id, &other_nonce, &boot, &digest, None),
            evidence_statement(&id, &nonce, &other_boot, &digest, None),
            evidence_statement(&id, &nonce, &boot, &other_digest, None),
            evidence_statement(&id, &nonce, &boot, &digest, Some(&lines)),
            evidence_statement(&id, &nonce, &boot, &digest, Some(&StatedLines { from: 1, ..lines })),
            evidence_statement(&id, &nonce, &boot, &digest, Some(&StatedLines { digest, ..lines })),
            boot_statement(&id, &stated),
            boot_statement(&other_id, &stated),
            boot_statement(&id, &StatedBoot { boot: other_boot, ..stated }),
            boot_statement(&id, &StatedBoot { boot_time: 2, ..stated }),
            boot_statement(&id, &StatedBoot { uefi: Some(log), ..stated }),
            boot_statement(&id, &StatedBoot { uefi: Some(UefiLog { size: 2, ..log }), ..stated }),
            boot_statement(&id, &StatedBoot { ima_sha256: true, ..stated }),
            boot_statement(&id, &StatedBoot { pcrs: PcrMask::default(), ..stated }),
            boot_statement(&id, &StatedBoot { sleep: Some(0), ..stated }),
            boot_statement(&id, &StatedBoot { sleep: Some(1), ..stated }),
            boot_statement(&id, &StatedBoot { reference: Some(digest), ..stated }),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
