//! Logs in as few bytes as they need, restored to the byte: whatever the log says, whoever made the packed bytes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a claim that cannot be put should end the test"
)]

mod hostile;
mod ima;
mod logs;
mod references;
mod sizes;
mod uefi;
