//! What can go wrong with the TPM, said so that the reader knows whose turn it is.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use super::ak::AkName;

/// Why the TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The operator's: the TCTI string names no TPM.
    #[error(
        "tpm.tcti: `{tcti}` is not a TCTI; write `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321` or `tabrmd:…`"
    )]
    BadTcti {
        /// As configured.
        tcti: String,
    },
    /// The system's, or passing: there is no TPM at the other end, or it went away and did not come back in time.
    #[error("the TPM at `{tcti}` does not answer ({code}); is the device there, and may this user open it?")]
    Unreachable {
        /// As configured.
        tcti: String,
        /// What the last attempt said.
        code: TpmCode,
    },
    /// The TPM's: it needs longer than `tpm.command_timeout_seconds`. It may still finish; ask again later.
    #[error("the TPM did not finish `{operation}` within {after:?}")]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// How long the caller waited.
        after: Duration,
    },
    /// Passing: too many requests already wait for the TPM.
    #[error("the TPM is busy: {waiting} requests wait already")]
    Busy {
        /// Size of the queue.
        waiting: usize,
    },
    /// A defect, or the process is ending: the TPM's thread is gone.
    #[error("the TPM's thread has ended; restart the agent")]
    Stopped,
    /// The operating system's: no thread could be started.
    #[error("no thread for the TPM: {0}")]
    Spawn(#[source] std::io::Error),
    /// The TPM's, passing: it answered "retry" for as long as is reasonable.
    #[error("the TPM put `{operation}` off too often ({code})")]
    StillRetrying {
        /// What was asked.
        operation: &'static str,
        /// The last answer.
        code: TpmCode,
    },
    /// The operator's: something used up the TPM's slots, and what is in them is not ours.
    #[error(
        "the TPM has no room left for `{operation}` ({code}); another program keeps objects or sessions loaded: \
         use a resource manager (/dev/tpmrm0, tpm2-abrmd) or `tpm2_flushcontext`"
    )]
    OutOfSlots {
        /// What was asked.
        operation: &'static str,
        /// The last answer.
        code: TpmCode,
    },
    /// The operator's: the TPM counts failed authorizations. Not caused by this agent, whose AK is exempt (noDA).
    #[error("the TPM is in dictionary attack lockout; wait, or run `tpm2_dictionarylockout --clear-lockout`")]
    Lockout,
    /// The operator's: the endorsement hierarchy has a password, and the agent has none to give.
    #[error(
        "the endorsement hierarchy of the TPM has a password; the agent needs it empty (tpm2_changeauth -c e)"
    )]
    EndorsementAuth,
    /// The operator's: there is no EK where the configuration says.
    #[error(
        "tpm.ek_handle: no key at {handle:#010x}; remove the setting to let the agent find or make the EK"
    )]
    NoEk {
        /// As configured.
        handle: u32,
    },
    /// The operator's: Keylime wants an RSA EK here, what is at the handle is something else.
    #[error(
        "the key at {handle:#010x} is not an endorsement key of the TCG's RSA-2048 template; set tpm.ek_handle to the one that is"
    )]
    ForeignEk {
        /// Where it was found.
        handle: u32,
    },
    /// The operator's or the firmware's: Keylime's evidence is over the sha256 bank.
    #[error(
        "the sha256 bank of the TPM is not active for PCRs {missing:#08x}; allocate it in the firmware set-up or with tpm2_pcrallocate"
    )]
    NoSha256Bank {
        /// Mask of the PCRs asked for and not there.
        missing: u32,
    },
    /// The caller's: bits above PCR 23 have no meaning.
    #[error("PCR mask {mask:#x} names PCRs that no TPM has")]
    PcrMask {
        /// As asked.
        mask: u32,
    },
    /// The caller's, or the peer's: more qualifying data than a TPM takes.
    #[error("{length} bytes of qualifying data are more than the TPM takes")]
    QualifyingData {
        /// As asked.
        length: usize,
    },
    /// The peer's: the activation challenge is not in the registrar's layout.
    #[error("the registrar's credential blob is malformed: {0}")]
    CredentialBlob(&'static str),
    /// The peer's: the TPM says that the credential was made for another EK or AK.
    #[error("the TPM rejects the credential: it was made for another EK or AK ({code})")]
    CredentialRejected {
        /// The TPM's answer.
        code: TpmCode,
    },
    /// The device's: something extends PCRs without a pause.
    #[error("PCRs {mask:#08x} changed during each of {tries} quotes; something extends them without a pause")]
    PcrsMoving {
        /// The PCRs quoted.
        mask: u32,
        /// Quotes made.
        tries: usize,
    },
    /// The TPM was cleared or replaced: there is a new AK. Read the identity again, and enrol.
    #[error("the TPM was cleared or replaced: the new AK {} must be enrolled first", hex::encode(.name))]
    AkReplaced {
        /// Name of the new AK.
        name: AkName,
    },
    /// Nobody's that we know of: the TPM answered with a code that this operation does not expect.
    #[error("the TPM refused `{operation}`: {code}")]
    Unexpected {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        code: TpmCode,
    },
    /// The TPM's or the library's: a structure came back in a form that the standard does not allow.
    #[error("the TPM returned a malformed {0}")]
    Malformed(&'static str),
}

/// A response code of the TPM or of the software stack, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TpmCode(pub(super) tss_esapi::Error);

impl fmt::Display for TpmCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        // The library prints most codes of the stack as "not recognized"; the number is what one can look up.
        match self.0.source().and_then(std::error::Error::source) {
            Some(number) => write!(f, " [{number}]"),
            None => Ok(()),
        }
    }
}

/// What an operation inside the TPM's thread returns: either an answer of the stack, yet to be judged by
/// [`super::reaction`], or a conclusion the operation came to itself.
#[derive(Debug)]
pub(super) enum Failure {
    /// To be judged: retry, reconnect, give up.
    Stack(tss_esapi::Error),
    /// Final.
    Final(TpmError),
}

impl From<tss_esapi::Error> for Failure {
    fn from(error: tss_esapi::Error) -> Self {
        Self::Stack(error)
    }
}

impl From<TpmError> for Failure {
    fn from(error: TpmError) -> Self {
        Self::Final(error)
    }
}
