//! `websocket_headers`: what the upgrade says besides what WebSocket itself needs, often a token.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};

/// What the upgrade sets itself (RFC 6455 §4.1) or what would change the framing of the request.
const RESERVED: [&str; 5] = ["host", "connection", "upgrade", "content-length", "transfer-encoding"];
/// All that begins so is the protocol's own.
const RESERVED_PREFIX: &str = "sec-websocket-";

/// Header names and values. The values are not in Debug output.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Headers(BTreeMap<String, String>);

impl Headers {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first name that cannot be sent, or whose value cannot.
    pub(super) fn unusable(&self) -> Option<&str> {
        self.iter().find_map(|(name, value)| {
            let lower = name.to_ascii_lowercase();
            let sendable = HeaderName::from_bytes(name.as_bytes()).is_ok()
                && HeaderValue::from_str(value).is_ok()
                && !RESERVED.contains(&lower.as_str())
                && !lower.starts_with(RESERVED_PREFIX);
            (!sendable).then_some(name)
        })
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}
