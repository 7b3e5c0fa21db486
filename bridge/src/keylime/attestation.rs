//! Capabilities and challenge at the verifier, v3.0: the first half of an attestation.
//!
//! Each accepted call makes a new attestation whose challenge kills the one before, so this call is made once
//! per attestation and its answer kept; the exchange repeats the challenge to the device, never this request.
//!
//! Source: `keylime/web/verifier/attestation_controller.py` (`create`), `keylime/verification/tpm_engine.py`.

use super::Verifier;
use super::endpoint::{Answer, Call, JSON_API, Keep, MAX_ANSWER};
use super::json_api::Document;
use super::session::{NONCE_LEN, lifetime, parse_nonce};
use super::token::SessionToken;
use super::unavailable::{Reason, Unavailable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The one PCR bank and hash; the verifier's session code knows no other
const SHA256: &str = "sha256";
/// The one signature scheme for the same reason
const RSASSA: &str = "rsassa";
/// The one key algorithm
const RSA: &str = "rsa";
/// PCRs of a bank (PC Client Platform TPM Profile)
const PCR_COUNT: u32 = 24;
/// A UEFI log is handed over as it is
const BINARY: &str = "application/octet-stream";
/// IMA's ascii form
const PLAIN_TEXT: &str = "text/plain";
/// Most evidence items that a challenge asks for: quote, UEFI log, IMA log
const MAX_ITEMS: usize = 3;

/// What a device can give evidence of
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// TPM2B_PUBLIC of the AK
    pub ak_public: Vec<u8>,
    /// TPM name of the AK
    pub ak_name: Vec<u8>,
    /// RSA key size in bits
    pub ak_bits: u16,
    /// Bit n for PCR n of the sha256 bank
    pub pcr_mask: u32,
    /// Entries in the IMA log, at least; `None` or 0 where there is no log
    pub ima_entries: Option<u64>,
    /// Whether there is a UEFI log
    pub uefi: bool,
    /// Unix seconds. Equal within a boot to the second, never smaller than for an earlier boot: the verifier decides by it where the IMA log
    /// starts, and fails for good without it
    pub boot_time: i64,
}

/// What came of offering capabilities
#[derive(Debug)]
pub enum Offered {
    /// The verifier wants evidence
    Challenged(Challenged),
    /// The agent is enrolled with no policy at all, so there is nothing to ask for
    NothingRequested,
    /// 401: the token is unknown, replaced or expired
    TokenRejected,
    /// 404: no such agent at this verifier
    NotEnrolled,
    /// 403: not with this token, or attestations are disabled for the agent
    Forbidden,
    /// 409: another bridge is creating an attestation for the same agent at this moment
    Conflict,
    /// 429: within the verifier's attestation interval
    Early {
        /// When to offer again, if said
        retry_after: Option<Duration>,
    },
    /// 400, 415, 422: the verifier cannot use these capabilities
    Invalid {
        /// The verifier's own words, bounded and printable
        detail: String,
    },
    /// No usable answer; an attestation may have been created
    Unavailable(Unavailable),
}

/// A challenge of the verifier
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenged {
    /// The attestation's index: where evidence must go, and nothing else
    pub index: u64,
    /// The quote's qualifying data
    pub nonce: [u8; NONCE_LEN],
    /// PCRs to quote, sha256 bank
    pub pcr_mask: u32,
    /// First IMA entry wanted, if the log is wanted
    pub ima_offset: Option<u64>,
    /// Whether the UEFI log is wanted
    pub uefi: bool,
    /// How long the challenge is good, by the verifier's own clock
    pub good_for: Duration,
    /// What is wanted in the order in which it must be given
    pub order: Vec<EvidenceType>,
}

/// The kinds of evidence that Keylime knows
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceType {
    /// TPM2_Quote
    TpmQuote,
    /// The firmware's measurement log
    UefiLog,
    /// The kernel's measurement list
    ImaLog,
}

#[derive(Serialize)]
struct Offer<'a> {
    evidence_supported: Vec<Supported<'a>>,
    system_info: SystemInfo,
}

