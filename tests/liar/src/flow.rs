//! The flows of the exchange, as far as a lie can tell them apart.

use std::fmt;

/// Where in its life with the bridge a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flow {
    /// `Enrol`, `Credential`, `Activation`, `Enrolled`.
    Enrolment,
    /// `Prove`, `Proof`.
    Proof,
    /// `Ready`, `Challenge`, `Evidence` before the first PASS.
    First,
    /// `Need`, `Blob`.
    Logs,
    /// `Challenge`, `Evidence`, and no more.
    Steady,
    /// `State`, `Statement`.
    Statement,
    /// From a boot to the next PASS.
    Reboot,
    /// A device that wakes to attest.
    Sleeping,
    /// A bridge without memory, or another one.
    BridgeRestart,
}

impl Flow {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Enrolment,
        Self::Proof,
        Self::First,
        Self::Logs,
        Self::Steady,
        Self::Statement,
        Self::Reboot,
        Self::Sleeping,
        Self::BridgeRestart,
    ];

    /// The flow that a message of this kind belongs to wherever it occurs; nothing for those that occur in several.
    pub(crate) fn of_kind(kind: &str) -> Option<Self> {
        match kind {
            "Enrol" | "Credential" | "Activation" | "Enrolled" => Some(Self::Enrolment),
            "Prove" | "Proof" => Some(Self::Proof),
            "Need" | "Blob" => Some(Self::Logs),
            "State" | "Statement" => Some(Self::Statement),
            _ => None,
        }
    }

    /// A short name, for the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::Proof => "proof",
            Self::First => "first",
            Self::Logs => "logs",
            Self::Steady => "steady",
            Self::Statement => "statement",
            Self::Reboot => "reboot",
            Self::Sleeping => "sleeping",
            Self::BridgeRestart => "restart",
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
