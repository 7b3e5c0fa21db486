//! What this crate claims, each claim against a real broker unless its name says "scripted".
//!
//! The parts: [`pki`] makes certificates, [`mosquitto`] runs the real broker, [`relay`] is the network that
//! fails, [`scripted`] is a broker that misbehaves by script, [`reader`] waits for events with a time limit.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers, which clippy does not see as tests"
)]

mod acl;
mod connection_loss;
mod delivery;
mod mosquitto;
mod pki;
mod reader;
mod relay;
mod scripted;
mod settings;
mod sizes;
mod trust;
mod watchdog;
