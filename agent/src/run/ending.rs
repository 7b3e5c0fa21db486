//! How a run ends, and the exit code that says so to scripts and service managers.

use std::fmt;

use keylime_mqtt_schemas::messages::{LaterReason, Outcome, RefusedReason};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Told to stop by a signal.
    Stopped,
    /// Once: the evidence was accepted, and this is Keylime's verdict.
    Attested(Outcome),
    /// Once: the bridge refuses the device.
    Refused(RefusedReason),
    /// Once: the bridge told the device to come again later than it may wait.
    ToldToWait(LaterReason),
    /// Once: time ran out without an answer.
    Unanswered,
    /// Once: time ran out while the TPM could not be used.
    NoTpm,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::Attested(Outcome::Pass) => f.write_str("Keylime says PASS"),
            Self::Attested(Outcome::Fail) => f.write_str("Keylime says FAIL"),
            Self::Attested(Outcome::Unknown) => f.write_str("Keylime has not judged the evidence yet"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::ToldToWait(reason) => write!(f, "told to wait: {reason}"),
            Self::Unanswered => f.write_str("no bridge answered before the deadline"),
            Self::NoTpm => f.write_str("the TPM could not be used before the deadline"),
        }
    }
}

impl Ending {
    /// As documented in `keylime-mqtt-agent run --help`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Stopped | Self::Attested(Outcome::Pass) => 0,
            Self::Attested(Outcome::Fail) => 10,
            Self::Attested(Outcome::Unknown) => 11,
            Self::Refused(_) => 12,
            Self::ToldToWait(_) => 13,
            Self::Unanswered => 14,
            Self::NoTpm => 15,
        }
    }
}

/// Text for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  stopped by a signal; with --once: Keylime says PASS
   1  unexpected error, see the log
   2  the configuration or the command line is wrong
  10  --once: Keylime says FAIL; before the next attestation is due, this and 0 repeat the last verdict
  11  --once: the evidence was accepted, Keylime has not judged it yet
  12  --once: refused; the log says why and what to do
  13  --once: told to wait (not enrolled yet, no policy, rebooted ...)
  14  --once: no bridge answered before the deadline
  15  --once: the TPM could not be used before the deadline";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_of_a_single_run_has_a_code_of_its_own_and_the_help_names_it() {
        let endings = [
            Ending::Attested(Outcome::Pass),
            Ending::Attested(Outcome::Fail),
            Ending::Attested(Outcome::Unknown),
            Ending::Refused(RefusedReason::Activation),
            Ending::ToldToWait(LaterReason::NoPolicy),
            Ending::Unanswered,
            Ending::NoTpm,
        ];
        let codes: std::collections::BTreeSet<u8> = endings.iter().map(|ending| ending.exit_code()).collect();
        assert_eq!(codes.len(), endings.len());
        for code in codes {
            assert!(
                EXIT_CODES.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))),
                "{code}"
            );
        }
    }
}