#[derive(Serialize)]
struct Supported<'a> {
    evidence_class: &'static str,
    evidence_type: EvidenceType,
    capabilities: SupportedBy<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SupportedBy<'a> {
    Quote {
        component_version: &'static str,
        hash_algorithms: [&'static str; 1],
        signature_schemes: [&'static str; 1],
        available_subjects: BTreeMap<&'static str, Vec<u32>>,
        certification_keys: [CertificationKey<'a>; 1],
    },
    Log {
        #[serde(skip_serializing_if = "Option::is_none")]
        entry_count: Option<u64>,
        supports_partial_access: bool,
        appendable: bool,
        formats: [&'static str; 1],
    },
}

#[derive(Serialize)]
struct CertificationKey<'a> {
    key_class: &'a str,
    key_algorithm: &'a str,
    key_size: u16,
    server_identifier: &'a str,
    local_identifier: String,
    public: String,
    allowable_hash_algorithms: [&'a str; 1],
    allowable_signature_schemes: [&'a str; 1],
}

#[derive(Serialize)]
struct SystemInfo {
    boot_time: String,
}

#[derive(Deserialize)]
struct Awaiting {
    #[serde(default)]
    evidence_requested: Vec<Requested>,
    #[serde(default)]
    capabilities_received_at: String,
    #[serde(default)]
    challenges_expire_at: String,
}

#[derive(Deserialize)]
struct Requested {
    evidence_type: EvidenceType,
    #[serde(default)]
    chosen_parameters: Chosen,
}

#[derive(Default, Deserialize)]
struct Chosen {
    challenge: Option<String>,
    signature_scheme: Option<String>,
    hash_algorithm: Option<String>,
    selected_subjects: Option<BTreeMap<String, Vec<u32>>>,
    starting_offset: Option<u64>,
}

impl Verifier {
    /// `POST /v3.0/agents/{id}/attestations`
    pub async fn offer(&self, id: &str, token: &SessionToken, capabilities: &Capabilities) -> Offered {
        let answer = match self.post_offer(id, token, capabilities).await {
            Ok(answer) => answer,
            Err(unavailable) => return Offered::Unavailable(unavailable),
        };
        self.read_offered(&answer)
    }

    /// What an answer to [`Self::offer`] means
    pub fn read_offered(&self, answer: &Answer) -> Offered {
        let errors = answer.errors();
        match answer.status {
            201 => match parse_challenged(answer) {
                Ok(Some(challenged)) => Offered::Challenged(challenged),
                Ok(None) => Offered::NothingRequested,
                Err(reason) => Offered::Unavailable(self.endpoint.unavailable(reason)),
            },
            400 | 415 | 422 => Offered::Invalid { detail: errors.detail() },
            401 => Offered::TokenRejected,
            403 => Offered::Forbidden,
            // a 404 without Keylime's code comes from something else that listens there
            404 if errors.has("not_found") => Offered::NotEnrolled,
            409 => Offered::Conflict,
            429 => Offered::Early { retry_after: answer.retry_after },
            _ => Offered::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    async fn post_offer(
        &self,
        id: &str,
        token: &SessionToken,
        capabilities: &Capabilities,
    ) -> Result<Answer, Unavailable> {
        let garbage = || self.endpoint.unavailable(Reason::Garbage);
        let document = Document::new("attestation", None, offer_of(capabilities).map_err(|_| garbage())?);
        let body = serde_json::to_vec(&document).map_err(|_| garbage())?;
        let path = ["v3.0", "agents", id, "attestations"];
        let call = Call {
            method: Method::POST,
            path: &path,
            content_type: JSON_API,
            token: Some(token),
            body: Some(body),
            agent: id,
            max_answer: MAX_ANSWER,
            keep: Keep::All,
        };
        self.endpoint.send(call).await
    }
}

fn offer_of(capabilities: &Capabilities) -> Result<Offer<'static>, jiff::Error> {
    let mut evidence_supported = vec![Supported {
        evidence_class: "certification",
        evidence_type: EvidenceType::TpmQuote,
        capabilities: quote_of(capabilities),
    }];
    if capabilities.uefi {
        evidence_supported.push(log_of(EvidenceType::UefiLog, None, BINARY));
    }
    if let Some(entries) = capabilities.ima_entries.filter(|entries| *entries > 0) {
        evidence_supported.push(log_of(EvidenceType::ImaLog, Some(entries), PLAIN_TEXT));
    }
    let boot_time = Timestamp::from_second(capabilities.boot_time)?.to_string();
    Ok(Offer { evidence_supported, system_info: SystemInfo { boot_time } })
}

fn quote_of(capabilities: &Capabilities) -> SupportedBy<'static> {
    let pcrs = (0..PCR_COUNT).filter(|pcr| capabilities.pcr_mask & (1 << pcr) != 0).collect();
    // Keylime wants TPMT_PUBLIC here: TPM2B_PUBLIC without its size
    let public = capabilities.ak_public.get(2..).unwrap_or_default();
    SupportedBy::Quote {
        component_version: "2.0",
        hash_algorithms: [SHA256],
        signature_schemes: [RSASSA],
        available_subjects: BTreeMap::from([(SHA256, pcrs)]),
        certification_keys: [CertificationKey {
            key_class: "asymmetric",
            key_algorithm: RSA,
            key_size: capabilities.ak_bits,
            server_identifier: "ak",
            local_identifier: hex::encode(&capabilities.ak_name),
            public: BASE64.encode(public),
            // without it the tenant's order decides, sha512 first
            allowable_hash_algorithms: [SHA256],
            allowable_signature_schemes: [RSASSA],
        }],
    }
}

fn log_of(evidence_type: EvidenceType, entry_count: Option<u64>, format: &'static str) -> Supported<'static> {
    let growing = entry_count.is_some();
    let capabilities = SupportedBy::Log {
        entry_count,
        supports_partial_access: growing,
        appendable: growing,
        formats: [format],
    };
    Supported { evidence_class: "log", evidence_type, capabilities }
}

/// `None` when nothing is requested
fn parse_challenged(answer: &Answer) -> Result<Option<Challenged>, Reason> {
    let body = answer.body.as_ref().map_err(|reason| *reason)?;
    let document: Document<Awaiting> = serde_json::from_slice(body).map_err(|_| Reason::Garbage)?;
    let awaiting = document.data.attributes;
    if awaiting.evidence_requested.is_empty() {
        return Ok(None);
    }
    let order: Vec<_> = awaiting.evidence_requested.iter().map(|item| item.evidence_type).collect();
    let distinct = order.iter().enumerate().all(|(n, kind)| !order.iter().take(n).any(|other| other == kind));
    if order.len() > MAX_ITEMS || !distinct {
        return Err(Reason::Garbage);
    }
    let of = |kind| awaiting.evidence_requested.iter().find(|item| item.evidence_type == kind);
    let quote = &of(EvidenceType::TpmQuote).ok_or(Reason::Garbage)?.chosen_parameters;
    let (nonce, pcr_mask) = parse_quote_request(quote)?;
    Ok(Some(Challenged {
        index: parse_index(answer.location.as_deref())?,
        nonce,
        pcr_mask,
        ima_offset: of(EvidenceType::ImaLog).map(|item| item.chosen_parameters.starting_offset.unwrap_or(0)),
        uefi: of(EvidenceType::UefiLog).is_some(),
        good_for: lifetime(&awaiting.capabilities_received_at, &awaiting.challenges_expire_at)?,
        order,
    }))
}

fn parse_quote_request(chosen: &Chosen) -> Result<([u8; NONCE_LEN], u32), Reason> {
    let offered = chosen.signature_scheme.as_deref() == Some(RSASSA)
        && chosen.hash_algorithm.as_deref() == Some(SHA256);
    let subjects = chosen.selected_subjects.as_ref().ok_or(Reason::Garbage)?;
    let (true, 1, Some(pcrs)) = (offered, subjects.len(), subjects.get(SHA256)) else {
        return Err(Reason::Garbage);
    };
    let mut mask = 0u32;
    for pcr in pcrs {
        if *pcr >= PCR_COUNT {
            return Err(Reason::Garbage);
        }
        mask |= 1 << pcr;
    }
    let nonce = parse_nonce(chosen.challenge.as_deref().ok_or(Reason::Garbage)?)?;
    Ok((nonce, mask))
}

/// `/v3.0/agents/{id}/attestations/{index}`
fn parse_index(location: Option<&str>) -> Result<u64, Reason> {
    let (_, index) = location.and_then(|path| path.rsplit_once("/attestations/")).ok_or(Reason::Garbage)?;
    index.parse().map_err(|_| Reason::Garbage)
}
