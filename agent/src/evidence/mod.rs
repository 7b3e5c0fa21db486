//! Makes what the exchange asks for, from TPM, logs and state: the place where a message gets its contents.
//!
//! One piece of work at a time, on a thread of its own, so that neither a slow chip nor a long log delays the
//! connection. What is decided here is only what the device alone can know: whether this is still the boot it described
//! ([`describe`]), whether its TPM's clock may be shown to the verifier yet and what of a quote the bridge holds already
//! ([`collect`]), which values and lines a quote covers ([`explain`]), and how a log is cut into parts ([`parts`]).
//!
//! Invariants:
//! - evidence never carries a clock that is not `safe` or not above the last one sent: Keylime fails such a quote for good;
//! - the quote is made first and the IMA log read after it, so the log always covers the quoted PCR 10;
//! - what is sent of PCRs and lines hashes to what the quote says, or is all there is;
//! - the decrypted credential stays in this file; what leaves is an HMAC made with it.

mod collect;
mod describe;
mod explain;
mod parts;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::limits::MAX_TICKET;
use keylime_mqtt_schemas::messages::{
    Activation, AkName, Bounded, Digest, Enrol, Nonce, NotYet, NotYetReason, PcrMask, Proof, Prove, Signed,
    State, Statement, TooLong,
};
use keylime_mqtt_schemas::statement::{StatedLines, evidence_statement};
use ring::hmac;
use zeroize::Zeroizing;

use self::describe::Described;
use self::explain::Known;
use crate::logs::LogError;
use crate::logs::boot::BootSources;
use crate::logs::ima::ImaLog;
use crate::logs::uefi::UefiLog;
use crate::store::{Store, StoreError};
use crate::tpm::{Identity, Tpm, TpmError};

/// When asking again may help, for what heals by itself.
const SOON: u32 = 10;
/// The same, for what an operator has to look at.
const LATE: u32 = 60;

/// Why a piece of work was not done.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A log or a file about the boot.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the TPM or a log gave is larger than a message may carry.
    #[error("{what}: {source}")]
    TooLong {
        /// Which part of the message.
        what: &'static str,
        /// The sizes.
        source: TooLong,
    },
    /// The TPM or the kernel is in another boot than the one described last.
    #[error("the device has rebooted")]
    Rebooted,
    /// The clock must not be shown yet.
    #[error("{0}; after a power cut this passes by itself")]
    Clock(NotYetReason),
    /// More of the IMA log is missing at the bridge than evidence carries; it asks for parts first.
    #[error("{missing} bytes of the IMA log and more are missing at the bridge")]
    LogAhead {
        /// What was tried.
        missing: usize,
    },
}

/// What the device can do for the exchange.
#[derive(Debug)]
pub struct Device {
    id: AgentId,
    tpm: Tpm,
    identity: Identity,
    boot: BootSources,
    ima: Option<ImaLog>,
    uefi: Option<UefiLog>,
    store: Store,
    /// Seconds between wakings, for a device that sleeps.
    sleep: Option<u32>,
    reference: Option<Reference>,
    /// What may be quoted.
    pcrs: PcrMask,
    /// Bytes of the packed UEFI log in one part.
    uefi_part: usize,
    /// The boot described last, with its statement.
    described: Option<Described>,
    /// Lines of the IMA log that the last `Ready` named.
    announced: u64,
    /// What the last evidence said.
    known: Option<Known>,
}

/// What a device has besides its TPM, and how it speaks.
#[derive(Debug)]
pub struct Equipment {
    /// Where boot id and time come from.
    pub boot: BootSources,
    /// The kernel's log.
    pub ima: Option<ImaLog>,
    /// The firmware's log.
    pub uefi: Option<UefiLog>,
    /// The file that this device and its bridge both have.
    pub reference: Option<Reference>,
    /// Seconds between wakings, for a device that sleeps.
    pub sleep: Option<u32>,
    /// PCRs that may be quoted.
    pub pcrs: PcrMask,
    /// Bytes that one MQTT payload may have.
    pub payload_bytes: usize,
}

impl Device {
    /// Puts the parts together and keeps the AK in the state.
    pub fn new(
        id: AgentId,
        tpm: Tpm,
        identity: Identity,
        equipment: Equipment,
        store: Store,
    ) -> Result<Self, StoreError> {
        let Equipment { boot, ima, uefi, reference, sleep, pcrs, payload_bytes } = equipment;
        let uefi_part = parts::uefi_part(payload_bytes);
        let (described, announced, known) = (None, 0, None);
        let mut device = Self {
            id,
            tpm,
            identity,
            boot,
            ima,
            uefi,
            store,
            sleep,
            reference,
            pcrs,
            uefi_part,
            described,
            announced,
            known,
        };
        device.keep_ak()?;
        Ok(device)
    }

    /// Whether the registrar accepted the present AK at some time.
    pub fn is_enrolled(&self) -> bool {
        self.store.state().enrolled == Some(AkName::from(self.identity.ak_name))
    }

    /// The registrar accepted the AK.
    pub fn remember_enrolled(&mut self) -> Result<(), StoreError> {
        let name = AkName::from(self.identity.ak_name);
        self.store.update(|state| state.enrolled = Some(name))
    }

    /// A ticket for the next `Ready`.
    pub fn remember_ticket(&mut self, ticket: Bounded<MAX_TICKET>) -> Result<(), StoreError> {
        if self.store.state().ticket.as_ref() == Some(&ticket) {
            // a repeated challenge repeats its ticket; flash wears with every write
            return Ok(());
        }
        self.store.update(|state| state.ticket = Some(ticket))
    }

