//! Sessions at the verifier, v3.0: proof of possession of the AK, paid with a token.
//!
//! Opening one is counted by the verifier per client address and per agent, and excess is punished with blocks that double; the caller asks the
//! [session budget](crate::session_budget) first. A session that was answered once is gone, whatever the answer.
//!
//! Source: `keylime/web/verifier/session_controller.py`.

use super::Verifier;
use super::endpoint::{Answer, Call, JSON_API, Keep, MAX_ANSWER};
use super::json_api::Document;
use super::token::SessionToken;
use super::unavailable::{Reason, Unavailable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use zeroize::Zeroizing;

/// Length of the verifier's nonces, bytes
pub(super) const NONCE_LEN: usize = 16;
/// Longest session id believed; Keylime's are UUIDs
const MAX_SESSION_ID: usize = 64;
/// Longest life of a nonce believed; Keylime's default for challenges is half an hour
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What came of asking for a session
#[derive(Debug)]
pub enum SessionOpening {
    /// A nonce to be certified within a minute; says nothing about the agent, Keylime opens sessions for any id
    Opened(OpenedSession),
    /// 429: asked too often
    RateLimited {
        /// How long to ask for no session
        retry_after: Option<Duration>,
        /// For this agent alone, by whatever address; else for any agent from this address
        agent_only: bool,
    },
    /// No usable answer
    Unavailable(Unavailable),
}

/// An open session, good for one proof
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedSession {
    /// The session's id, safe in a URL path
    pub session_id: String,
    /// What the AK must certify
    pub nonce: [u8; NONCE_LEN],
    /// How long the nonce is good, by the verifier's own clock
    pub good_for: Duration,
}

/// What came of a proof
#[derive(Debug)]
pub enum Proved {
    /// The AK of the enrolled agent certified the nonce; all older tokens of the agent are dead
    Token {
        /// The agent's token
        token: SessionToken,
        /// How long it lives unless an attestation passes, by the verifier's own clock: its `session_lifetime`
        good_for: Duration,
    },
    /// `fail` without a reason: the agent is not enrolled at this verifier, or the nonce was too old
    NotEnrolled,
    /// 401: the proof does not verify under the enrolled AK
    BadProof,
    /// The session is unknown, consumed, or of another verifier host: open another
    SessionGone,
    /// No usable answer; the token may exist and is lost
    Unavailable(Unavailable),
}

#[derive(Serialize)]
struct Supported<'a> {
    agent_id: &'a str,
    authentication_supported: [PopMethod; 1],
}

/// The one authentication method there is
#[derive(Serialize)]
struct PopMethod {
    authentication_class: &'static str,
    authentication_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Proof>,
}

#[derive(Serialize)]
struct Proof {
    message: String,
    signature: String,
}

#[derive(Serialize)]
struct Provided<'a> {
    agent_id: &'a str,
    authentication_provided: [PopMethod; 1],
}

#[derive(Deserialize)]
struct Requested {
    #[serde(rename = "authentication_requested")]
    methods: Vec<RequestedMethod>,
    created_at: String,
    challenges_expire_at: String,
}

#[derive(Deserialize)]
struct RequestedMethod {
    chosen_parameters: ChosenParameters,
}

#[derive(Deserialize)]
struct ChosenParameters {
    challenge: String,
}

#[derive(Deserialize)]
struct Evaluated {
    evaluation: Evaluation,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    response_received_at: Option<String>,
    #[serde(default)]
    token_expires_at: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Evaluation {
    Pass,
    Fail,
}

impl Verifier {
    /// `POST /v3.0/sessions`
    pub async fn open_session(&self, id: &str) -> SessionOpening {
        let attributes = Supported { agent_id: id, authentication_supported: [tpm_pop(None)] };
        let document = Document::new("session", None, attributes);
        let answer = match self.session_call(Method::POST, &["v3.0", "sessions"], id, &document).await {
            Ok(answer) => answer,
            Err(unavailable) => return SessionOpening::Unavailable(unavailable),
        };
        self.read_opening(&answer)
    }

