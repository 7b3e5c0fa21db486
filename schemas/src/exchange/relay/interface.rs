//! How a relay is set, what goes in and what comes out.

use std::sync::Arc;
use std::time::Duration;

use super::facts::OpenedTicket;
use super::port::{Command, Done};
use crate::compact::Reference;
use crate::exchange::Delivery;
use crate::messages::{Digest, Down, Up, Verdict};
use crate::topics::Via;

/// How a bridge behaves towards its devices; from its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bridge's name, where several serve.
    pub via: Option<Via>,
    /// When a question is repeated; doubles.
    pub repeat_after: Duration,
    /// How often it is repeated.
    pub repeats: u8,
    /// First wait of a device that is not enrolled; doubles.
    pub waiting_first: Duration,
    /// Longest wait of a device that is not enrolled.
    pub waiting_cap: Duration,
    /// Wait of a refused device; no more than an interval where what was refused is not signed.
    pub refused_wait: Duration,
    /// Hold a device that rebooted under an IMA policy instead of letting Keylime fail it for good.
    pub hold_after_reboot: bool,
    /// Longest wait between attestations of a device that Keylime fails.
    pub failing_cap: Duration,
    /// Reference files that devices may have too.
    pub references: Arc<[Reference]>,
    /// Devices without memory are asked to speak within this time after a restart of the bridge.
    pub spread: Duration,
    /// Differs per device, so that a fleet spreads.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            via: None,
            repeat_after: Duration::from_secs(10),
            repeats: 2,
            waiting_first: Duration::from_secs(5),
            waiting_cap: Duration::from_secs(60),
            refused_wait: Duration::from_secs(300),
            hold_after_reboot: true,
            failing_cap: Duration::from_secs(60),
            references: Arc::new([]),
            spread: Duration::from_secs(10),
            seed: 0,
        }
    }
}

/// What the shell tells the machine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The device speaks; its ticket, if the message had one and it opened.
    Received(Up, Option<OpenedTicket>),
    /// The device's presence says that it is connected.
    Present,
    /// The command under way is done.
    Done(Done),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Publish to the device.
    Send(Down, Delivery),
    /// Do this and come back with [`Input::Done`] (save where [`Command`] says otherwise).
    Command(Command),
    /// Publish as the device's result.
    Report(Report),
    /// Log and count.
    Notice(Notice),
}

/// What is to be published as the device's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Keylime's word, or `Unknown` with a reason.
    pub verdict: Verdict,
    /// What is waited for or to be done.
    pub reason: Option<String>,
    /// SHA-256 of the nonce of the attestation that it speaks of.
    pub nonce: Option<Digest>,
    /// Keylime's count of attestations.
    pub attestation_count: Option<u64>,
    /// How long it may be relied on.
    pub valid_for: Duration,
}

/// Something to log and count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A message was of no use.
    Dropped {
        /// The message's kind.
        kind: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Keylime did not answer; tried again after a while.
    Setback {
        /// What was asked of it.
        what: &'static str,
        /// The wait.
        wait: Duration,
    },
    /// There is no room for this device just now, in the budget of new sessions or among those that register; it was told to
    /// come again.
    TurnedAway {
        /// After so long.
        wait: Duration,
    },
    /// Somebody else opened an attestation for this device, such as a second bridge.
    Superseded,
    /// Keylime refused what it was given; its words.
    Invalid {
        /// What it was given.
        what: &'static str,
        /// Its words.
        detail: String,
    },
    /// The evidence's signature holds but a log does not explain the quote: the device is asked for a statement.
    Unexplained {
        /// What is not explained.
        what: &'static str,
    },
}
