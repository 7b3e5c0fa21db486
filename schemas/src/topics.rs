//! Topics, built and parsed in this one place.
//!
//! ```text
//! {prefix}/{agent_id}/evidence         device to bridge (any)
//! {prefix}/{agent_id}/evidence/{via}   device to the bridge that asked
//! {prefix}/{agent_id}/challenge        bridge to device
//! {prefix}/{agent_id}/result           retained, bridge to relying parties
//! {prefix}/{agent_id}/presence         retained, device, with a last will
//! {prefix}-bridge/{via}                retained, a bridge's own status
//! ```
//!
//! The id in a topic is a routing claim. A broker's ACL makes it more than that; nothing here does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::agent_id::{AgentId, MAX_AGENT_ID};

/// AWS IoT Core's limit on a topic, the lowest among the brokers in use.
pub const MAX_TOPIC_BYTES: usize = 256;
/// AWS IoT Core's limit on the slashes in a topic.
pub const MAX_TOPIC_SLASHES: usize = 7;
/// Longest name of a bridge. Short, since it travels in every question of a replicated bridge.
pub const MAX_VIA: usize = 16;
/// What a prefix is when nothing is configured.
pub const DEFAULT_PREFIX: &str = "keylime/v1";

/// The name of one bridge among several: `[A-Za-z0-9_-]`, 1 to 16 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Via(String);

impl Via {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Via {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let fits = (1..=MAX_VIA).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(TopicError::Via)
        }
    }
}

impl TryFrom<String> for Via {
    type Error = TopicError;

    fn try_from(text: String) -> Result<Self, TopicError> {
        text.parse()
    }
}

impl From<Via> for String {
    fn from(via: Via) -> Self {
        via.0
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a prefix, a name or a topic is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// A prefix that is empty, has an empty level, a wildcard, `$` in front or a control character.
    #[error(
        "a topic prefix is made of levels of A-Z a-z 0-9 _ . - joined by '/', such as {DEFAULT_PREFIX}: no wildcard, no empty level"
    )]
    Prefix,
    /// Together with the longest id the topic would pass what brokers allow.
    #[error(
        "with this prefix a topic can exceed {MAX_TOPIC_BYTES} bytes or {MAX_TOPIC_SLASHES} slashes: shorten the prefix"
    )]
    TooLong,
    /// Not a bridge's name.
    #[error("a bridge's name is 1 to {MAX_VIA} characters of A-Z a-z 0-9 _ -")]
    Via,
    /// A topic that is none of ours.
    #[error("not a topic of this protocol")]
    Foreign,
    /// The id inside the topic is not an agent id.
    #[error("the topic names no valid agent id: {0}")]
    AgentId(#[from] crate::agent_id::AgentIdError),
}

/// What a topic means to its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// A device speaks; `via` when it answers one certain bridge.
    Evidence(AgentId, Option<Via>),
    /// A bridge speaks to a device.
    Challenge(AgentId),
    /// The verifier's verdict as the bridge read it.
    Result(AgentId),
    /// Whether a device is connected.
    Presence(AgentId),
}

/// Builds and parses the topics under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

impl Default for Topics {
    fn default() -> Self {
        Self { prefix: DEFAULT_PREFIX.to_owned() }
    }
}

impl Topic {
    /// The device that it is of.
    pub fn agent_id(&self) -> &AgentId {
        match self {
            Self::Evidence(id, _) | Self::Challenge(id) | Self::Result(id) | Self::Presence(id) => id,
        }
    }
}

