//! Room in the TPM: what an earlier life of this agent left loaded is flushed, what belongs to others is not.
//!
//! A TPM without resource manager keeps transient objects and sessions of a process that was killed, and has three slots
//! for each. It serves one connection at a time, ours, so every session is left over; of objects, copies of our AK, and EKs of the
//! TCG template, which this agent has loaded for a moment and nobody keeps. Behind a resource manager (`/dev/tpmrm0`, tpm2-abrmd) the lists
//! read here hold only our own, so nothing is found.

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::tss::{TPM2_LOADED_SESSION_FIRST, TPM2_TRANSIENT_FIRST};
use tss_esapi::handles::{KeyHandle, ObjectHandle, TpmHandle};
use tss_esapi::structures::CapabilityData;
use tss_esapi::{Error, WrapperErrorKind};

use super::ak::SavedAk;
use super::ek;
use super::error::{Failure, TpmError};

/// Most handles asked for at once; TPMs have 3 to about 20 slots.
const HANDLES: u32 = 64;

/// Flushes what was left over.
pub(super) fn make(context: &mut Context, saved: Option<&SavedAk>) -> Result<(), Failure> {
    let ours = saved.map(SavedAk::public_key).transpose()?;
    for handle in handles(context, TPM2_TRANSIENT_FIRST)? {
        let TpmHandle::Transient(_) = handle else { continue };
        let object = context.tr_from_tpm_public(handle)?;
        let (public, _, _) = context.read_public(KeyHandle::from(object))?;
        if Some(&public) == ours.as_ref() || ek::is_from_template(&public) {
            context.flush_context(object)?;
            tracing::info!(handle = u32::from(handle), "flushed a key left loaded by an earlier run");
        } else {
            forget(context, object)?;
        }
    }
    for handle in handles(context, TPM2_LOADED_SESSION_FIRST)? {
        let session = context.tr_from_tpm_public(handle)?;
        ignoring_book_keeping(context.flush_context(session))?;
        tracing::info!(handle = u32::from(handle), "flushed a session left open by an earlier run");
    }
    Ok(())
}

/// Handles of one kind, from `first` on.
pub(super) fn handles(context: &mut Context, first: u32) -> Result<Vec<TpmHandle>, Failure> {
    match context.get_capability(CapabilityType::Handles, first, HANDLES)? {
        (CapabilityData::Handles(list), _) => Ok(list.into_inner()),
        _ => Err(TpmError::Malformed("list of handles").into()),
    }
}

/// Lets go of a handle without flushing what is behind it; the library would flush it when the context ends.
fn forget(context: &mut Context, mut object: ObjectHandle) -> Result<(), Failure> {
    ignoring_book_keeping(context.tr_close(&mut object))
}

/// The library does the work, strikes the handle off its list, and then complains that it was marked for the other verb.
fn ignoring_book_keeping(result: tss_esapi::Result<()>) -> Result<(), Failure> {
    match result {
        Err(Error::WrapperError(WrapperErrorKind::InvalidHandleState)) => Ok(()),
        other => Ok(other?),
    }
}
