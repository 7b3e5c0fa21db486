//! What the agent claims, each proved against real parts: a software TPM, mosquitto, tpm2-tools.

// test code in a file of its own escapes clippy's `allow-…-in-tests`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bridge;
mod command_line;
mod counted;
mod device;
mod doctor;
mod evidence;
mod holder;
mod kernel;
mod lean;
mod memory;
mod ports;
mod retry_proxy;
mod run;
mod shared_tpm;
mod sleeping;
mod swtpm;
mod tpm_identity;
mod tpm_operations;
mod tpm_trouble;
