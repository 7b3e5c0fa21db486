//! Keylime's registrar and verifier as they are, seen from one client.
//!
//! Each call makes one HTTP request and turns whatever came back into one typed outcome: no retry, no waiting, no judgement happens in here, since
//! only the exchange knows what a second attempt would cost. Every answer is treated as hostile: its size is bounded, redirects
//! are not followed, and what does not parse is [`Unavailable`], counted by reason. The only strings compared
//! are Keylime's own error codes.
//!
//! Place in the flow: `exchange::Relay` -> here -> registrar (v2.6) and verifier (v3.0 sessions and attestations, v2.6 status).
//!
//! Shapes are those of Keylime 7.14.3 (`keylime/web/registrar/agents_controller.py`,
//! `keylime/web/verifier/{session,attestation}_controller.py`, `keylime/cloud_verifier_common.py`).

mod attestation;
mod endpoint;
mod json_api;
mod registrar;
mod session;
mod status;
mod submission;
mod token;
mod trust;
mod unavailable;
mod version;

pub use attestation::{Capabilities, Challenged, EvidenceType, Offered};
pub use endpoint::{Answer, EndpointError, EndpointSettings};
pub use registrar::{Activation, Registrar, Registration};
pub use session::{OpenedSession, Proved, SessionOpening};
pub use status::{AttestationStatus, Status, StatusOutcome};
pub use submission::{EvidenceBody, ImaSegment, Submission, UefiText};
pub use token::{SessionToken, TokenError};
pub use trust::{TrustError, trust_from_ca_file};
pub use unavailable::{Reason, Unavailable};
pub use version::VerifierMode;

use endpoint::Endpoint;

/// The verifier's REST interface, as an agent may use it
///
/// Holds no credential of its own: every request that needs one carries the session token of its device, and no client certificate is
/// ever presented, because Keylime takes a request with a certificate and without a token for an administrator's.
#[derive(Debug)]
pub struct Verifier {
    endpoint: Endpoint,
}

impl Verifier {
    /// A client for the verifier at `settings.url`; connects lazily
    ///
    /// # Errors
    /// When the URL is not `https` or the TLS client cannot be built.
    pub fn new(settings: &EndpointSettings) -> Result<Self, EndpointError> {
        Ok(Self { endpoint: Endpoint::new(settings)? })
    }

    /// How often each [`Reason`] made an answer unusable since start
    pub fn unavailable_counts(&self) -> Vec<(&'static str, u64)> {
        self.endpoint.unavailable_counts()
    }

    /// How often it came back after it could not be connected to: most likely it was restarted
    pub fn returns(&self) -> u64 {
        self.endpoint.returns()
    }
}
