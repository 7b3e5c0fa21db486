//! From the bridge to the device. Nothing that comes down may act beyond its time: each question says how long it is good.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::bytes::{BootTag, Bounded, HelloTag, Nonce, NonceTag, PcrMask, PcrTag};
use super::kind;
use super::limits::{MAX_CREDENTIAL, MAX_TICKET};
use crate::topics::Via;

/// What a bridge says, and by which name it wants to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Down {
    /// The question or the news.
    pub question: Question,
    /// The bridge that asks, where several serve: answers go to its own topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
}

/// What a bridge says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Question {
    /// The registrar's activation challenge.
    Credential(Credential),
    /// The registrar accepted the activation.
    Enrolled(Enrolled),
    /// Prove that you hold the AK.
    Prove(Prove),
    /// Quote.
    Challenge(Challenge),
    /// Send a part of a log.
    Need(Need),
    /// Say that the evidence was yours.
    State(State),
    /// The evidence reached the verifier.
    Accepted(Accepted),
    /// Come again.
    Later(Later),
    /// No, until an operator acts.
    Refused(Refused),
    /// The answer to a [`super::Hello`].
    Heard(Heard),
}

impl Question {
    /// The kind as a word, for logs and counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Credential(_) => "Credential",
            Self::Enrolled(_) => "Enrolled",
            Self::Prove(_) => "Prove",
            Self::Challenge(_) => "Challenge",
            Self::Need(_) => "Need",
            Self::State(_) => "State",
            Self::Accepted(_) => "Accepted",
            Self::Later(_) => "Later",
            Self::Refused(_) => "Refused",
            Self::Heard(_) => "Heard",
        }
    }
}

impl Serialize for Question {
    /// The numbers are those of the derived `Deserialize`: a kind's place in the enum.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Credential(body) => kind::entry(serializer, 0, body),
            Self::Enrolled(body) => kind::entry(serializer, 1, body),
            Self::Prove(body) => kind::entry(serializer, 2, body),
            Self::Challenge(body) => kind::entry(serializer, 3, body),
            Self::Need(body) => kind::entry(serializer, 4, body),
            Self::State(body) => kind::entry(serializer, 5, body),
            Self::Accepted(body) => kind::entry(serializer, 6, body),
            Self::Later(body) => kind::entry(serializer, 7, body),
            Self::Refused(body) => kind::entry(serializer, 8, body),
            Self::Heard(body) => kind::entry(serializer, 9, body),
        }
    }
}

/// The registrar's activation challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The blob in tpm2-tools' layout, as the registrar made it.
    pub blob: Bounded<MAX_CREDENTIAL>,
}

/// The registrar accepted the activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {}

/// Certify the AK over this session nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prove {
    /// The verifier's session nonce.
    pub nonce: Nonce,
}

/// Quote over this nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// The verifier's nonce.
    pub nonce: Nonce,
    /// The boot it was asked for; another boot answers with `Ready`.
    pub boot: BootTag,
    /// PCRs to quote, in the SHA-256 bank.
    pub pcrs: PcrMask,
    /// Seconds for which an answer is of use.
    pub good_for: u32,
    /// Seconds of silence after which the device should say `Ready`.
    pub silence: u32,
    /// The IMA line to send from, when the IMA log is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_offset: Option<u64>,
    /// Which values of these PCRs the bridge holds, PCR 10 left out where IMA lines are asked for: those that are the
    /// same need not be sent. Absent when it holds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<PcrTag>,
    /// A new ticket to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Bounded<MAX_TICKET>>,
    /// Answer with the full quote and all values: what was left out was guessed wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// The bridge has the reference file that `Ready` named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reference: bool,
}

/// A measurement log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogKind {
    /// The firmware's log (TCG PC Client), by bytes.
    Uefi,
    /// The kernel's ascii IMA log, by lines.
    Ima,
}

/// Send parts of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Which log.
    pub log: LogKind,
    /// The boot it is of.
    pub boot: BootTag,
    /// From where: a byte of the packed UEFI log, a line of the IMA log.
    pub offset: u64,
    /// Up to where, not included, in parts one after the other.
    pub upto: u64,
    /// The bridge has the reference file that `Ready` named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reference: bool,
}

/// State that the evidence for this nonce is yours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The nonce the evidence answered.
    pub tag: NonceTag,
    /// The line from which the IMA log is part of the statement, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_from: Option<u64>,
}

