//! Room in the TPM: what an earlier life of this agent left loaded is flushed, what belongs to others is not.
//!
//! A TPM without resource manager keeps transient objects and sessions of a process that was killed, and has three slots
//! for each. Behind a resource manager (`/dev/tpmrm0`, tpm2-abrmd) the lists read here hold only our own, so nothing is found.

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::tss::{TPM2_LOADED_SESSION_FIRST, TPM2_TRANSIENT_FIRST};
use tss_esapi::handles::{KeyHandle, ObjectHandle, TpmHandle};
use tss_esapi::structures::{CapabilityData, Public};
use tss_esapi::{Error, WrapperErrorKind};

use super::ak::SavedAk;
use super::ek;
use super::error::{Failure, TpmError};

/// Most handles asked for at once; TPMs have 3 to about 20 slots.
const HANDLES: u32 = 64;

/// How much may be flushed. Each step is taken only when the TPM said that it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Copies of our AK.
    Ours,
    /// Also transient EKs of the TCG template: this agent, killed while it used one, left it; and nobody keeps one loaded.
    StrayEks,
    /// Also every session: without a resource manager only one connection is served at a time, ours, so they are all left over.
    Sessions,
}

/// Flushes what `room` allows.
pub(super) fn make(context: &mut Context, saved: Option<&SavedAk>, room: Room) -> Result<(), Failure> {
    let ours = saved.map(SavedAk::public_key).transpose()?;
    for handle in handles(context, TPM2_TRANSIENT_FIRST)? {
        let TpmHandle::Transient(_) = handle else { continue };
        let object = context.tr_from_tpm_public(handle)?;
        let (public, _, _) = context.read_public(KeyHandle::from(object))?;
        if is_ours(&public, ours.as_ref(), room) {
            context.flush_context(object)?;
            tracing::info!(handle = u32::from(handle), "flushed a key left loaded by an earlier run");
        } else {
            forget(context, object)?;
        }
    }
    if room >= Room::Sessions {
        for handle in handles(context, TPM2_LOADED_SESSION_FIRST)? {
            let session = context.tr_from_tpm_public(handle)?;
            ignoring_book_keeping(context.flush_context(session))?;
            tracing::info!(handle = u32::from(handle), "flushed a session left open by an earlier run");
        }
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

fn is_ours(public: &Public, ours: Option<&Public>, room: Room) -> bool {
    Some(public) == ours || (room >= Room::StrayEks && ek::is_from_template(public))
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