impl Topics {
    /// Topics under `prefix`, which must leave room for the longest id and name.
    pub fn new(prefix: &str) -> Result<Self, TopicError> {
        let level =
            |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !prefix.split('/').all(level) {
            return Err(TopicError::Prefix);
        }
        let longest = prefix.len() + 1 + MAX_AGENT_ID + "/evidence/".len() + MAX_VIA;
        let slashes = prefix.matches('/').count() + 3;
        if longest > MAX_TOPIC_BYTES || slashes > MAX_TOPIC_SLASHES {
            return Err(TopicError::TooLong);
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// Where a device publishes.
    pub fn evidence(&self, id: &AgentId, via: Option<&Via>) -> String {
        match via {
            None => format!("{}/{id}/evidence", self.prefix),
            Some(via) => format!("{}/{id}/evidence/{via}", self.prefix),
        }
    }

    /// Where a device listens.
    pub fn challenge(&self, id: &AgentId) -> String {
        format!("{}/{id}/challenge", self.prefix)
    }

    /// Where a device's verdict is retained.
    pub fn result(&self, id: &AgentId) -> String {
        format!("{}/{id}/result", self.prefix)
    }

    /// Where a device says that it is there.
    pub fn presence(&self, id: &AgentId) -> String {
        format!("{}/{id}/presence", self.prefix)
    }

    /// Where a bridge says that it is there.
    pub fn bridge(&self, via: &Via) -> String {
        format!("{}-bridge/{via}", self.prefix)
    }

    /// The filters a bridge subscribes to; those of its own name when it has one.
    pub fn bridge_filters(&self, via: Option<&Via>) -> Vec<String> {
        let mut filters = vec![format!("{}/+/evidence", self.prefix), format!("{}/+/presence", self.prefix)];
        filters.extend(via.map(|via| format!("{}/+/evidence/{via}", self.prefix)));
        filters
    }

    /// The filter a relying party subscribes to.
    pub fn results_filter(&self) -> String {
        format!("{}/+/result", self.prefix)
    }

    /// The filter for every bridge's own status.
    pub fn bridges_filter(&self) -> String {
        format!("{}-bridge/+", self.prefix)
    }

    /// Filters for all that is said to, by and of devices: what a device must not be able to read.
    pub fn all_devices_filters(&self) -> Vec<String> {
        ["presence", "result", "challenge", "evidence"]
            .iter()
            .map(|topic| format!("{}/+/{topic}", self.prefix))
            .collect()
    }

    /// Reads a topic.
    pub fn parse(&self, topic: &str) -> Result<Topic, TopicError> {
        let rest =
            topic.strip_prefix(&self.prefix).and_then(|r| r.strip_prefix('/')).ok_or(TopicError::Foreign)?;
        let mut levels = rest.split('/');
        let id = levels.next().unwrap_or_default().parse()?;
        let parsed = match (levels.next(), levels.next()) {
            (Some("evidence"), None) => Topic::Evidence(id, None),
            (Some("evidence"), Some(via)) => Topic::Evidence(id, Some(via.parse()?)),
            (Some("challenge"), None) => Topic::Challenge(id),
            (Some("result"), None) => Topic::Result(id),
            (Some("presence"), None) => Topic::Presence(id),
            _ => return Err(TopicError::Foreign),
        };
        if levels.next().is_some() { Err(TopicError::Foreign) } else { Ok(parsed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_parsed_back() {
        let topics = Topics::default();
        let id: AgentId = "gw-7".parse().unwrap();
        let via: Via = "b2".parse().unwrap();
        for (topic, meaning) in [
            (topics.evidence(&id, None), Topic::Evidence(id.clone(), None)),
            (topics.evidence(&id, Some(&via)), Topic::Evidence(id.clone(), Some(via.clone()))),
            (topics.challenge(&id), Topic::Challenge(id.clone())),
            (topics.result(&id), Topic::Result(id.clone())),
            (topics.presence(&id), Topic::Presence(id.clone())),
        ] {
            assert_eq!(topics.parse(&topic), Ok(meaning), "{topic}");
        }
        assert_eq!(topics.evidence(&id, Some(&via)), "keylime/v1/gw-7/evidence/b2");
    }

    #[test]
    fn foreign_and_hostile_topics_are_refused() {
        let topics = Topics::default();
        for topic in [
            "",
            "keylime/v1",
            "keylime/v1/",
            "keylime/v1/gw",
            "keylime/v1/gw/",
            "keylime/v1/gw/evidence/",
            "keylime/v1/gw/evidence/a/b",
            "keylime/v1/gw/challenge/x",
            "keylime/v2/gw/evidence",
            "keylime/v1x/gw/evidence",
            "keylime/v1/../evidence",
            "keylime/v1/+/evidence",
            "keylime/v1/#/evidence",
            "/keylime/v1/gw/evidence",
        ] {
            assert!(topics.parse(topic).is_err(), "{topic:?}");
        }
    }

    #[test]
    fn a_prefix_keeps_every_topic_inside_what_brokers_allow() {
        assert!(Topics::new("a/b/c/d").is_ok());
        assert_eq!(Topics::new("a/b/c/d/e/f"), Err(TopicError::TooLong));
        assert_eq!(Topics::new(&"p".repeat(200)), Err(TopicError::TooLong));
        for prefix in ["", "/", "a//b", "a/+", "#", "$share/g", "a/b/", "a b"] {
            assert_eq!(Topics::new(prefix), Err(TopicError::Prefix), "{prefix:?}");
        }
    }
}
