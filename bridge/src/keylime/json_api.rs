//! The JSON:API envelopes that Keylime v3 speaks.
//!
//! Invariant: only members that matter are read, unknown ones are skipped, and nothing here allocates beyond the bounded body.
//! Source: `keylime/web/base/api_messages/`.

use serde::{Deserialize, Serialize};

/// Longest text of Keylime's kept for an operator to read, bytes
const MAX_DETAIL: usize = 300;
/// Most error objects looked at: one per invalid field
const MAX_ERRORS: usize = 8;

/// `{"data": {"type", "id", "attributes"}}`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Document<A> {
    pub(super) data: Resource<A>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Resource<A> {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) id: Option<String>,
    pub(super) attributes: A,
}

impl<A> Document<A> {
    pub(super) fn new(kind: &str, id: Option<&str>, attributes: A) -> Self {
        Self { data: Resource { kind: kind.to_owned(), id: id.map(str::to_owned), attributes } }
    }
}

/// `{"code", "status", "results"}`, in which Keylime's v2 answers
#[derive(Deserialize)]
struct Results {
    code: u16,
    #[serde(rename = "results")]
    _results: serde::de::IgnoredAny,
}

/// Whether it is Keylime that answers so, and about the resource itself: a proxy's page is in no such form, nor is the word
/// of a Keylime service that was asked for what another one has, which refuses in JSON:API
pub(super) fn is_of_v2(status: u16, body: &[u8]) -> bool {
    serde_json::from_slice::<Results>(body).is_ok_and(|results| results.code == status)
}

/// `{"errors": [...]}`
#[derive(Debug, Default, Deserialize)]
pub(super) struct Errors {
    #[serde(default)]
    errors: Vec<ErrorObject>,
}

#[derive(Debug, Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    source: Option<Source>,
}

#[derive(Debug, Deserialize)]
struct Source {
    #[serde(default)]
    pointer: Option<String>,
}

impl Errors {
    /// Reads an error body; anything that is none counts as one without errors
    pub(super) fn parse(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// Whether Keylime gave this error code
    pub(super) fn has(&self, code: &str) -> bool {
        self.errors.iter().any(|error| error.code.as_deref() == Some(code))
    }

    /// What Keylime said, for an operator: bounded, and without control characters
    pub(super) fn detail(&self) -> String {
        let mut text = String::new();
        for error in self.errors.iter().take(MAX_ERRORS) {
            for part in [error.source.as_ref().and_then(|s| s.pointer.as_ref()), error.detail.as_ref()] {
                let Some(part) = part else { continue };
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(part);
            }
        }
        printable(&text)
    }
}

/// At most [`MAX_DETAIL`] characters of a foreign text, harmless in a log line
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_bounded_and_cannot_forge_log_lines() {
        let long = "x".repeat(5000);
        let body = format!(r#"{{"errors":[{{"code":"a","detail":"line\nother {long}"}}]}}"#);
        let errors = Errors::parse(body.as_bytes());
        assert!(errors.has("a"));
        assert!(errors.detail().len() <= MAX_DETAIL);
        assert!(!errors.detail().contains('\n'));
    }
}
