//! A working connection: context, loaded AK, and who the device is.

use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::tcti_ldr::TctiNameConf;

use super::ak::{self, SavedAk};
use super::ek;
use super::error::Failure;
use super::identity::Identity;
use super::space;

/// What every operation works with. Dropping it flushes the AK.
pub(super) struct Opened {
    pub(super) context: Context,
    pub(super) ak: KeyHandle,
    pub(super) identity: Identity,
    /// The EK's handle, as configured.
    pub(super) ek_handle: Option<u32>,
}

/// Connects, cleans up after earlier lives of this agent, and loads the AK under the EK.
pub(super) fn open(
    tcti: &TctiNameConf,
    ek_handle: Option<u32>,
    saved: Option<&SavedAk>,
) -> Result<Opened, Failure> {
    let mut context = Context::new(tcti.clone())?;
    space::make(&mut context, saved)?;
    let ek = ek::load(&mut context, ek_handle)?;
    // On an error the context goes, and with it the EK.
    let ek_certificate = ek::certificate(&mut context)?;
    let (ak, saved_ak) = ak::load_or_create(&mut context, ek.handle, saved)?;
    let ak_name = ak::name(&mut context, ak)?;
    let identity = Identity::new(&ek.public, ek_certificate, ak_name, saved_ak)?;
    ek.release(&mut context)?;
    Ok(Opened { context, ak, identity, ek_handle })
}
