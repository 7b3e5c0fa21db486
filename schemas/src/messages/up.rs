//! From the device to the bridge.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::bytes::{AuthTag, BootMarker, BootTag, Bounded, Digest, HelloTag, NonceTag, PcrMask, ReadyTag};
use super::kind;
use super::limits::{
    MAX_ATTEST, MAX_CERTIFICATE, MAX_INLINE_IMA, MAX_PADDING, MAX_PART, MAX_PUBLIC, MAX_RSA_SIGNATURE,
    MAX_SIGNATURE, MAX_TICKET,
};
use super::pcrs::PcrValues;
use crate::codec;

/// What a device says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Up {
    /// Here are my keys: register me.
    Enrol(Enrol),
    /// The answer to a [`super::Credential`].
    Activation(Activation),
    /// I am here, and this is my state.
    Ready(Ready),
    /// The answer to a [`super::Prove`].
    Proof(Proof),
    /// The answer to a [`super::Challenge`].
    Evidence(Evidence),
    /// The answer to a [`super::Need`].
    Blob(Blob),
    /// The answer to a [`super::State`].
    Statement(Statement),
    /// A question that cannot be answered yet, and why.
    NotYet(NotYet),
    /// I am here, and as I said in my last [`Ready`].
    Unchanged(Unchanged),
    /// Does this reach a bridge, and how do I stand with it?
    Hello(Hello),
}

impl Up {
    /// The kind as a word, for logs and counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Enrol(_) => "Enrol",
            Self::Activation(_) => "Activation",
            Self::Ready(_) => "Ready",
            Self::Proof(_) => "Proof",
            Self::Evidence(_) => "Evidence",
            Self::Blob(_) => "Blob",
            Self::Statement(_) => "Statement",
            Self::NotYet(_) => "NotYet",
            Self::Unchanged(_) => "Unchanged",
            Self::Hello(_) => "Hello",
        }
    }
}

impl Serialize for Up {
    /// The numbers are those of the derived `Deserialize`: a kind's place in the enum.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Enrol(body) => kind::entry(serializer, 0, body),
            Self::Activation(body) => kind::entry(serializer, 1, body),
            Self::Ready(body) => kind::entry(serializer, 2, body),
            Self::Proof(body) => kind::entry(serializer, 3, body),
            Self::Evidence(body) => kind::entry(serializer, 4, body),
            Self::Blob(body) => kind::entry(serializer, 5, body),
            Self::Statement(body) => kind::entry(serializer, 6, body),
            Self::NotYet(body) => kind::entry(serializer, 7, body),
            Self::Unchanged(body) => kind::entry(serializer, 8, body),
            Self::Hello(body) => kind::entry(serializer, 9, body),
        }
    }
}

/// The keys of a device, for the registrar. A claim until the credential is activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// TPM2B_PUBLIC of the endorsement key.
    pub ek_public: Bounded<MAX_PUBLIC>,
    /// TPM2B_PUBLIC of the attestation key.
    pub ak_public: Bounded<MAX_PUBLIC>,
    /// The endorsement key's certificate (the leaf, DER), where the TPM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek_certificate: Option<Bounded<MAX_CERTIFICATE>>,
}

/// Proof that the TPM holding the EK holds the AK: an HMAC over the device's own id with the decrypted credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// SHA-256 of the credential blob it answers.
    pub credential: Digest,
    /// As the registrar wants it.
    pub auth_tag: AuthTag,
}

/// A signature of the AK with what it signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// TPMS_ATTEST.
    pub attest: Bounded<MAX_ATTEST>,
    /// TPMT_SIGNATURE.
    pub signature: Bounded<MAX_SIGNATURE>,
}

/// The state of a device in its present boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The boot.
    pub boot: BootMarker,
    /// When it booted, in Unix seconds; never lower than at an earlier boot.
    pub boot_time: u64,
    /// PCRs that the device lets be quoted, in the SHA-256 bank.
    pub pcrs: PcrMask,
    /// TPM2B_PUBLIC of the attestation key: a claim.
    pub ak_public: Bounded<MAX_PUBLIC>,
    /// [`crate::statement::boot_statement`] over this boot, signed by the AK.
    pub statement: Signed,
    /// Lines in the IMA log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_entries: Option<u64>,
    /// The UEFI log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uefi: Option<UefiLog>,
    /// The ticket last received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Bounded<MAX_TICKET>>,
    /// Seconds between wakings of a device that sleeps; 0 when it wakes at no fixed time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<u32>,
    /// SHA-256 of the reference file that the device has: what it knows need not travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Digest>,
    /// Template hashes in the IMA log are SHA-256, as in `ascii_runtime_measurements_sha256`, and not SHA-1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ima_sha256: bool,
}

