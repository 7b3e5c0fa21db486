//! The name of a device, parsed once at the edge and safe everywhere afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest id in bytes: the width of Keylime's `agent_id` column.
pub const MAX_AGENT_ID: usize = 80;

/// A device's id: `[A-Za-z0-9_.-]`, 1 to 80 characters, as Keylime's `valid_agent_id` has it.
///
/// `..` and a leading dot are refused on top of Keylime's rule, since the id becomes a segment of a URL and of paths.
/// A value of this type is safe in a topic, a URL path, a file name and a log line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

/// Why a string is not an [`AgentId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgentIdError {
    /// Nothing, or more than [`MAX_AGENT_ID`] bytes.
    #[error("an agent id has 1 to {MAX_AGENT_ID} characters, this one has {0}")]
    Length(usize),
    /// A character outside `[A-Za-z0-9_.-]`.
    #[error("an agent id is made of A-Z a-z 0-9 _ . - only; byte {0} is something else")]
    Character(usize),
    /// `..` or a leading dot.
    #[error("an agent id neither starts with a dot nor contains '..'")]
    Dots,
}

impl AgentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        if text.is_empty() || text.len() > MAX_AGENT_ID {
            return Err(AgentIdError::Length(text.len()));
        }
        if let Some(at) = text.bytes().position(|b| !(b.is_ascii_alphanumeric() || b"_.-".contains(&b))) {
            return Err(AgentIdError::Character(at));
        }
        if text.starts_with('.') || text.contains("..") {
            return Err(AgentIdError::Dots);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for AgentId {
    type Error = AgentIdError;

    fn try_from(text: String) -> Result<Self, AgentIdError> {
        text.parse()
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_keylime_uses_are_accepted() {
        for id in ["d432fbb3-d2f1-4a97-9ef7-75bd81c00000", "gateway_7.site-3", &"a".repeat(80)] {
            assert_eq!(id.parse::<AgentId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_could_escape_a_topic_or_a_url_are_refused() {
        for id in [
            "",
            "a/b",
            "+",
            "#",
            "a+b",
            "..",
            ".",
            "a..b",
            ".hidden",
            "ä",
            "a b",
            "a\n",
            "$SYS",
            &"a".repeat(81),
        ] {
            assert!(id.parse::<AgentId>().is_err(), "{id:?}");
        }
    }
}
