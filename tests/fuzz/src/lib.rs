//! Everything that reads bytes of others, as functions that take any bytes.
//!
//! A target fails by panicking. It looks for three things: that nothing panics, that nothing becomes larger than its bound
//! says, and what must hold whatever came, such as that a decoded message has one encoding. The same functions are run by
//! libFuzzer (`make fuzz`) and over the corpus that it left (`tests/corpus.rs`, in every `make test`).

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a target fails by panicking"
)]

mod bytes;
mod certificates;
mod compact;
mod exchange;
mod keylime;
mod logs;
mod tpm;
mod wire;

/// One reader of foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Names it on the command line and in the corpus.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "up", run: wire::up },
    Target { name: "down", run: wire::down },
    Target { name: "fragments", run: wire::fragments },
    Target { name: "topics", run: wire::topics },
    Target { name: "presence", run: wire::presence },
    Target { name: "ima_unpack", run: compact::ima_unpack },
    Target { name: "ima_pack", run: compact::ima_pack },
    Target { name: "uefi_unpack", run: compact::uefi_unpack },
    Target { name: "uefi_pack", run: compact::uefi_pack },
    Target { name: "reference", run: compact::reference },
    Target { name: "ima_replay", run: logs::ima_replay },
    Target { name: "uefi_replay", run: logs::uefi_replay },
    Target { name: "ima_log", run: logs::ima_log },
    Target { name: "uefi_log", run: logs::uefi_log },
    Target { name: "tpm_structures", run: tpm::structures },
    Target { name: "restoring", run: tpm::restoring },
    Target { name: "ek_certificate", run: certificates::ek_certificate },
    Target { name: "ek_authority", run: certificates::ek_authority },
    Target { name: "keylime", run: keylime::answers },
    Target { name: "exchange", run: exchange::run },
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
