//! `make lies`: a hostile broker between a fleet of real devices and real Keylime, and the table of what it told.
//!
//! The bulk of the lies is told to the simulated exchange (`schemas/tests/exchange/broker.rs`), which writes what it
//! counted to a file; this program tells the same lies to real parts and prints both tables, one added to the other.
//! Then [`flood`] measures what hostile devices cost the others. `SEED=…` repeats a plan.

// Tables for a person and progress lines are what this program is for.
#![allow(clippy::print_stdout)]

mod flood;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use keylime_mqtt_liar::Table;
use keylime_mqtt_tests::campaign::{Campaign, run};
use std::path::PathBuf;
use std::time::Duration;

/// A hostile broker and hostile devices.
#[derive(Debug, Parser)]
struct Arguments {
    /// All chance comes from it
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
    /// Devices at the start
    #[arg(long, default_value_t = 18)]
    devices: usize,
    /// Verdicts of Keylime, at least
    #[arg(long, default_value_t = 1000)]
    verdicts: usize,
    /// The verifier's interval, seconds
    #[arg(long, default_value_t = 10)]
    interval: u32,
    /// Seconds of lies in each round
    #[arg(long, default_value_t = 25)]
    lying: u64,
    /// What the simulated exchange has counted, to be added
    #[arg(long, value_name = "FILE")]
    simulated: Option<PathBuf>,
    /// Rounds, at least
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Only the hostile devices
    #[arg(long)]
    only_flood: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.only_flood {
        hostile_broker(&arguments)?;
    }
    flood::hostile_devices()
}

fn hostile_broker(arguments: &Arguments) -> Result<()> {
    let interval = Duration::from_secs(arguments.interval.into());
    let campaign = Campaign {
        seed: arguments.seed,
        devices: arguments.devices,
        newcomers: 4,
        rounds: arguments.rounds,
        verdicts: arguments.verdicts,
        one_in: 3,
        lying: Duration::from_secs(arguments.lying),
        interval: arguments.interval,
    };
    println!("==> seed {}: starting Keylime, two brokers, {} devices", arguments.seed, arguments.devices);
    let came = run(&campaign, |text| println!("==> {text}"))?;
    println!("\nreal parts:\n{}", came.table);
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let place = (came.back.len() as f64 * share) as usize;
        came.back.get(place.min(came.back.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    println!(
        "real parts: {} verdicts of Keylime, {} lies told in {} rounds, {} devices of which {} were tampered with and failed; \
         no false PASS, no false FAIL\nback after the lies: median {:.1?}, p99 {:.1?}, slowest {:.1?}, at an interval of {interval:?}",
        came.verdicts,
        came.table.total(),
        came.rounds,
        came.devices,
        came.tampered,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    for (before, after) in &came.held {
        println!("the bridge over a round of lies: {before} -> {after}");
    }
    let grew = came.held.iter().filter(|(before, after)| !after.stays(before, 0)).count();
    let late = came.back.iter().filter(|back| **back > interval * 2).count();
    let claim = || {
        ensure!(grew == 0, "the bridge grew in {grew} of {} rounds of lies", came.held.len());
        ensure!(late == 0, "{late} of {} times a device was back later than two intervals", came.back.len());
        Ok(())
    };
    let Some(file) = &arguments.simulated else { return claim() };
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let simulated = Table::from_lines(&text);
    let judged: usize =
        text.lines().find_map(|line| line.strip_prefix("judged\t")?.parse().ok()).unwrap_or_default();
    let mut both = simulated;
    both.add(&came.table);
    println!("\nsimulated and real together:\n{both}");
    println!(
        "together: {} exchanges carried to a verdict, {} lies told",
        judged + came.verdicts,
        both.total()
    );
    ensure!(judged + came.verdicts >= 10_000, "fewer than 10 000 exchanges");
    let rare = both.below(50);
    ensure!(rare.is_empty(), "told less often than fifty times: {rare:?}");
    claim()
}
