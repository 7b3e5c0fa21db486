//! What is measured, what the official agent needs for it, and what we want to need.

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Commands,
    Milliseconds,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// Keylime's push agent 0.2.9 against the same verifier, measured at the IP level too
    pub(crate) official: &'static str,
    /// Most that is wanted; none for what is listed apart
    pub(crate) goal: Option<f64>,
    pub(crate) unit: Unit,
}

const fn line(id: &'static str, what: &'static str, official: &'static str, goal: f64, unit: Unit) -> Line {
    Line { id, what, official, goal: Some(goal), unit }
}

const fn apart(id: &'static str, what: &'static str, unit: Unit) -> Line {
    Line { id, what, official: "–", goal: None, unit }
}

use Unit::{Bytes, Commands, Milliseconds};

/// In the order of the table.
pub(crate) const LINES: [Line; 27] = [
    line("steady-quote", "steady, quote only", "10.9 kB", 800.0, Bytes),
    line("steady-logs", "steady, IMA 1000 + UEFI 41 kB", "126 kB", 800.0, Bytes),
    line("steady-ten", "steady with 10 new IMA entries", "–", 1_300.0, Bytes),
    line("first-1000", "first, IMA 1000 + UEFI 41 kB", "482 kB", 75_000.0, Bytes),
    line("first-1000-reference", "first, IMA 1000 + UEFI, with a reference", "–", 18_000.0, Bytes),
    line("first-20000", "first, IMA 20 000 + UEFI 41 kB", "7.0 MB", 1_100_000.0, Bytes),
    line("first-20000-reference", "first, IMA 20 000 + UEFI, with a reference", "–", 120_000.0, Bytes),
    line("wake", "wake: connect (TLS resumed), attest, disconnect", "–", 4_400.0, Bytes),
    line("idle-hour", "idle hour at the default keep-alive", "–", 3_000.0, Bytes),
    line("tpm-commands", "TPM commands per steady attestation", "~20", 2.0, Commands),
    line("binary", "agent: stripped binary", "7.1 MB", 4_000_000.0, Bytes),
    line("memory-1000", "agent: resident memory, IMA 1000", "17.7 MB", 10_000_000.0, Bytes),
    line("memory-20000", "agent: resident memory, IMA 20 000", "41 MB", 10_000_000.0, Bytes),
    line("memory-100000", "agent: resident memory, IMA 100 000", "–", 10_000_000.0, Bytes),
    line("cpu-1000", "agent CPU per steady attestation, IMA 1000", "1.3 ms", 2.0, Milliseconds),
    line("cpu-20000", "agent CPU per steady attestation, IMA 20 000", "8 ms", 2.0, Milliseconds),
    line("cpu-100000", "agent CPU per steady attestation, IMA 100 000", "–", 2.0, Milliseconds),
    line(
        "bridge-cpu-quote",
        "bridge CPU per steady attestation, quote only",
        "54 ms (verifier)",
        1.0,
        Milliseconds,
    ),
    line(
        "bridge-cpu-logs",
        "bridge CPU per steady attestation, IMA + UEFI",
        "172 ms (verifier)",
        1.0,
        Milliseconds,
    ),
    apart("connect", "connect: TCP, TLS in full, MQTT", Bytes),
    apart("enrolment", "enrolment", Bytes),
    apart("first-quote", "first, quote only", Bytes),
    apart("first-100000", "first, IMA 100 000 + UEFI 41 kB", Bytes),
    apart("steady-100000", "steady, IMA 100 000 + UEFI 41 kB", Bytes),
    apart("wake-full", "wake: the first, TLS in full", Bytes),
    apart("ping", "keep-alive ping", Bytes),
    apart("disconnect", "disconnect", Bytes),
];
