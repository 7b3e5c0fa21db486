//! Why an answer could not be used.
//!
//! Invariant: whatever the peer does wrong ends here, under one of a fixed set of reasons that can be counted; nothing of what it sent is
//! kept, so nothing of it can reach a log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;

/// The service gave no usable answer; the request may or may not have had its effect
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{reason}")]
pub struct Unavailable {
    /// What went wrong
    pub reason: Reason,
    /// How long the service asked to be left alone, if it did
    pub retry_after: Option<Duration>,
}

/// What made an answer unusable
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No connection: nothing listens, or the name does not resolve
    #[error("cannot be connected to")]
    Connect,
    /// Its certificate is of another CA, for another name, or out of date
    #[error(
        "shows a certificate that is not trusted here: check ca_file, the host in the url, and both clocks"
    )]
    Certificate,
    /// Connected, and then silent for longer than the configured time
    #[error("did not answer in time")]
    Silent,
    /// The connection broke before the whole answer was read
    #[error("broke off the answer")]
    BrokenOff,
    /// The answer was larger than any of its kind should be
    #[error("sent an answer above its size limit")]
    TooLarge,
    /// A redirect, which is never followed: it could carry a token elsewhere
    #[error("answered with a redirect, which is never followed")]
    Redirected,
    /// 429: too many requests
    #[error("asks for fewer requests (429)")]
    TooMany,
    /// 5xx
    #[error("reports an error of its own (5xx)")]
    ServerError,
    /// A status code that this request has no meaning for
    #[error("answered with a status code that has no meaning here")]
    UnexpectedStatus,
    /// The expected status code with a body that is not what Keylime sends
    #[error("answered with a body that is not Keylime's")]
    Garbage,
}

impl Reason {
    const ALL: [Self; 10] = [
        Self::Connect,
        Self::Certificate,
        Self::Silent,
        Self::BrokenOff,
        Self::TooLarge,
        Self::Redirected,
        Self::TooMany,
        Self::ServerError,
        Self::UnexpectedStatus,
        Self::Garbage,
    ];

    /// A short name for counters and log fields
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Certificate => "certificate",
            Self::Silent => "silent",
            Self::BrokenOff => "broken_off",
            Self::TooLarge => "too_large",
            Self::Redirected => "redirected",
            Self::TooMany => "too_many",
            Self::ServerError => "server_error",
            Self::UnexpectedStatus => "unexpected_status",
            Self::Garbage => "garbage",
        }
    }

    const fn slot(self) -> usize {
        self as usize
    }
}

/// One counter per reason
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Reason::ALL.len()]);

impl Counters {
    /// Counts one more; says how many there were before
    pub(super) fn count(&self, reason: Reason) -> u64 {
        self.0.get(reason.slot()).map_or(0, |slot| slot.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        Reason::ALL
            .iter()
            .zip(&self.0)
            .map(|(reason, n)| (reason.name(), n.load(Ordering::Relaxed)))
            .collect()
    }
}
