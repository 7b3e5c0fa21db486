//! Do sessions last from one attestation to the next?
//!
//! They do with the verifier's defaults. Where they do not, everything still works, at the price of a proof per attestation, which a metered link
//! pays for; so the operator is told once which setting it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Whether the verifier's settings let a session last from one attestation to the next
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    /// `session_lifetime` in seconds as the last token showed it; 0 before
    session: AtomicU64,
    told: AtomicBool,
}

impl Lifetimes {
    pub(super) fn session(&self, good_for: Duration) {
        self.session.store(good_for.as_secs(), Ordering::Relaxed);
    }

    /// Only a PASS extends a session, so it has to outlast a lost attestation too; told once
    pub(super) fn interval(&self, seconds: u64) {
        let session = self.session.load(Ordering::Relaxed);
        let short = session > 0 && session < seconds.saturating_mul(2);
        if short && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                session_lifetime = session,
                quote_interval = seconds,
                "the verifier's session_lifetime is below twice its quote_interval, so devices have to prove themselves \
                 again and again; raise session_lifetime"
            );
        }
    }
}