/// What became of an attestation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Keylime says PASS.
    Pass,
    /// Keylime says FAIL; an operator has to look.
    Fail,
    /// Keylime has not said yet.
    Unknown,
}

/// The verifier has the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Seconds until the next attestation is due.
    pub seconds: u32,
    /// Keylime's word as the bridge read it.
    pub outcome: Outcome,
}

/// Why a device is told to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaterReason {
    /// The bridge has lost its memory, or lost track: say `Ready`.
    Again,
    /// The verifier does not know the device.
    NotEnrolled,
    /// The verifier has no policy for it, so it asks for nothing.
    NoPolicy,
    /// The verifier or the registrar does not answer.
    Keylime,
    /// Too many devices prove themselves just now.
    Busy,
    /// Rebooted with an IMA policy: Keylime would fail it until it is added again.
    Rebooted,
    /// Evidence could not be used; a new question follows.
    Unusable,
}

impl fmt::Display for LaterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Again => "the bridge starts anew with this device",
            Self::NotEnrolled => {
                "waiting for the operator: add this device to the verifier with keylime_tenant -c add --push-model"
            }
            Self::NoPolicy => {
                "waiting for the operator: the verifier has no policy for this device; give it a tpm_policy, a runtime policy or a measured boot policy"
            }
            Self::Keylime => "Keylime does not answer the bridge; it is tried again",
            Self::Busy => "the bridge keeps to Keylime's limit on new sessions; each device has its turn",
            Self::Rebooted => {
                "rebooted, needs re-adding: with a runtime policy Keylime fails a device after a reboot until keylime_tenant -c update"
            }
            Self::Unusable => "evidence could not be used; a new challenge follows",
        })
    }
}

/// Come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Later {
    /// After so many seconds.
    pub seconds: u32,
    /// Why.
    pub reason: LaterReason,
}

/// Why a device is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedReason {
    /// The EK certificate leads to no trusted CA.
    UnknownCa,
    /// The TPM has no EK certificate and no admission line vouches for it.
    NoCertificate,
    /// The admission list knows this id with another TPM, or not at all.
    NotAdmitted,
    /// The EK, its certificate or the AK cannot be read.
    Malformed,
    /// The registrar knows this id with another TPM or another AK.
    OtherTpm,
    /// The verifier knows this id with another AK.
    OtherAk,
    /// The activation was wrong.
    Activation,
    /// The verifier refuses what the device offers, such as a policy for a log it does not have.
    Offer,
    /// The boot's statement does not verify under the AK.
    Boot,
    /// Sleeps longer than the verifier's TIMEOUT.
    Sleep,
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownCa => "the EK certificate leads to no CA the bridge trusts: add the maker's CA to [admission] ek_ca_dir",
            Self::NoCertificate => {
                "the TPM has no EK certificate: add the admission line that show-identity prints to the bridge's list"
            }
            Self::NotAdmitted => {
                "the bridge's admission list does not let this TPM have this id: add the line that show-identity prints"
            }
            Self::Malformed => "EK, EK certificate or AK cannot be read",
            Self::OtherTpm => {
                "the registrar knows this id with another TPM or AK: if that is right, remove it with keylime_tenant -c regdelete"
            }
            Self::OtherAk => {
                "the verifier knows this id with another AK: if that is right, remove and add it again with keylime_tenant"
            }
            Self::Activation => "the registrar refused the activation",
            Self::Offer => {
                "the verifier refuses what the device offers; most often its policy needs a log that the device does not have"
            }
            Self::Boot => "the statement of this boot does not verify under the AK",
            Self::Sleep => "sleeps longer than five times the verifier's quote_interval: raise quote_interval or wake more often",
        })
    }
}

/// No, until an operator acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Asking again before so many seconds is of no use.
    pub seconds: u32,
    /// Why.
    pub reason: RefusedReason,
}

/// What a bridge last told a device, or did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Told {
    /// Come again.
    Later(LaterReason),
    /// No, until an operator acts.
    Refused(RefusedReason),
    /// What became of its last attestation.
    Attested(Outcome),
}

impl Serialize for Told {
    /// The numbers are those of the derived `Deserialize`: a kind's place in the enum.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Later(reason) => kind::entry(serializer, 0, reason),
            Self::Refused(reason) => kind::entry(serializer, 1, reason),
            Self::Attested(outcome) => kind::entry(serializer, 2, outcome),
        }
    }
}

/// A bridge has heard the device's [`super::Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// Which `Hello`.
    pub tag: HelloTag,
    /// How the device stands with this bridge; absent when the bridge has told it nothing since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
}
