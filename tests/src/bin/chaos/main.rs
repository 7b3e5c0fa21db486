//! `make chaos`: processes are killed, hang, lose their links, their disks and their clocks, and nothing is lost by it.
//!
//! Real parts: Keylime, swtpm, mosquitto with TLS client certificates, agent and bridge as they are built. A seed draws
//! the [`plan`]; half of the kills fall at named [`points`] of the exchange, which the observer at the broker and the
//! verifier's log show. After each fault [`recovery`] waits until every device is back at PASS, plays the operator where
//! a result asks for one, and looks for a false FAIL; [`holdings`] looks for what was left behind. [`report`] tells it.

// Tables for a person and progress lines are what this program is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod faults;
mod holdings;
mod plan;
mod points;
mod recovery;
mod report;
mod rig;
mod run;
mod strike;

use anyhow::Result;
use clap::Parser;
use keylime_mqtt_tests::disk::own_mounts;
use std::path::PathBuf;
use std::process::ExitCode;

/// Faults on a real fleet.
#[derive(Debug, Parser)]
struct Arguments {
    /// Draws the plan: the same seed, the same plan
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
    /// Processes to kill, an eighth of them at least of each part
    #[arg(long, env = "KILLS", default_value_t = 200)]
    kills: usize,
    /// Of the faults that kill nobody, how many
    #[arg(long, default_value_t = usize::MAX)]
    faults: usize,
    /// Devices, of all kinds of policy in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=20))]
    devices: u8,
    /// Keylime's `quote_interval`, in seconds
    #[arg(long, default_value_t = 4)]
    interval: u32,
    /// Times, growth and shares are told and not judged: for few strikes, on a machine that others use as well
    #[arg(long)]
    short: bool,
    /// Where the figures go, as JSON
    #[arg(long, default_value = ".run/chaos.json")]
    json: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    // While there is one thread.
    let disks = own_mounts();
    let report = run::run(&arguments, disks)?;
    println!("{}", report.table());
    report.write(&arguments.json)?;
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
