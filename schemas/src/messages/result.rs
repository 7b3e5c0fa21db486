//! What relying parties and operators read: JSON, retained, one per device and one per bridge.

use serde::{Deserialize, Serialize};

use crate::AgentId;

/// Keylime's word on a device, as the bridge read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// An attestation after the bridge's last submission passed.
    Pass,
    /// Keylime failed the device; it stays so until an operator acts.
    Fail,
    /// No attestation within five intervals.
    Timeout,
    /// Keylime knows the device and has no verdict yet.
    Pending,
    /// No verdict of Keylime; `reason` says what is waited for.
    Unknown,
}

/// Retained at `{prefix}/{agent_id}/result`. The bridge's word, not a signed one: Keylime itself is the judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationResult {
    /// The device.
    pub agent_id: AgentId,
    /// Keylime's word.
    pub verdict: Verdict,
    /// When the bridge read it, Unix seconds.
    pub time: u64,
    /// Until when it may be relied on, Unix seconds.
    pub valid_until: u64,
    /// SHA-256 of the nonce of the attestation it speaks of, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce_sha256: Option<String>,
    /// Keylime's count of attestations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation_count: Option<u64>,
    /// What is waited for or what an operator should do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Retained at `{prefix}-bridge/{via}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeStatus {
    /// Whether the bridge is connected.
    pub online: bool,
    /// Since when, Unix seconds; 0 in the last will.
    pub since: u64,
}
