//! What this crate claims, each claim against a real broker unless its name says "scripted".
//!
//! The parts: [`pki`] makes certificates, [`mosquitto`] and [`squid`] run the real broker and proxy, [`relay`] is the network that
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
mod faults;
mod gateway;
mod mosquitto;
mod order;
mod paths;
mod pki;
mod profiles;
mod reader;
mod relay;
mod rotation;
mod scripted;
mod settings;
mod sizes;
mod squid;
mod trust;
mod watchdog;