impl Ready {
    /// Names all that it says of this boot, so that it need not be said twice: everything but the length of the IMA
    /// log, which grows, and the ticket, which only a bridge without memory needs.
    pub fn tag(&self) -> ReadyTag {
        let lasting = Self { ima_entries: None, ticket: None, ..self.clone() };
        // what can be sent can be encoded
        let encoded = codec::encode(&lasting).unwrap_or_default();
        ReadyTag::from(Digest::of(&[&encoded]).first())
    }
}

/// The device is as its last [`Ready`] said. A bridge that does not know what that was asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unchanged {
    /// Which `Ready`.
    pub ready: ReadyTag,
    /// Lines in the IMA log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_entries: Option<u64>,
}

/// Names a UEFI log by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UefiLog {
    /// SHA-256 of the log.
    pub digest: Digest,
    /// Its size in bytes, at most [`super::limits::MAX_UEFI_LOG`].
    pub size: u32,
}

/// TPM2_Certify of the AK by itself over a session nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Which session nonce it answers.
    pub tag: NonceTag,
    /// The certification.
    pub signed: Signed,
}

/// A quote, in full or without what the bridge can add.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Quote {
    /// As the TPM gave it.
    Full(Signed),
    /// What only the TPM knew.
    Brief(Brief),
}

impl Serialize for Quote {
    /// The numbers are those of the derived `Deserialize`: a form's place in the enum.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Full(body) => kind::entry(serializer, 0, body),
            Self::Brief(body) => kind::entry(serializer, 1, body),
        }
    }
}

/// A quote of which the bridge can make the rest: nonce, PCR selection and PCR digest from the challenge and the values,
/// the signer's name, firmware version, reset and restart count from the statement of this boot. The signature shows
/// whether it made it right; if not, it asks for the full form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brief {
    /// `clock` of TPMS_CLOCK_INFO, in milliseconds; `safe` is set.
    pub clock: u64,
    /// RSASSA with SHA-256: the number alone, without the TPMT_SIGNATURE around it.
    pub signature: Bounded<MAX_RSA_SIGNATURE>,
    /// `restartCount`, when it is another than in the statement of this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
}

/// A quote and what it covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Which nonce it answers.
    pub tag: NonceTag,
    /// The quote.
    pub quote: Quote,
    /// Values of quoted PCRs: of all with a full quote; with a brief one of those that the bridge does not hold, and
    /// PCR 10 only where the IMA lines do not lead to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcrs: Option<PcrValues>,
    /// The IMA lines that were asked for; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima: Option<ImaSegment>,
}

/// Whole lines of the ascii IMA log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImaSegment {
    /// Lines of the log before these.
    pub offset: u64,
    /// The lines in columns: [`crate::compact::pack_ima`].
    pub packed: Bounded<MAX_INLINE_IMA>,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// The log: 0 UEFI, 1 IMA.
    pub log: super::LogKind,
    /// The boot that the log is of.
    pub boot: BootTag,
    /// Where the part begins: a byte of the packed UEFI log ([`crate::compact::pack_uefi`]), a line of the IMA log.
    pub offset: u64,
    /// The part: bytes of the packed UEFI log; whole lines of the IMA log, in columns. Empty at the end of the log.
    pub part: Bounded<MAX_PART>,
    /// Bytes of the whole packed UEFI log, in each of its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
}

/// A quote of no PCRs by which the device says: this evidence is what I sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Which nonce the evidence answered.
    pub tag: NonceTag,
    /// The quote; its extraData is [`crate::statement::evidence_statement`].
    pub signed: Signed,
}

/// Why a device does not answer a question yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotYetReason {
    /// The TPM's clock is not `safe` after a power cut; Keylime would fail such a quote for good.
    ClockNotSafe,
    /// The TPM's clock is below the one last quoted, as after a power cut.
    ClockBehind,
    /// The TPM does not answer or is locked.
    Tpm,
    /// A log cannot be read.
    Log,
}

impl fmt::Display for NotYetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClockNotSafe => {
                "the device waits: after a power cut its TPM's clock is not safe yet, and Keylime would fail the quote for good"
            }
            Self::ClockBehind => "the device waits: after a power cut its TPM's clock is below the one last quoted",
            Self::Tpm => "the device waits: its TPM does not answer or is locked; look at the agent's log",
            Self::Log => "the device waits: it cannot read a measurement log; look at the agent's log",
        })
    }
}

/// The device cannot answer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotYet {
    /// Which nonce the question carried.
    pub tag: NonceTag,
    /// Why.
    pub reason: NotYetReason,
    /// When asking again may help, in seconds.
    pub seconds: u32,
}

/// Asked by the doctor: a 3.1.1 broker acknowledges what it forbids, so only an answer shows that a topic can be used.
/// Answered with [`super::Heard`] whatever the state of the device, and without effect on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Comes back in the answer.
    pub tag: HelloTag,
    /// Of no meaning: makes the message as large as one that shall pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<Bounded<MAX_PADDING>>,
}

/// Retained on the presence topic: set by the device as it connects, cleared by its last will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presence {
    /// Whether the device is connected.
    pub online: bool,
}
