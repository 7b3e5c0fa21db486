//! Evidence to the verifier, v3.0: the second half of an attestation.
//!
//! Always to the explicit index of the challenge, never to `latest`: a repeat of a lost request is then harmless, where `latest` could have
//! a good quote judged against another nonce and the device failed for good.
//!
//! 202 means received, not passed. Its body echoes all evidence, which may be many megabytes; only its end is kept, where the wait stands.
//!
//! Source: `keylime/web/verifier/attestation_controller.py` (`update`).

use super::Verifier;
use super::attestation::EvidenceType;
use super::endpoint::{Answer, Call, JSON_API, Keep, MAX_ANSWER, Turn};
use super::json_api::{Document, Errors};
use super::token::SessionToken;
use super::unavailable::{Reason, Unavailable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;

/// Room for a quote, its PCRs and the names of all members
const QUOTE_ROOM: usize = 8 * 1024;
/// From here on writing the body takes long enough, milliseconds, to leave it to another thread, bytes
const LONG: usize = 256 * 1024;
/// Kept of an echo: `meta` and what Keylime puts after it have some hundred bytes, errors some thousand
const ECHO_TAIL: usize = 16 * 1024;
/// Longest wait believed until the next attestation, seconds
pub(super) const MAX_INTERVAL: u64 = 7 * 24 * 3600;

/// Evidence in the forms that Keylime reads
#[derive(Debug, Clone)]
pub struct EvidenceBody {
    /// TPMS_ATTEST, without a size
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE
    pub signature: Vec<u8>,
    /// Quoted PCRs in tpm2-tools' layout, see [`crate::restore::pcr_blob`]
    pub pcr_blob: Vec<u8>,
    /// IMA entries from the requested offset
    pub ima: Option<ImaSegment>,
    /// The whole UEFI log
    pub uefi: Option<UefiText>,
}

/// A UEFI log as Keylime's JSON has it, in base64
///
/// It is the same every time, so it is made once, quotation marks included: to look each time for what has to be escaped, where nothing ever has, was
/// a quarter of all that the bridge computed for an attestation.
#[derive(Debug, Clone)]
pub struct UefiText(Arc<RawValue>);

impl UefiText {
    /// `None` only if base64 were no JSON string
    pub fn of(log: &[u8]) -> Option<Self> {
        Some(Self(to_raw_value(&BASE64.encode(log)).ok()?.into()))
    }
}

/// Entries of an IMA log, shared with who keeps them until the verifier has them: they may be many megabytes
#[derive(Debug, Clone)]
pub struct ImaSegment {
    count: u64,
    lines: Arc<Vec<u8>>,
}

impl ImaSegment {
    /// Ascii lines, each ended by a line feed; `None` where they are not UTF-8, which JSON cannot carry
    pub fn of(lines: Arc<Vec<u8>>) -> Option<Self> {
        let count = str::from_utf8(&lines).ok()?.matches('\n').count() as u64;
        Some(Self { count, lines })
    }

    /// What it takes in JSON: each line feed becomes two characters
    fn bytes(&self) -> usize {
        self.lines.len() + usize::try_from(self.count).unwrap_or(0)
    }
}

/// What came of submitting evidence
#[derive(Debug)]
pub enum Submission {
    /// 202: received; the verdict is in the agent's status, after a while
    Accepted {
        /// Seconds until the verifier takes the next attestation, if it said so
        seconds_to_next: Option<u64>,
    },
    /// 403 `evidence_immutable`: an earlier attempt had arrived
    AlreadyAccepted,
    /// 403 `old_attestation` or `challenges_expired`: a new challenge is needed
    Superseded,
    /// 403 for another reason: not with this token
    Forbidden,
    /// 401: the token is unknown, replaced or expired; the same evidence is still good for the same index
    TokenRejected,
    /// 404: the agent or the attestation is gone
    Gone,
    /// 400, 422: the verifier cannot read the evidence, or it was not what it asked for
    Invalid {
        /// The verifier's own words, bounded and printable
        detail: String,
    },
    /// No usable answer; the evidence may have been received
    Unavailable(Unavailable),
}

#[derive(Serialize)]
struct Collected<'a> {
    evidence_collected: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    evidence_class: &'static str,
    evidence_type: EvidenceType,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Quote { message: String, signature: String, subject_data: String },
    Uefi { entries: &'a RawValue },
    // as text: base64 would be taken for bytes and make the verifier fail
    Ima { entry_count: u64, entries: &'a str },
}

#[derive(Deserialize)]
struct Meta {
    seconds_to_next_attestation: u64,
}

impl Verifier {
    /// `PATCH /v3.0/agents/{id}/attestations/{index}`, items in the order in which they were requested
    pub async fn submit(
        &self,
        id: &str,
        token: &SessionToken,
        index: u64,
        evidence: EvidenceBody,
        order: &[EvidenceType],
    ) -> Submission {
        if !order.iter().all(|kind| evidence.has(*kind)) {
            return Submission::Invalid { detail: "a requested log is missing".to_owned() };
        }
        let turn = match self.endpoint.turn(id).await {
            Ok(turn) => turn,
            Err(unavailable) => return Submission::Unavailable(unavailable),
        };
        let Some(body) = write_body(evidence, order).await else {
            return Submission::Unavailable(self.endpoint.unavailable(Reason::Garbage));
        };
        let mut answer = match self.patch_evidence(turn, (id, index), token, body).await {
            Ok(answer) => answer,
            Err(unavailable) => return Submission::Unavailable(unavailable),
        };
        let submission = self.read_submission(&answer);
        if let Ok(echo) = &mut answer.body {
            // no secret in it: wiping it would cost more than reading it
            drop(std::mem::take(&mut **echo));
        }
        submission
    }

    /// What an answer to [`Self::submit`] means
    pub fn read_submission(&self, answer: &Answer) -> Submission {
        // the echo is large, and no error
        let errors = if answer.status == 202 { Errors::default() } else { answer.errors() };
        match answer.status {
            // received, even where the echo after it was cut off
            202 => Submission::Accepted { seconds_to_next: parse_wait(answer) },
            400 | 422 => Submission::Invalid { detail: errors.detail() },
            401 => Submission::TokenRejected,
            403 if errors.has("evidence_immutable") => Submission::AlreadyAccepted,
            403 if errors.has("old_attestation") || errors.has("challenges_expired") => {
                Submission::Superseded
            }
            403 => Submission::Forbidden,
            404 if errors.has("not_found") => Submission::Gone,
            _ => Submission::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    async fn patch_evidence(
        &self,
        turn: Turn<'_>,
        (id, index): (&str, u64),
        token: &SessionToken,
        body: Vec<u8>,
    ) -> Result<Answer, Unavailable> {
        // the echo repeats the evidence and the capabilities and adds the PCRs in hex
        let max_answer = body.len() + body.len() / 2 + MAX_ANSWER;
        let index = index.to_string();
        let path = ["v3.0", "agents", id, "attestations", &index];
        let call = Call {
            method: Method::PATCH,
            path: &path,
            content_type: JSON_API,
            token: Some(token),
            body: Some(body),
            agent: id,
            max_answer,
            keep: Keep::Tail(ECHO_TAIL),
        };
        self.endpoint.send_in(turn, call).await
    }
}

/// The evidence goes with it: all that is held of it while the verifier judges it is the body, and what the caller shares
async fn write_body(evidence: EvidenceBody, order: &[EvidenceType]) -> Option<Vec<u8>> {
    if evidence.log_bytes() < LONG {
        return body_of(&evidence, order);
    }
    let order = order.to_vec();
    tokio::task::spawn_blocking(move || body_of(&evidence, &order)).await.ok()?
}

fn body_of(evidence: &EvidenceBody, order: &[EvidenceType]) -> Option<Vec<u8>> {
    let items = order.iter().map(|kind| item_of(*kind, evidence)).collect::<Option<_>>()?;
    let mut body = Vec::with_capacity(evidence.log_bytes() + QUOTE_ROOM);
    let document = Document::new("attestation", None, Collected { evidence_collected: items });
    serde_json::to_writer(&mut body, &document).ok()?;
    Some(body)
}

impl EvidenceBody {
    /// What the logs take in JSON, bytes
    pub fn log_bytes(&self) -> usize {
        let uefi = self.uefi.as_ref().map_or(0, |log| log.0.get().len());
        uefi + self.ima.as_ref().map_or(0, ImaSegment::bytes)
    }

    /// Whether it holds what the verifier asked for
    fn has(&self, kind: EvidenceType) -> bool {
        match kind {
            EvidenceType::TpmQuote => true,
            EvidenceType::UefiLog => self.uefi.is_some(),
            EvidenceType::ImaLog => self.ima.is_some(),
        }
    }
}

fn item_of(kind: EvidenceType, evidence: &EvidenceBody) -> Option<Item<'_>> {
    let (evidence_class, data) = match kind {
        EvidenceType::TpmQuote => {
            let message = BASE64.encode(&evidence.attest);
            let signature = BASE64.encode(&evidence.signature);
            let subject_data = BASE64.encode(&evidence.pcr_blob);
            ("certification", Data::Quote { message, signature, subject_data })
        }
        EvidenceType::UefiLog => ("log", Data::Uefi { entries: &evidence.uefi.as_ref()?.0 }),
        EvidenceType::ImaLog => {
            let ima = evidence.ima.as_ref()?;
            ("log", Data::Ima { entry_count: ima.count, entries: str::from_utf8(&ima.lines).ok()? })
        }
    };
    Some(Item { evidence_class, evidence_type: kind, data })
}

/// `meta` follows the echo. Within the echo no such bytes can stand: there, quotation marks are escaped
fn parse_wait(answer: &Answer) -> Option<u64> {
    const META: &[u8] = b"\"meta\":";
    let body = answer.body.as_ref().ok()?;
    let at = body.windows(META.len()).rposition(|window| window == META)?;
    let mut meta = serde_json::Deserializer::from_slice(body.get(at + META.len()..)?);
    let meta = Meta::deserialize(&mut meta).ok()?;
    Some(meta.seconds_to_next_attestation.min(MAX_INTERVAL))
}
