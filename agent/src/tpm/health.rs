//! How the TPM is, without touching the AK: for the doctor, which runs beside an agent or before the first one.

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::tss::{
    TPM2_PT_HR_TRANSIENT_AVAIL, TPM2_PT_LOCKOUT_COUNTER, TPM2_PT_LOCKOUT_INTERVAL, TPM2_PT_MAX_AUTH_FAIL,
    TPM2_PT_PERMANENT, TPM2_TRANSIENT_FIRST,
};
use tss_esapi::structures::CapabilityData;
use tss_esapi::tcti_ldr::TctiNameConf;

use super::ek;
use super::error::{Failure, TpmError};
use super::identity::hash_ek;
use super::quote;
use super::space::handles;

/// TPMA_PERMANENT, inLockout (TPM 2.0 Part 2, 8.6).
const IN_LOCKOUT: u32 = 1 << 9;
/// PCR 10, which IMA extends.
const IMA_PCR_MASK: u32 = 1 << 10;

/// How the TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Keylime's `hash_ek`.
    pub ek_hash: String,
    /// Whether there is an EK certificate.
    pub ek_certificate: bool,
    /// Failed authorizations that count towards lockout.
    pub lockout_counter: u32,
    /// How many of them make a lockout.
    pub lockout_at: u32,
    /// Seconds after which one is forgiven.
    pub lockout_interval: u32,
    /// Whether it is in lockout now.
    pub in_lockout: bool,
    /// Slots for keys that are free.
    pub free_slots: u32,
    /// Keys loaded that this connection can see: without a resource manager those of every program.
    pub loaded: usize,
    /// PCR 10 of the sha256 bank.
    pub pcr10: [u8; 32],
}

/// Reads all that; makes and keeps nothing.
pub(super) fn health(tcti: &TctiNameConf, ek_handle: Option<u32>) -> Result<Health, Failure> {
    let mut context = Context::new(tcti.clone())?;
    let free_slots = property(&mut context, TPM2_PT_HR_TRANSIENT_AVAIL)?;
    let loaded = handles(&mut context, TPM2_TRANSIENT_FIRST)?.len();
    let pcr10 = *quote::pcr_values(&mut context, IMA_PCR_MASK)?
        .first()
        .ok_or(TpmError::Malformed("list of PCR values"))?;
    let permanent = property(&mut context, TPM2_PT_PERMANENT)?;
    let ek = ek::load(&mut context, ek_handle)?;
    let ek_hash = hash_ek(&ek.public)?;
    ek.release(&mut context)?;
    Ok(Health {
        ek_hash,
        ek_certificate: ek::certificate(&mut context)?.is_some(),
        lockout_counter: property(&mut context, TPM2_PT_LOCKOUT_COUNTER)?,
        lockout_at: property(&mut context, TPM2_PT_MAX_AUTH_FAIL)?,
        lockout_interval: property(&mut context, TPM2_PT_LOCKOUT_INTERVAL)?,
        in_lockout: permanent & IN_LOCKOUT != 0,
        free_slots,
        loaded,
        pcr10,
    })
}

/// One property. The library's own way keeps what it read once, and these change.
fn property(context: &mut Context, tag: u32) -> Result<u32, Failure> {
    match context.get_capability(CapabilityType::TpmProperties, tag, 1)? {
        (CapabilityData::TpmProperties(list), _) => {
            let found = list.iter().find(|found| u32::from(found.property()) == tag);
            Ok(found.ok_or(TpmError::Malformed("list of properties"))?.value())
        }
        _ => Err(TpmError::Malformed("list of properties").into()),
    }
}
