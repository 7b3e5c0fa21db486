//! Who says what, and when: the protocol as two state machines without I/O, clock or randomness.
//!
//! A device is attested so:
//!
//! ```text
//! device (Attester)                 bridge (Relay)                        Keylime
//! Enrol ---------------------------> admission, POST ------------------> registrar
//!       <--------------------------- Credential
//! Activation ----------------------> PUT ------------------------------> registrar
//!       <--------------------------- Enrolled
//! Ready ---------------------------> POST session ---------------------> verifier
//!       <--------------------------- Prove
//! Proof ---------------------------> PATCH session --------------------> verifier: token
//!                                    check the boot's statement
//!                                    POST attestation -----------------> verifier: nonce
//!       <--------------------------- Need      (only for logs not held)
//! Blob ... ------------------------>
//!       <--------------------------- Challenge
//! Evidence ------------------------> restore, check what the signature binds
//!       <--------------------------- State     (only when a log does not explain the quote)
//! Statement ----------------------->
//!                                    PATCH attestation ----------------> verifier
//!                                    read the outcome -----------------> verifier
//! ```
//!
//! and from then on one `Challenge` down and one `Evidence` up whenever the verifier's interval has passed.
//!
//! **Bytes.** Neither says what the other holds already: `Unchanged` stands for a `Ready` said before, a brief quote for
//! the whole one, values and lines are those that are new. Whatever was left out wrongly is refuted by a signature or a
//! digest, and asked for in full.
//!
//! **Loss** is repaired here alone. The bridge repeats its question a few times, then waits; the device repeats its
//! cached answer. A device that hears nothing for the stated time says `Ready`, and a bridge that knows nothing takes
//! `Ready` as a first attestation. There is no third mechanism.
//!
//! **Trust.** An AK is trusted once its name was certified in a proof that the verifier answered with `pass`, or once
//! a ticket that names it opened. All else that a message says is a claim.
//!
//! Both halves are driven alike: `handle(input, now)`, then `poll_output()` until it is empty, and
//! `handle_timeout(now)` when `poll_timeout()` has come. `now` is time since any fixed start and never goes back.

pub mod attester;
pub mod relay;
mod retry;

pub use attester::Attester;
pub use relay::Relay;

/// Time since an arbitrary start, monotonic.
pub type Time = std::time::Duration;

/// How a message is given to the broker. Either may be lost: only an answer shows that it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// `QoS` 0: no acknowledgement, which costs as much as a small message. For what is repeated soon if it is lost.
    Lean,
    /// `QoS` 1: for what is said rarely, or again because it may have been lost.
    Assured,
}
