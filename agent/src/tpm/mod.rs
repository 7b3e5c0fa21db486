//! The TPM: one dedicated thread owns the connection, everybody else asks it.
//!
//! Every TPM command blocks, for milliseconds on a software TPM, for minutes when a chip makes an RSA key, and for ever
//! when the other end is stuck. So no caller touches the connection: a request goes through a bounded queue to one
//! OS thread ([`service`]) and the caller waits for the reply no longer than it was told to. The thread rebuilds the
//! connection when it broke and reloads the attestation key (AK); what an error means is decided in one place
//! ([`reaction`]). One file per operation: [`ek`], [`ak`], [`activate`], [`certify`], [`quote`].
//!
//! Invariants:
//! - the endorsement key (EK) and sessions are loaded only while they are used: a TPM without resource manager has three slots;
//! - an AK that no caller has been told of through [`Tpm::identity`] signs nothing, so a new AK cannot slip into
//!   evidence before it was enrolled.

mod activate;
mod ak;
mod certify;
mod ek;
mod error;
mod health;
mod identity;
mod open;
mod quote;
mod reaction;
mod service;
mod space;

use std::time::Duration;

use zeroize::Zeroizing;

pub use ak::{AkName, SavedAk};
pub use error::{TpmCode, TpmError};
pub use health::Health;
pub use identity::{Identity, ek_certificate_issuer};
pub use quote::{Clock, PCR_COUNT, Quoted};

use service::Service;

/// How to reach and use the TPM.
#[derive(Debug, Clone)]
pub struct TpmSettings {
    /// TCTI string as in tpm2-tools: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`, `tabrmd:…`.
    pub tcti: String,
    /// Longest wait for one operation. The operation itself cannot be aborted and goes on in the TPM's thread.
    pub command_timeout: Duration,
    /// Persistent handle of the EK. `None`: the usual 0x81010001 when present, else the EK is made from the TCG template.
    pub ek_handle: Option<u32>,
}

/// A structure signed by the AK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// TPMS_ATTEST, without a size in front.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// Handle to the TPM's thread. Cheap to clone; the thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Tpm {
    service: Service,
}

impl Tpm {
    /// Starts the thread, connects, and loads the saved AK or makes one.
    ///
    /// Waits as long as a slow chip may need to make both keys, see [`KEY_CREATION_TIMEOUT`].
    ///
    /// # Errors
    /// [`TpmError::BadTcti`] needs the operator; [`TpmError::Unreachable`] and [`TpmError::Timeout`] may pass: start again.
    pub async fn start(settings: TpmSettings, saved: Option<SavedAk>) -> Result<Self, TpmError> {
        let service = Service::spawn(settings, saved)?;
        service.call_within(KEY_CREATION_TIMEOUT, "open", service::Device::connect).await?;
        Ok(Self { service })
    }

    /// Whether the settings name a TPM at all, without reaching for it.
    pub fn check(settings: &TpmSettings) -> Result<(), TpmError> {
        service::parse_tcti(&settings.tcti).map(drop)
    }

    /// How the TPM is, over a connection of its own that neither loads nor makes an AK.
    pub async fn health(settings: TpmSettings) -> Result<Health, TpmError> {
        let service = Service::spawn(settings, None)?;
        service.call_within(EK_CREATION_TIMEOUT, "health", service::Device::health).await
    }

    /// Who this device is, with the AK in use now. The caller persists [`Identity::saved_ak`] and sees from
    /// [`Identity::ak_name`] whether it must enrol.
    pub async fn identity(&self) -> Result<Identity, TpmError> {
        self.service.call("identity", service::Device::announce).await
    }

    /// Opens the registrar's activation challenge: proves that EK and AK live in one TPM.
    ///
    /// `blob`: u32 0xBADCC0DE, u32 1, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET, big endian (tpm2-tools' layout).
    ///
    /// # Errors
    /// [`TpmError::CredentialBlob`] and [`TpmError::CredentialRejected`] when the blob is not for this EK and AK.
    pub async fn activate(&self, blob: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let challenge = activate::Challenge::parse(&blob)?;
        self.operate("activate", move |open| activate::activate(open, &challenge)).await
    }

    /// TPM2_Certify of the AK by itself over `nonce`: the proof that opens a session at the verifier.
    pub async fn certify_ak(&self, nonce: [u8; 16]) -> Result<Signed, TpmError> {
        self.operate("certify", move |open| certify::certify_ak(open, nonce)).await
    }

    /// TPM2_Quote over the PCRs in `pcr_mask` (bit n is PCR n, sha256 bank). A mask of 0 quotes no PCR: a statement.
    ///
    /// # Errors
    /// [`TpmError::NoSha256Bank`] when the bank is not active; quoting nothing instead would be no evidence.
    pub async fn quote(&self, qualifying: Vec<u8>, pcr_mask: u32) -> Result<Quoted, TpmError> {
        self.operate("quote", move |open| quote::quote(open, &qualifying, pcr_mask)).await
    }

    /// Values of the PCRs in `pcr_mask`, lowest first, sha256 bank.
    pub async fn pcrs(&self, pcr_mask: u32) -> Result<Vec<[u8; 32]>, TpmError> {
        self.operate("read PCRs", move |open| quote::pcrs(open, pcr_mask)).await
    }

    /// The TPM's clock and counters, as the AK would sign them now.
    pub async fn clock(&self) -> Result<Clock, TpmError> {
        self.operate("read clock", quote::clock).await
    }

    /// How long the TPM has been busy with one request; `None` when it is idle. A thread that waits for a TPM for
    /// minutes cannot be ended from inside the process: past [`HOPELESS_AFTER`] only a restart of the process helps.
    pub fn busy_for(&self) -> Option<Duration> {
        self.service.busy_for()
    }

    /// Flushes the AK and closes the connection, so that a TPM without resource manager gets its slot back.
    pub async fn close(self) -> Result<(), TpmError> {
        self.service
            .call("close", |device| {
                device.disconnect();
                Ok(())
            })
            .await
    }

    async fn operate<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut open::Opened) -> Result<T, error::Failure> + Send + 'static,
    ) -> Result<T, TpmError> {
        self.service.call(operation, move |device| device.perform(operation, &work)).await
    }
}

/// Longest wait for [`Tpm::start`]: discrete TPMs were seen to take up to two minutes for one RSA key, and two are made.
pub const KEY_CREATION_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest wait for [`Tpm::health`], which may have to make the EK: who asks how a TPM is wants to hear that it hangs.
const EK_CREATION_TIMEOUT: Duration = Duration::from_secs(120);

/// The kernel gives a TPM command at most 300 s; one that takes longer than this will not come back.
pub const HOPELESS_AFTER: Duration = Duration::from_secs(330);
