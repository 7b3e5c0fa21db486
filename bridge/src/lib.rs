//! Server side of keylime-mqtt: it drives Keylime's unmodified registrar and verifier on behalf of devices that reach nothing but a broker.
//!
//! The bridge conveys and never judges (RFC 9334: a relay). What it decides for itself is only what it lets through: TPMs that its
//! operator admits ([`admission`]), and evidence that is bound to the verifier's nonce by the device's AK ([`restore`]), so
//! that neither a broker nor another device can make a device fail.
//!
//! ```text
//! MQTT -> exchange::Relay -> restore -> keylime -> registrar / verifier
//!              admission, session_budget, ticket at its side
//! ```
//!
//! Nothing is stored here that cannot be lost: a bridge that starts anew finds every device again by its next `Ready`.

pub mod admission;
mod commands;
pub mod config;
pub mod doctor;
pub mod fleet;
pub mod keylime;
pub mod reference;
pub mod restore;
pub mod run;
pub mod session_budget;
pub mod status_socket;
pub mod ticket;
pub mod tpm;

pub use commands::Cli;
