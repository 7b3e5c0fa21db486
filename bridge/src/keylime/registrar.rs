//! The registrar, v2.6: registration and activation of an AK under an EK.
//!
//! Two properties of Keylime rule how these calls may be used. Every registration makes a new credential and
//! so invalidates the one before; and a wrong auth tag deletes the record. The caller keeps one registration in flight per device.
//!
//! Source: `keylime/web/registrar/agents_controller.py`; v2 because its v3 handlers fail after they commit.

use super::endpoint::{Answer, Call, Endpoint, EndpointError, EndpointSettings, JSON, Keep, MAX_ANSWER};
use super::unavailable::{Reason, Unavailable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;
use serde::{Deserialize, Serialize};

/// Largest activation blob believed, bytes; an RSA EK makes 336, an ECC one 148
const MAX_BLOB: usize = 2048;
/// What the official push agent registers in place of an address: nobody ever connects to it, yet the tenant reads it
const NO_ADDRESS: (&str, u16) = ("127.0.0.1", 9002);

/// The registrar's REST interface, as an agent may use it
#[derive(Debug)]
pub struct Registrar {
    pub(super) endpoint: Endpoint,
}

/// What came of a registration
#[derive(Debug)]
pub enum Registration {
    /// Pending until activated: the credential blob for TPM2_ActivateCredential, in tpm2-tools' layout
    Registered {
        /// The blob as bytes
        blob: Vec<u8>,
    },
    /// 403: the id belongs to another EK, EK certificate or AK; an administrator must delete that record first
    Conflict,
    /// Another 4xx: the registrar finds the data invalid
    Rejected {
        /// The status code
        status: u16,
    },
    /// No usable answer; the registration may have happened
    Unavailable(Unavailable),
}

/// What came of an activation
#[derive(Debug)]
pub enum Activation {
    /// The AK is bound to the EK and the record is active
    Activated,
    /// 400: wrong tag, and the registrar has deleted the record
    WrongTag,
    /// 404: no such record
    Unknown,
    /// No usable answer; the activation may have happened
    Unavailable(Unavailable),
}

#[derive(Serialize)]
struct RegisterBody<'a> {
    ek_tpm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ekcert: Option<String>,
    aik_tpm: String,
    ip: &'a str,
    port: u16,
    mtls_cert: &'a str,
}

#[derive(Deserialize)]
struct Registered {
    results: Blob,
}

#[derive(Deserialize)]
struct Blob {
    blob: String,
}

#[derive(Serialize)]
struct ActivateBody<'a> {
    auth_tag: &'a str,
}

impl Registrar {
    /// A client for the registrar at `settings.url`; connects lazily
    ///
    /// # Errors
    /// When the URL's scheme does not fit the settings or the client cannot be built.
    pub fn new(settings: &EndpointSettings) -> Result<Self, EndpointError> {
        Ok(Self { endpoint: Endpoint::new(settings)? })
    }

    /// `POST /v2.6/agents/{id}`: registers EK and AK, both TPM2B_PUBLIC, and the EK certificate (DER, the leaf only)
    pub async fn register(
        &self,
        id: &str,
        ek_public: &[u8],
        ek_certificate: Option<&[u8]>,
        ak_public: &[u8],
    ) -> Registration {
        let body = RegisterBody {
            ek_tpm: BASE64.encode(ek_public),
            ekcert: ek_certificate.map(|der| BASE64.encode(der)),
            aik_tpm: BASE64.encode(ak_public),
            ip: NO_ADDRESS.0,
            port: NO_ADDRESS.1,
            mtls_cert: "disabled",
        };
        let answer = match self.call(Method::POST, id, &body).await {
            Ok(answer) => answer,
            Err(unavailable) => return Registration::Unavailable(unavailable),
        };
        self.read_registration(&answer)
    }

    /// What an answer to [`Self::register`] means
    pub fn read_registration(&self, answer: &Answer) -> Registration {
        match answer.status {
            200 => match parse_blob(answer) {
                Ok(blob) => Registration::Registered { blob },
                Err(reason) => Registration::Unavailable(self.endpoint.unavailable(reason)),
            },
            // whatever else listens there must not have an operator delete registrations
            403 if answer.is_of_v2() => Registration::Conflict,
            status @ (400..=402 | 404..=428 | 430..=499) if answer.is_of_v2() => {
                Registration::Rejected { status }
            }
            _ => Registration::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    /// `PUT /v2.6/agents/{id}`: activates with the tag (48 bytes) that the device computed over its own id
    pub async fn activate(&self, id: &str, auth_tag: &[u8]) -> Activation {
        let tag = hex::encode(auth_tag);
        let answer = match self.call(Method::PUT, id, &ActivateBody { auth_tag: &tag }).await {
            Ok(answer) => answer,
            Err(unavailable) => return Activation::Unavailable(unavailable),
        };
        self.read_activation(&answer)
    }

    /// What an answer to [`Self::activate`] means
    pub fn read_activation(&self, answer: &Answer) -> Activation {
        match answer.status {
            200 => Activation::Activated,
            400 if answer.is_of_v2() => Activation::WrongTag,
            404 if answer.is_of_v2() => Activation::Unknown,
            _ => Activation::Unavailable(self.endpoint.unavailable_answer(answer)),
        }
    }

    /// How often each [`Reason`] made an answer unusable since start
    pub fn unavailable_counts(&self) -> Vec<(&'static str, u64)> {
        self.endpoint.unavailable_counts()
    }

    async fn call(&self, method: Method, id: &str, body: &impl Serialize) -> Result<Answer, Unavailable> {
        let body = serde_json::to_vec(body).map_err(|_| self.endpoint.unavailable(Reason::Garbage))?;
        let path = ["v2.6", "agents", id];
        let call = Call {
            method,
            path: &path,
            content_type: JSON,
            token: None,
            body: Some(body),
            agent: id,
            max_answer: MAX_ANSWER,
            keep: Keep::All,
        };
        self.endpoint.send(call).await
    }
}

fn parse_blob(answer: &Answer) -> Result<Vec<u8>, Reason> {
    let body = answer.body.as_ref().map_err(|reason| *reason)?;
    let registered: Registered = serde_json::from_slice(body).map_err(|_| Reason::Garbage)?;
    match BASE64.decode(registered.results.blob) {
        Ok(blob) if !blob.is_empty() && blob.len() <= MAX_BLOB => Ok(blob),
        _ => Err(Reason::Garbage),
    }
}
