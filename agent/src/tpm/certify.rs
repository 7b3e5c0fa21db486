//! TPM2_Certify of the AK by the AK: the verifier's proof of possession.

use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Data, SignatureScheme};
use tss_esapi::traits::Marshall;

use super::Signed;
use super::error::Failure;
use super::open::Opened;

/// Signs "this AK is loaded here" over the session nonce. Password sessions: one command instead of five.
pub(super) fn certify_ak(open: &mut Opened, nonce: [u8; 16]) -> Result<Signed, Failure> {
    let sessions = (Some(AuthSession::Password), Some(AuthSession::Password), None);
    let (attest, signature) = open.context.execute_with_sessions(sessions, |context| {
        context.certify(open.ak.into(), open.ak, Data::try_from(nonce.as_slice())?, SignatureScheme::Null)
    })?;
    Ok(Signed { attest: attest.marshall()?, signature: signature.marshall()? })
}
