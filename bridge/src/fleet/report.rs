//! What others get to see: results on the broker, and the answer to `waiting`.

use crate::admission::Decision;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::relay::Report;
use keylime_mqtt_schemas::messages::AttestationResult;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// The fleet as `waiting` shows it
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Devices remembered
    pub devices: usize,
    /// Bytes held for them: unfinished messages, and logs until they are submitted
    pub held: usize,
    /// Those without a verdict of Keylime, by id
    pub waiting: Vec<Waiting>,
    /// Messages that were of no use since start: kind, reason, how often
    pub refused: Vec<(String, String, u64)>,
    /// Answers of Keylime that were of no use since start: service, reason, how often
    pub unavailable: Vec<(String, String, u64)>,
}

/// A device that was seen and is not attested, and why
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// The device
    pub id: String,
    /// What is waited for
    pub reason: String,
    /// What an operator can do, where the reason does not say it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Hash of the EK it claimed, if it claimed one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek_hash: Option<String>,
    /// Since when, Unix seconds
    pub since: u64,
}

/// What admission said to a device's last `Enrol`
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// Its name
    pub(super) decision: &'static str,
    pub(super) ek_hash: Option<String>,
    pub(super) remedy: Option<String>,
}

impl Admitted {
    pub(super) fn of(decision: &Decision, id: &AgentId) -> Self {
        let ek_hash = match decision {
            Decision::Admitted { ek_hash }
            | Decision::UnknownCa { ek_hash, .. }
            | Decision::NoCertificate { ek_hash }
            | Decision::NotAdmitted { ek_hash }
            | Decision::IdMismatch { ek_hash } => Some(ek_hash.to_string()),
            Decision::Malformed { .. } | Decision::UnfitAk(_) => None,
        };
        let detail = match decision {
            Decision::UnfitAk(unfit) => Some(unfit.to_string()),
            Decision::Malformed { reason } => Some((*reason).to_owned()),
            _ => decision.remedy(id.as_str()),
        };
        Self { decision: decision.name(), ek_hash, remedy: detail }
    }
}

/// The JSON of a device's result topic
pub(super) fn result_of(id: &AgentId, report: &Report) -> AttestationResult {
    let time = unix_now();
    AttestationResult {
        agent_id: id.clone(),
        verdict: report.verdict,
        time,
        valid_until: time.saturating_add(report.valid_for.as_secs()),
        nonce_sha256: report.nonce.map(|digest| hex::encode(digest.as_bytes())),
        attestation_count: report.attestation_count,
        reason: report.reason.clone(),
    }
}

/// Unix seconds
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
