//! `make test-net`: devices behind firewalls, NAT, proxies and bad links attest to a real Keylime, and a table says how
//! each fared. One Keylime, one bridge, one broker and one device for each cell, all with the times that are shipped.
//!
//! The exit code is 0 only if every cell passed.

// A table for a person is what this program is for.
#![allow(clippy::print_stdout)]

mod cell;
mod cells;
mod record;
mod run;
mod script;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use keylime_mqtt_tests::netlab::why_not;

/// Runs the matrix of paths, links and brokers.
#[derive(Parser)]
struct Arguments {
    /// Only cells whose line in the table holds this; may be given again
    #[arg(long)]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let Arguments { only } = Arguments::parse();
    if let Some(reason) = why_not() {
        bail!("no network namespaces, without which there is nothing to test: {reason}");
    }
    let wanted = |line: &str| only.is_empty() || only.iter().any(|part| line.contains(part.as_str()));
    let cells: Vec<_> = cells::all().into_iter().filter(|cell| wanted(&cell.title())).collect();
    ensure!(!cells.is_empty(), "no cell is called so");
    let outcomes = run::matrix(cells)?;
    println!("\n{}", record::table(&outcomes));
    let failed = outcomes.iter().filter(|outcome| outcome.fault.is_some()).count();
    ensure!(failed == 0, "{failed} of {} cells failed", outcomes.len());
    println!("all {} cells pass", outcomes.len());
    Ok(())
}
