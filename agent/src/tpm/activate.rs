//! TPM2_ActivateCredential: opening the registrar's challenge.

use tss_esapi::Context;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};
use tss_esapi::handles::{AuthHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, EncryptedSecret, IdObject, Nonce, SymmetricDefinition};
use tss_esapi::{Error, WrapperErrorKind};
use zeroize::Zeroizing;

use super::ek;
use super::error::{Failure, TpmCode, TpmError};
use super::open::Opened;

/// The registrar's blob, taken apart.
#[derive(Debug, Clone)]
pub(super) struct Challenge {
    credential: IdObject,
    secret: EncryptedSecret,
}

impl Challenge {
    /// Layout of tpm2-tools, as Keylime writes it: magic, version, then two sized structures and nothing else.
    pub(super) fn parse(blob: &[u8]) -> Result<Self, TpmError> {
        const MAGIC: [u8; 4] = 0xBADC_C0DE_u32.to_be_bytes();
        const VERSION: [u8; 4] = 1_u32.to_be_bytes();
        let rest = blob.strip_prefix(&MAGIC).ok_or(TpmError::CredentialBlob("wrong magic number"))?;
        let rest = rest.strip_prefix(&VERSION).ok_or(TpmError::CredentialBlob("unknown version"))?;
        let (credential, rest) = sized(rest)?;
        let (secret, rest) = sized(rest)?;
        if !rest.is_empty() {
            return Err(TpmError::CredentialBlob("bytes after its end"));
        }
        Ok(Self {
            credential: IdObject::try_from(credential)
                .map_err(|_| TpmError::CredentialBlob("credential too long"))?,
            secret: EncryptedSecret::try_from(secret)
                .map_err(|_| TpmError::CredentialBlob("secret too long"))?,
        })
    }
}

fn sized(bytes: &[u8]) -> Result<(&[u8], &[u8]), TpmError> {
    bytes
        .split_first_chunk()
        .and_then(|(size, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*size))))
        .ok_or(TpmError::CredentialBlob("cut short"))
}

/// The credential inside, if it was made for this EK and AK.
pub(super) fn activate(open: &mut Opened, challenge: &Challenge) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let ek = ek::load(&mut open.context, open.ek_handle)?;
    let opened = with_ek_policy(&mut open.context, |context, policy| {
        context.execute_with_sessions((Some(AuthSession::Password), Some(policy), None), |context| {
            context.activate_credential(
                open.ak,
                ek.handle,
                challenge.credential.clone(),
                challenge.secret.clone(),
            )
        })
    });
    // Also when the credential was refused: the EK never stays loaded.
    ek.release(&mut open.context)?;
    match opened {
        Ok(credential) => Ok(Zeroizing::new(credential.value().to_vec())),
        Err(error) if is_rejection(error, open) => {
            Err(TpmError::CredentialRejected { code: TpmCode(error) }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs `work` with a session that satisfies the EK's policy: PolicySecret of the endorsement hierarchy
/// (TCG EK Credential Profile, B.6.2), whose password is empty.
fn with_ek_policy(
    context: &mut Context,
    work: impl FnOnce(&mut Context, AuthSession) -> tss_esapi::Result<Digest>,
) -> tss_esapi::Result<Digest> {
    let session = context
        .start_auth_session(
            None,
            None,
            None,
            SessionType::Policy,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )?
        .ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
    context.execute_with_temporary_object(SessionHandle::from(session).into(), |context, _| {
        // The credential is a secret on the bus to a discrete TPM.
        let (attributes, mask) =
            SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
        context.tr_sess_set_attributes(session, attributes, mask)?;
        let policy = PolicySession::try_from(session)?;
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.policy_secret(
                policy,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })?;
        work(context, session)
    })
}

/// The codes for a credential that is not ours: wrong HMAC, or a secret that does not decrypt.
fn is_rejection(error: Error, open: &mut Opened) -> bool {
    let Error::Tss2Error(code) = error else { return false };
    match code {
        Tss2ResponseCode::FormatOne(_) => matches!(
            code.kind(),
            Some(
                Tss2ResponseCodeKind::Integrity
                    | Tss2ResponseCodeKind::Value
                    | Tss2ResponseCodeKind::Size
                    | Tss2ResponseCodeKind::Insufficient
            )
        ),
        // libtpms says TPM_RC_FAILURE when the secret was encrypted to another RSA key. A TPM that has really failed
        // answers nothing else any more.
        _ => code == Tss2ResponseCode::from(0x101) && open.context.read_public(open.ak).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(parts: &[&[u8]]) -> Vec<u8> {
        let mut blob = [&0xBADC_C0DE_u32.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
        for part in parts {
            blob.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            blob.extend(*part);
        }
        blob
    }

    #[test]
    fn a_blob_is_taken_apart_at_its_sizes() {
        let challenge = Challenge::parse(&blob(&[&[1; 68], &[2; 256]])).unwrap();
        assert_eq!(challenge.credential.value(), [1; 68]);
        assert_eq!(challenge.secret.value(), [2; 256]);
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let whole = blob(&[&[1; 68], &[2; 256]]);
        for length in 0..whole.len() {
            assert!(Challenge::parse(&whole[..length]).is_err(), "{length}");
        }
        assert!(Challenge::parse(&[&whole[..], &[0]].concat()).is_err());
        assert!(Challenge::parse(&blob(&[&[1; 68], &vec![2; 60_000]])).is_err());
    }
}