    /// The TPM has another AK than before: takes it on. The device is not enrolled with it.
    pub async fn adopt_new_ak(&mut self) -> Result<(), EvidenceError> {
        self.identity = self.tpm.identity().await?;
        self.described = None;
        Ok(self.keep_ak()?)
    }

    /// Does one piece of work.
    pub async fn work(&mut self, work: &Work) -> Result<Done, EvidenceError> {
        Ok(match work {
            Work::Introduce => Done::Introduced(self.introduce()?),
            Work::Describe => Done::Described(self.describe().await?),
            Work::Activate { blob } => Done::Activated(self.activate(blob).await?),
            Work::Prove(prove) => Done::Proved(self.prove(prove).await?),
            Work::Collect(challenge) => {
                let (evidence, ima_end) = self.collect(challenge).await?;
                Done::Collected { evidence, ima_end }
            }
            Work::Read(need) => {
                let (blob, next) = self.read(need)?;
                Done::Read { blob, next }
            }
            Work::State { state, nonce, evidence, ima_end } => {
                Done::Stated(self.state(state, nonce, evidence, *ima_end).await?)
            }
        })
    }

    /// What the exchange is told when `work` ended in `error`.
    pub async fn excuse(&self, work: &Work, error: &EvidenceError) -> Done {
        let tag = match work {
            Work::Prove(prove) => prove.nonce.tag(),
            Work::Collect(challenge) => challenge.nonce.tag(),
            Work::State { state, .. } => state.tag,
            Work::Introduce | Work::Describe | Work::Activate { .. } | Work::Read(_) => {
                return if matches!(error, EvidenceError::Rebooted) { Done::Rebooted } else { Done::Failed };
            }
        };
        match error {
            EvidenceError::Rebooted => Done::Rebooted,
            EvidenceError::Clock(reason) => Done::NotYet(self.not_before(tag, *reason).await),
            EvidenceError::LogAhead { .. } => {
                Done::NotYet(NotYet { tag, reason: NotYetReason::Log, seconds: SOON })
            }
            EvidenceError::Log(_) => Done::NotYet(NotYet { tag, reason: NotYetReason::Log, seconds: LATE }),
            EvidenceError::Tpm(TpmError::AkReplaced { .. })
            | EvidenceError::Store(_)
            | EvidenceError::TooLong { .. } => Done::Failed,
            EvidenceError::Tpm(_) => Done::NotYet(NotYet { tag, reason: NotYetReason::Tpm, seconds: LATE }),
        }
    }

    fn introduce(&self) -> Result<Enrol, EvidenceError> {
        Ok(Enrol {
            ek_public: bounded("EK", self.identity.ek_public.clone())?,
            ak_public: bounded("AK", self.identity.ak_public.clone())?,
            ek_certificate: self
                .identity
                .ek_certificate
                .clone()
                .map(|certificate| bounded("EK certificate", certificate))
                .transpose()?,
        })
    }

    async fn activate(&self, blob: &[u8]) -> Result<Activation, EvidenceError> {
        let credential = self.tpm.activate(blob.to_vec()).await?;
        // The registrar keys its HMAC with the text, not with the bytes (keylime, registrar_agent.py).
        let key = Zeroizing::new(STANDARD.encode(credential));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA384, key.as_bytes()), self.id.as_str().as_bytes());
        let mut auth_tag = [0; 48];
        auth_tag.copy_from_slice(tag.as_ref());
        Ok(Activation { credential: Digest::of(&[blob]), auth_tag: auth_tag.into() })
    }

    async fn prove(&self, prove: &Prove) -> Result<Proof, EvidenceError> {
        let proof = self.tpm.certify_ak(*prove.nonce.as_bytes()).await?;
        Ok(Proof { tag: prove.nonce.tag(), signed: signed(proof.attest, proof.signature)? })
    }

    async fn state(
        &mut self,
        state: &State,
        nonce: &Nonce,
        evidence: &Digest,
        ima_end: Option<u64>,
    ) -> Result<Statement, EvidenceError> {
        let ima = match (state.ima_from, ima_end, &self.ima) {
            (Some(from), Some(end), Some(log)) => {
                Some(StatedLines { from, digest: log.digest(from, end)?.into() })
            }
            _ => None,
        };
        // of the boot that the evidence is of
        let boot = self.known.as_ref().ok_or(EvidenceError::Rebooted)?.boot();
        let statement = evidence_statement(&self.id, nonce, &boot, evidence, ima.as_ref());
        let quoted = self.tpm.quote(statement.as_bytes().to_vec(), 0).await?;
        Ok(Statement { tag: state.tag, signed: signed(quoted.attest, quoted.signature)? })
    }

    fn keep_ak(&mut self) -> Result<(), StoreError> {
        let ak = self.identity.saved_ak.clone();
        self.store.update(|state| {
            if state.ak.replace(ak.clone()) != Some(ak) {
                // Clock and ticket belong to the TPM and AK there were.
                state.enrolled = None;
                state.last_quote = None;
                state.ticket = None;
            }
        })
    }
}

fn signed(attest: Vec<u8>, signature: Vec<u8>) -> Result<Signed, EvidenceError> {
    Ok(Signed { attest: bounded("TPMS_ATTEST", attest)?, signature: bounded("signature", signature)? })
}

fn bounded<const MAX: usize>(what: &'static str, bytes: Vec<u8>) -> Result<Bounded<MAX>, EvidenceError> {
    bytes.try_into().map_err(|source| EvidenceError::TooLong { what, source })
}