    /// What an answer to [`Self::open_session`] means
    pub fn read_opening(&self, answer: &Answer) -> SessionOpening {
        match answer.status {
            200 | 201 => match parse_opened(answer) {
                Ok(opened) => SessionOpening::Opened(opened),
                Err(reason) => SessionOpening::Unavailable(self.endpoint.unavailable(reason)),
            },
            429 => {
                let unavailable = self.endpoint.unavailable_answer(answer);
                // its two limits answer alike but for these words
                let agent_only = answer.errors().detail().contains("for this agent");
                SessionOpening::RateLimited { retry_after: unavailable.retry_after, agent_only }
            }
            _ => SessionOpening::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    /// `PATCH /v3.0/sessions/{session_id}` with TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify over the AK by itself
    pub async fn prove(&self, id: &str, session_id: &str, attest: &[u8], signature: &[u8]) -> Proved {
        let proof = Proof { message: BASE64.encode(attest), signature: BASE64.encode(signature) };
        let attributes = Provided { agent_id: id, authentication_provided: [tpm_pop(Some(proof))] };
        let document = Document::new("session", Some(session_id), attributes);
        let path = ["v3.0", "sessions", session_id];
        let answer = match self.session_call(Method::PATCH, &path, id, &document).await {
            Ok(answer) => answer,
            Err(unavailable) => return Proved::Unavailable(unavailable),
        };
        self.read_proved(&answer)
    }

    /// What an answer to [`Self::prove`] means
    pub fn read_proved(&self, answer: &Answer) -> Proved {
        match answer.status {
            200 => match parse_evaluated(answer) {
                Ok(proved) => proved,
                Err(reason) => Proved::Unavailable(self.endpoint.unavailable(reason)),
            },
            401 => Proved::BadProof,
            // 500 is Keylime's answer to a repeated proof: its cached record then lacks the nonce
            400 | 404 | 500 => Proved::SessionGone,
            _ => Proved::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    async fn session_call(
        &self,
        method: Method,
        path: &[&str],
        id: &str,
        document: &impl Serialize,
    ) -> Result<Answer, Unavailable> {
        let body = serde_json::to_vec(document).map_err(|_| self.endpoint.unavailable(Reason::Garbage))?;
        let call = Call {
            method,
            path,
            content_type: JSON_API,
            token: None,
            body: Some(body),
            agent: id,
            max_answer: MAX_ANSWER,
            keep: Keep::All,
        };
        self.endpoint.send(call).await
    }
}

fn tpm_pop(data: Option<Proof>) -> PopMethod {
    PopMethod { authentication_class: "pop", authentication_type: "tpm_pop", data }
}

fn parse_opened(answer: &Answer) -> Result<OpenedSession, Reason> {
    let body = answer.body.as_ref().map_err(|reason| *reason)?;
    let document: Document<Requested> = serde_json::from_slice(body).map_err(|_| Reason::Garbage)?;
    let session_id = document.data.id.ok_or(Reason::Garbage)?;
    let safe = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if session_id.is_empty() || session_id.len() > MAX_SESSION_ID || !session_id.chars().all(safe) {
        return Err(Reason::Garbage);
    }
    let requested = document.data.attributes;
    let [method] = requested.methods.as_slice() else {
        return Err(Reason::Garbage);
    };
    let nonce = parse_nonce(&method.chosen_parameters.challenge)?;
    let good_for = lifetime(&requested.created_at, &requested.challenges_expire_at)?;
    Ok(OpenedSession { session_id, nonce, good_for })
}

fn parse_evaluated(answer: &Answer) -> Result<Proved, Reason> {
    let body = answer.body.as_ref().map_err(|reason| *reason)?;
    let document: Document<Evaluated> = serde_json::from_slice(body).map_err(|_| Reason::Garbage)?;
    let evaluated = document.data.attributes;
    match evaluated.evaluation {
        Evaluation::Fail => Ok(Proved::NotEnrolled),
        Evaluation::Pass => {
            let token = SessionToken::new(Zeroizing::new(evaluated.token.ok_or(Reason::Garbage)?))
                .map_err(|_| Reason::Garbage)?;
            let from = evaluated.response_received_at.ok_or(Reason::Garbage)?;
            let to = evaluated.token_expires_at.ok_or(Reason::Garbage)?;
            Ok(Proved::Token { token, good_for: lifetime(&from, &to)? })
        }
    }
}

/// A nonce in base64, of exactly the length that Keylime uses
pub(super) fn parse_nonce(text: &str) -> Result<[u8; NONCE_LEN], Reason> {
    let bytes = BASE64.decode(text).map_err(|_| Reason::Garbage)?;
    bytes.try_into().map_err(|_| Reason::Garbage)
}

/// Between two times of one answer, so that the clocks of bridge and verifier need not agree
pub(super) fn lifetime(from: &str, to: &str) -> Result<Duration, Reason> {
    let seconds = parse_time(to)?.saturating_sub(parse_time(from)?);
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds).min(MAX_LIFETIME)),
        _ => Err(Reason::Garbage),
    }
}

/// An ISO 8601 time with offset, as Unix seconds
fn parse_time(text: &str) -> Result<i64, Reason> {
    text.parse::<Timestamp>().map(Timestamp::as_second).map_err(|_| Reason::Garbage)
}
