//! What the bridge claims, each claim a test; one binary, so that it is linked once
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a failing helper is a failing test"
)]

mod admission;
mod brief_quotes;
mod configuration;
mod configured;
mod fixtures;
mod fleet;
mod hostile_bytes;
mod keylime_answers;
mod restored_evidence;
mod scripted;
mod world;
