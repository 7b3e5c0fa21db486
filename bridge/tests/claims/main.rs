//! What the bridge claims, each claim a test; one binary, so that it is linked once
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a failing helper is a failing test"
)]

mod admission;
mod bounds;
mod brief_quotes;
mod configuration;
mod configured;
mod doctor;
mod fixtures;
mod fleet;
mod foreign_keys;
mod hostile_bytes;
mod keylime_answers;
mod keylime_table;
mod lanes;
mod lean;
mod logs;
mod maker;
mod makers;
mod references;
mod restored_evidence;
mod scripted;
mod uefi_cache;
mod unfit_logs;
mod world;

/// Waits for what another thread does; a test that waits for what never comes fails
async fn eventually(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(world::PATIENCE, wait).await.is_ok(), "it never came to be");
}
