//! What travels, as types. The grammar is `keylime-mqtt.cddl`; field order here is key order there.
//!
//! A field's position is its key: fields are only ever appended, and a new one is optional.

mod bytes;
mod down;
mod kind;
pub mod limits;
mod pcrs;
mod result;
mod up;

pub use bytes::{
    AkName, AuthTag, BootMarker, BootTag, Bounded, Digest, HelloTag, NoSuchPcr, Nonce, NonceTag, PcrMask,
    PcrTag, ReadyTag, TooLong,
};
pub use down::{
    Accepted, Challenge, Credential, Down, Enrolled, Heard, Later, LaterReason, LogKind, Need, Outcome,
    Prove, Question, Refused, RefusedReason, State, Told,
};
pub use pcrs::{IMA_PCR, PcrValues, ValuesDiffer};
pub use result::{AttestationResult, BridgeStatus, Verdict};
pub use up::{
    Activation, Blob, Brief, Enrol, Evidence, Hello, ImaSegment, NotYet, NotYetReason, Presence, Proof,
    Quote, Ready, Signed, Statement, UefiLog, Unchanged, Up,
};
