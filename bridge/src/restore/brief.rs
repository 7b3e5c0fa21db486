//! A quote of which the bridge makes all but what only the TPM knew.
//!
//! What is put in place of what was left out is a guess until the AK's signature covers it: only [`restore_brief`] hands it out, and only then.

use super::bound::{Bound, Unbound};
use crate::tpm::{AkPublic, Attest, ClockInfo, RsaSignature, marshal_quote};
use keylime_mqtt_schemas::messages::{Brief, PcrValues, Signed};

/// Makes the whole quote and checks it
///
/// `boot_attest` is the TPMS_ATTEST of this boot's statement: signer, firmware version and, unless the brief says otherwise, the counters are
/// as there. `values` are those of exactly the PCRs asked for.
///
/// # Errors
/// When the signature refutes it, or the statement is none.
pub fn restore_brief(
    ak: &AkPublic,
    nonce: &[u8],
    boot_attest: &[u8],
    brief: &Brief,
    values: PcrValues,
) -> Result<(Signed, Bound), Unbound> {
    let boot = Attest::parse(boot_attest)?;
    let clock = ClockInfo {
        clock: brief.clock,
        reset_count: boot.clock.reset_count,
        restart_count: brief.restart_count.unwrap_or(boot.clock.restart_count),
        safe: true,
    };
    let digest = values.digest();
    let (signer, firmware) = (&boot.qualified_signer, boot.firmware_version);
    let attest = marshal_quote(signer, nonce, clock, firmware, values.mask(), digest.as_bytes())?;
    let signature = RsaSignature::of_number(brief.signature.as_slice());
    signature.verify(ak, &attest).map_err(Unbound::Signature)?;
    let quote = Signed {
        attest: attest.try_into().map_err(|_| Unbound::Kind)?,
        signature: signature.marshal()?.try_into().map_err(|_| Unbound::Kind)?,
    };
    Ok((quote, Bound::checked(clock, values)))
}
