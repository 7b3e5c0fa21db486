//! Makes what the exchange asks for, from TPM, logs and state: the place where a message gets its contents.
//!
//! One piece of work at a time, on a thread of its own, so that neither a slow chip nor a long log delays the
//! connection. What is decided here is only what the device alone can know: whether this is still the boot it described,
//! and whether its TPM's clock may be shown to the verifier yet.
//!
//! Invariants:
//! - evidence never carries a clock that is not `safe` or not above the last one sent: Keylime fails such a quote for good;
//! - the quote is made first and the IMA log read after it, so the log always covers the quoted PCR 10;
//! - the decrypted credential stays in this file; what leaves is an HMAC made with it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::limits::{MAX_INLINE_IMA, MAX_TICKET};
use keylime_mqtt_schemas::messages::{
    Activation, AkName, Blob, Bounded, Challenge, Digest, Enrol, Evidence, ImaSegment, LogKind, Need, Nonce,
    NonceTag, NotYet, NotYetReason, PcrMask, Proof, Prove, Ready, Signed, State, Statement, TooLong,
};
use keylime_mqtt_schemas::statement::{boot_statement, evidence_statement};
use ring::hmac;
use zeroize::Zeroizing;

use crate::logs::LogError;
use crate::logs::boot::{BootRecord, BootSources};
use crate::logs::ima::{Growth, ImaLog};
use crate::logs::uefi::UefiLog;
use crate::store::{Store, StoreError};
use crate::tpm::{Clock, Identity, Tpm, TpmError};

/// Size of one part of a log: with topic and frame it fits a payload of 15 KiB.
const PART: usize = 12 * 1024;
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
    /// The boot described last, with its statement.
    described: Option<(BootRecord, Signed)>,
}

