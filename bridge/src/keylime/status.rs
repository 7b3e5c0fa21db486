//! What the verifier holds of an agent, v2.6: the only place where an agent's token can see a verdict.
//!
//! Invariant: counters and times are passed on as they are; whether a verdict belongs to a certain submission is for the
//! caller to conclude from their advance, since Keylime gives no other sign.
//!
//! Source: `keylime/cloud_verifier_common.py` (`process_get_status`).

use super::Verifier;
use super::endpoint::{Answer, Call, JSON, Keep, MAX_ANSWER};
use super::submission::MAX_INTERVAL;
use super::token::SessionToken;
use super::unavailable::{Reason, Unavailable};
use reqwest::Method;
use serde::Deserialize;
use std::time::Duration;

/// What came of asking for the status
#[derive(Debug)]
pub enum StatusOutcome {
    /// The verifier's view of the agent
    Known(Status),
    /// 401: the token is unknown, replaced or expired
    TokenRejected,
    /// 403: not with this token
    Forbidden,
    /// 404: no such agent at this verifier
    Gone,
    /// No usable answer
    Unavailable(Unavailable),
}

/// The verifier's view of an agent, as far as it concerns the bridge
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// The standing verdict; may be older than the last submission
    #[serde(default)]
    pub attestation_status: AttestationStatus,
    /// Attestations that passed
    #[serde(default, deserialize_with = "null_as_default")]
    pub attestation_count: u64,
    /// Unix seconds, 0 if never
    #[serde(default, deserialize_with = "null_as_default")]
    pub last_successful_attestation: u64,
    /// The verifier's `quote_interval` as it prints it, e.g. `"60s"`
    #[serde(default)]
    pub attestation_period: Option<String>,
}

/// Keylime's verdicts in push mode
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AttestationStatus {
    /// Never judged
    #[default]
    Pending,
    /// The last judged attestation passed
    Pass,
    /// An attestation failed; stays until the agent is added again, unless the verifier is set to recover
    Fail,
    /// Nothing arrived for five intervals
    Timeout,
    /// A word that this version does not know
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Envelope {
    results: Status,
}

impl Verifier {
    /// `GET /v2.6/agents/{id}` with the agent's own token
    pub async fn status(&self, id: &str, token: &SessionToken) -> StatusOutcome {
        let path = ["v2.6", "agents", id];
        let call = Call {
            method: Method::GET,
            path: &path,
            content_type: JSON,
            token: Some(token),
            body: None,
            agent: id,
            max_answer: MAX_ANSWER,
            keep: Keep::All,
        };
        let answer = match self.endpoint.send(call).await {
            Ok(answer) => answer,
            Err(unavailable) => return StatusOutcome::Unavailable(unavailable),
        };
        self.read_status(&answer)
    }

    /// What an answer to [`Self::status`] means
    pub fn read_status(&self, answer: &Answer) -> StatusOutcome {
        match answer.status {
            200 => match parse_status(answer) {
                Ok(status) => StatusOutcome::Known(status),
                Err(reason) => StatusOutcome::Unavailable(self.endpoint.unavailable(reason)),
            },
            401 => StatusOutcome::TokenRejected,
            403 => StatusOutcome::Forbidden,
            404 if answer.is_of_v2() => StatusOutcome::Gone,
            _ => StatusOutcome::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }
}

impl Status {
    /// The verifier's attestation interval, if it could be read; it cuts fractions of a second off
    pub fn interval(&self) -> Option<Duration> {
        let seconds: u64 = self.attestation_period.as_deref()?.strip_suffix('s')?.parse().ok()?;
        (1..=MAX_INTERVAL).contains(&seconds).then(|| Duration::from_secs(seconds))
    }
}

fn parse_status(answer: &Answer) -> Result<Status, Reason> {
    let body = answer.body.as_ref().map_err(|reason| *reason)?;
    serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.results).map_err(|_| Reason::Garbage)
}

fn null_as_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
