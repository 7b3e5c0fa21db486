//! What a statement's extraData is: a labelled hash, so that no other quote can be taken for one.
//!
//! A statement is a TPM2_Quote of no PCRs. A verifier's nonce is 16 bytes and this hash has 32, and the labels differ,
//! so a statement never answers a challenge and neither kind answers the other.
//! It proves that the holder of the AK said so; it proves nothing about what is true on the device.

use crate::AgentId;
use crate::messages::{BootMarker, Digest, Nonce, UefiLog};

const BOOT: &[u8] = b"keylime-mqtt boot statement 1\0";
const NO_UEFI_LOG: [u8; 32] = [0; 32];
const EVIDENCE: &[u8] = b"keylime-mqtt evidence statement 1\0";

/// Binds boot time and UEFI log to a boot: `H(label, boot marker, boot time as u64 big endian, SHA-256 of the UEFI log or
/// zeros, agent id)`.
///
/// With the log's digest in it no further statement is needed for what its PCRs do not cover.
pub fn boot_statement(id: &AgentId, boot: &BootMarker, boot_time: u64, uefi: Option<&UefiLog>) -> Digest {
    let uefi = uefi.map_or(&NO_UEFI_LOG, |log| log.digest.as_bytes());
    Digest::of(&[BOOT, boot.as_bytes(), &boot_time.to_be_bytes(), uefi, id.as_str().as_bytes()])
}

/// Binds evidence to its nonce: `H(label, nonce, H(evidence as encoded), H(IMA lines), agent id)`.
///
/// `ima` is the digest of all IMA lines from the line the question named to the last one of the evidence, with their
/// newlines; of no lines when the question named none.
pub fn evidence_statement(id: &AgentId, nonce: &Nonce, evidence: &Digest, ima: &Digest) -> Digest {
    Digest::of(&[EVIDENCE, nonce.as_bytes(), evidence.as_bytes(), ima.as_bytes(), id.as_str().as_bytes()])
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
        let all = [
            evidence_statement(&id, &nonce, &digest, &other_digest),
            evidence_statement(&other_id, &nonce, &digest, &other_digest),
            evidence_statement(&id, &other_nonce, &digest, &other_digest),
            evidence_statement(&id, &nonce, &other_digest, &other_digest),
            evidence_statement(&id, &nonce, &digest, &digest),
            boot_statement(&id, &boot, 1, None),
            boot_statement(&other_id, &boot, 1, None),
            boot_statement(&id, &other_boot, 1, None),
            boot_statement(&id, &boot, 2, None),
            boot_statement(&id, &boot, 1, Some(&log)),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