impl Device {
    /// Puts the parts together and keeps the AK in the state.
    pub fn new(
        id: AgentId,
        tpm: Tpm,
        identity: Identity,
        boot: BootSources,
        logs: (Option<ImaLog>, Option<UefiLog>),
        store: Store,
        sleep: Option<u32>,
    ) -> Result<Self, StoreError> {
        let (ima, uefi) = logs;
        let mut device = Self { id, tpm, identity, boot, ima, uefi, store, sleep, described: None };
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
            Work::Collect(challenge) => Done::Collected(self.collect(challenge).await?),
            Work::Read(need) => Done::Read(self.read(need)?),
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

    async fn describe(&mut self) -> Result<Ready, EvidenceError> {
        let (boot, statement) = self.described_boot().await?;
        let ima_entries = match &mut self.ima {
            Some(log) => {
                if log.refresh()? == Growth::Replaced {
                    tracing::info!("the IMA log begins anew");
                }
                // The verifier refuses a log without entries; such a device attests without.
                Some(log.entries()).filter(|entries| *entries > 0)
            }
            None => None,
        };
        let uefi = match &mut self.uefi {
            Some(log) => Some(log.content(boot.marker)?.summary()),
            None => None,
        };
        Ok(Ready {
            boot: boot.marker,
            boot_time: boot.time,
            pcrs: PcrMask::ALL,
            ak_public: bounded("AK", self.identity.ak_public.clone())?,
            statement,
            ima_entries,
            uefi,
            ticket: self.store.state().ticket.clone(),
            sleep: self.sleep,
        })
    }

    /// This boot with its statement, which is made once per boot.
    async fn described_boot(&mut self) -> Result<(BootRecord, Signed), EvidenceError> {
        let marker = self.boot.marker(self.tpm.clock().await?.reset_count)?;
        if let Some(described) = self.described.as_ref().filter(|(boot, _)| boot.marker == marker) {
            return Ok(described.clone());
        }
        let boot = self.boot.record(marker, self.store.state().boot)?;
        self.store.update(|state| state.boot = Some(boot))?;
        let statement = boot_statement(&self.id, &boot.marker, boot.time);
        let quoted = self.tpm.quote(statement.as_bytes().to_vec(), 0).await?;
        if self.boot.marker(quoted.clock.reset_count)? != marker {
            return Err(EvidenceError::Rebooted);
        }
        let statement = signed(quoted.attest, quoted.signature)?;
        tracing::info!(boot = ?boot.marker, boot_time = boot.time, reset_count = quoted.clock.reset_count, "this boot");
        Ok(self.described.insert((boot, statement)).clone())
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

    async fn collect(&mut self, challenge: &Challenge) -> Result<Evidence, EvidenceError> {
        let mask = u32::from(challenge.pcrs);
        let (quoted, values) = self.tpm.quote_with_pcrs(*challenge.nonce.as_bytes(), mask).await?;
        let boot = self.boot.marker(quoted.clock.reset_count)?;
        if boot != challenge.boot {
            return Err(EvidenceError::Rebooted);
        }
        may_be_shown(quoted.clock, self.store.state().last_quote).map_err(EvidenceError::Clock)?;
        let ima = match challenge.ima_offset {
            Some(offset) => Some(self.ima_since(offset)?),
            None => None,
        };
        let uefi = match &mut self.uefi {
            Some(log) if challenge.uefi => Some(log.content(boot)?.summary().digest),
            _ => None,
        };
        let evidence = Evidence {
            tag: challenge.nonce.tag(),
            quote: signed(quoted.attest, quoted.signature)?,
            pcr_values: bounded("PCR values", values.concat())?,
            ima,
            uefi,
        };
        self.store.update(|state| state.last_quote = Some(quoted.clock))?;
        Ok(evidence)
    }

    /// All lines from `offset` to the log's present end.
    fn ima_since(&mut self, offset: u64) -> Result<ImaSegment, EvidenceError> {
        let Some(log) = &mut self.ima else {
            // The bridge offered a log that this device did not describe; an empty answer explains nothing.
            return Ok(ImaSegment { offset, lines: Bounded::default() });
        };
        log.refresh()?;
        let lines = log.lines(offset, u64::MAX, MAX_INLINE_IMA)?;
        if lines.end < log.entries() {
            return Err(EvidenceError::LogAhead { missing: lines.bytes.len() });
        }
        Ok(ImaSegment { offset, lines: bounded("IMA lines", lines.bytes)? })
    }

    fn read(&mut self, need: &Need) -> Result<Blob, EvidenceError> {
        if self.described.as_ref().is_none_or(|(boot, _)| boot.marker != need.boot) {
            return Err(EvidenceError::Rebooted);
        }
        let part = match need.log {
            LogKind::Uefi => match &mut self.uefi {
                Some(log) => {
                    let wanted = usize::try_from(need.upto.saturating_sub(need.offset)).unwrap_or(PART);
                    log.content(need.boot)?.part(need.offset, wanted.min(PART)).to_vec()
                }
                None => Vec::new(),
            },
            LogKind::Ima => match &mut self.ima {
                Some(log) => {
                    log.refresh()?;
                    log.lines(need.offset.min(log.entries()), need.upto, PART)?.bytes
                }
                None => Vec::new(),
            },
        };
        Ok(Blob {
            log: need.log,
            boot: need.boot,
            offset: need.offset,
            part: bounded("part of a log", part)?,
        })
    }

    async fn state(
        &mut self,
        state: &State,
        nonce: &Nonce,
        evidence: &Digest,
        ima_end: Option<u64>,
    ) -> Result<Statement, EvidenceError> {
        let ima = match (state.ima_from, ima_end, &self.ima) {
            (Some(from), Some(end), Some(log)) => Digest::from(log.digest(from, end)?),
            _ => Digest::of(&[]),
        };
        let statement = evidence_statement(&self.id, nonce, evidence, &ima);
        let quoted = self.tpm.quote(statement.as_bytes().to_vec(), 0).await?;
        Ok(Statement { tag: state.tag, signed: signed(quoted.attest, quoted.signature)? })
    }

    /// Why there is no evidence yet, and when it may help to ask again.
    async fn not_before(&self, tag: NonceTag, reason: NotYetReason) -> NotYet {
        let behind = match (self.tpm.clock().await, self.store.state().last_quote) {
            (Ok(now), Some(last)) => last.clock_ms.saturating_sub(now.clock_ms) / 1000,
            _ => 0,
        };
        NotYet { tag, reason, seconds: u32::try_from(behind).unwrap_or(u32::MAX).max(SOON) }
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

/// TPM 2.0 Part 1, 36.3: after an unorderly stop the clock starts from a value kept earlier, and is `safe` only once it has
/// passed all it can have shown. Keylime demands `safe` and a growing clock.
fn may_be_shown(clock: Clock, last: Option<Clock>) -> Result<(), NotYetReason> {
    if !clock.safe {
        return Err(NotYetReason::ClockNotSafe);
    }
    if last.is_some_and(|last| clock.clock_ms <= last.clock_ms) {
        return Err(NotYetReason::ClockBehind);
    }
    Ok(())
}

fn signed(attest: Vec<u8>, signature: Vec<u8>) -> Result<Signed, EvidenceError> {
    Ok(Signed { attest: bounded("TPMS_ATTEST", attest)?, signature: bounded("signature", signature)? })
}

fn bounded<const MAX: usize>(what: &'static str, bytes: Vec<u8>) -> Result<Bounded<MAX>, EvidenceError> {
    bytes.try_into().map_err(|source| EvidenceError::TooLong { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn clock(clock_ms: u64, safe: bool) -> Clock {
        Clock { clock_ms, reset_count: 1, restart_count: 0, safe }
    }

    #[test]
    fn only_a_safe_clock_above_the_last_one_shown_may_be_shown() {
        let last = Some(clock(1000, true));
        assert_eq!(may_be_shown(clock(1001, true), last), Ok(()));
        assert_eq!(may_be_shown(clock(1, true), None), Ok(()));
        assert_eq!(may_be_shown(clock(1000, true), last), Err(NotYetReason::ClockBehind));
        assert_eq!(may_be_shown(clock(2000, false), last), Err(NotYetReason::ClockNotSafe));
        assert_eq!(may_be_shown(clock(2000, false), None), Err(NotYetReason::ClockNotSafe));
    }
}
