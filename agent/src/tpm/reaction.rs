//! What to do about an error of the TPM or of the stack beneath it: the only place that knows.
//!
//! TPM 2.0 Part 2, 6.6.3 gives the TPM's codes; numbers above 16 bits come from the layers of tpm2-tss (TCTI, ESYS, resource manager).

use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};

use super::error::TpmError;

/// What the TPM's thread does next.
#[derive(Debug)]
pub(super) enum Reaction {
    /// The TPM is busy with itself: the same command again, after a pause.
    Retry,
    /// All slots for objects or sessions are taken: connect anew, which flushes what earlier lives of this agent left, then again.
    MakeRoom,
    /// The connection or the objects behind it are gone: connect anew, load the AK anew, then again.
    Reconnect,
    /// Nothing helps but what the error says.
    GiveUp(TpmError),
    /// Nothing is known that helps.
    Unexpected,
}

/// Judges one error.
pub(super) fn reaction(error: tss_esapi::Error) -> Reaction {
    let tss_esapi::Error::Tss2Error(code) = error else {
        // The library did not understand an answer, or lost track of its handles: both end with a new connection.
        return Reaction::Reconnect;
    };
    match code {
        Tss2ResponseCode::Success => Reaction::Unexpected,
        Tss2ResponseCode::FormatOne(_) => match code.kind() {
            // A persistent EK was evicted, or another TPM answers: look again.
            Some(Tss2ResponseCodeKind::Handle) => Reaction::Reconnect,
            // The AK's authorization is empty, the EK's is a policy; only the endorsement hierarchy can have a password.
            Some(Tss2ResponseCodeKind::AuthFail | Tss2ResponseCodeKind::BadAuth) => {
                Reaction::GiveUp(TpmError::EndorsementAuth)
            }
            _ => Reaction::Unexpected,
        },
        // Not `kind()`: it ignores the layer and would take a broken connection for an answer of the TPM.
        Tss2ResponseCode::FormatZero(_) => {
            if is_any(code, &RETRY) {
                Reaction::Retry
            } else if is_any(code, &SLOTS) {
                Reaction::MakeRoom
            } else if is_any(code, &LOCKOUT) {
                Reaction::GiveUp(TpmError::Lockout)
            } else if is_any(code, &FAILURE_MODE) {
                Reaction::Unexpected
            } else {
                // Handles that are no longer loaded (0x910…), a TPM started anew (0x100), a broken transport
                // (0x000A000A) and the "bad sequence" (0x00070007) that follows it for ever.
                Reaction::Reconnect
            }
        }
    }
}

/// TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_NV_RATE.
const RETRY: [u32; 4] = [0x922, 0x908, 0x90A, 0x920];
/// TPM_RC_CONTEXT_GAP, TPM_RC_OBJECT_MEMORY, TPM_RC_SESSION_MEMORY, TPM_RC_MEMORY, TPM_RC_SESSION_HANDLES, TPM_RC_OBJECT_HANDLES.
const SLOTS: [u32; 6] = [0x901, 0x902, 0x903, 0x904, 0x905, 0x906];
/// TPM_RC_LOCKOUT.
const LOCKOUT: [u32; 1] = [0x921];
/// TPM_RC_FAILURE, TPM_RC_UPGRADE, TPM_RC_COMMAND_CODE: no reconnection changes these.
const FAILURE_MODE: [u32; 3] = [0x101, 0x12D, 0x143];

/// A resource manager passes on the TPM's codes under its own layer (TSS2_RESMGR_TPM_RC_LAYER).
const RESOURCE_MANAGER: u32 = 11 << 16;

fn is_any(code: Tss2ResponseCode, numbers: &[u32]) -> bool {
    numbers.iter().any(|number| {
        code == Tss2ResponseCode::from(*number) || code == Tss2ResponseCode::from(*number | RESOURCE_MANAGER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(number: u32) -> Reaction {
        reaction(tss_esapi::Error::Tss2Error(Tss2ResponseCode::from(number)))
    }

    #[test]
    fn a_busy_tpm_is_asked_again_also_through_a_resource_manager() {
        for number in [0x922, 0x908, 0x90A, 0x000B_0922] {
            assert!(matches!(judged(number), Reaction::Retry), "{number:#x}");
        }
    }

    #[test]
    fn a_broken_transport_is_not_taken_for_an_answer_of_the_tpm() {
        // 0x0007_0001 has the low bits of TPM_RC_FAILURE, 0x000A_000A those of TPM_RC_TESTING without its warning bit.
        for number in [0x000A_000A, 0x0007_0007, 0x0007_0001, 0x000A_0002] {
            assert!(matches!(judged(number), Reaction::Reconnect), "{number:#x}");
        }
    }

    #[test]
    fn full_slots_call_for_flushing_what_fills_them() {
        assert!(matches!(judged(0x902), Reaction::MakeRoom));
        assert!(matches!(judged(0x903), Reaction::MakeRoom));
    }

    #[test]
    fn what_only_the_operator_can_cure_is_not_retried() {
        assert!(matches!(judged(0x921), Reaction::GiveUp(TpmError::Lockout)));
        assert!(matches!(judged(0x9A2), Reaction::GiveUp(TpmError::EndorsementAuth)));
        assert!(matches!(judged(0x101), Reaction::Unexpected));
    }

    #[test]
    fn a_handle_that_is_gone_means_loading_again() {
        for number in [0x910, 0x911, 0x18B, 0x100] {
            assert!(matches!(judged(number), Reaction::Reconnect), "{number:#x}");
        }
    }
}
