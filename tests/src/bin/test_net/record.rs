//! What came of each cell, and the table.

use crate::cell::Cell;
use crate::run::Run;
use std::fmt::Write as _;
use std::time::Duration;

/// Lines of a log that explain a failure.
const TAIL: usize = 30;

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    title: String,
    /// What failed, if anything
    pub(crate) fault: Option<String>,
    first_pass: Option<Duration>,
    passes: usize,
    longest_gap: Duration,
    connections: usize,
    up: u64,
    down: u64,
}

impl Outcome {
    pub(crate) fn of(run: &Run, fault: Option<String>) -> Self {
        let (up, down) = run.site.carried();
        Self {
            title: run.cell.title(),
            fault,
            first_pass: run.passes.first().map(|at| at.duration_since(run.began)),
            passes: run.passes.len(),
            longest_gap: run.longest_gap(),
            connections: run.device.agent_log().matches(" connected to the broker").count(),
            up: up.bytes,
            down: down.bytes,
        }
    }

    pub(crate) fn not_begun(cell: &Cell, fault: &str) -> Self {
        Self {
            title: cell.title(),
            fault: Some(fault.to_owned()),
            first_pass: None,
            passes: 0,
            longest_gap: Duration::ZERO,
            connections: 0,
            up: 0,
            down: 0,
        }
    }
}

/// One row.
pub(crate) fn line(outcome: &Outcome) -> String {
    let Outcome { title, fault, first_pass, passes, longest_gap, connections, up, down } = outcome;
    let result = fault.as_ref().map_or_else(|| "PASS".to_owned(), |fault| format!("FAILED: {fault}"));
    let first = first_pass.map_or_else(|| "-".to_owned(), |first| format!("{} s", first.as_secs()));
    format!(
        "| {title} | {first} | {passes} | {} s | {connections} | {:.1} | {:.1} | {result} |",
        longest_gap.as_secs(),
        kilo(*up),
        kilo(*down)
    )
}

/// All rows, as they ended.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut text =
        "| path | link | broker | attested | first PASS after | passes | longest gap | connections | \
                    kB up | kB down | result |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for outcome in outcomes {
        writeln!(text, "{}", line(outcome)).ok();
    }
    text
}

pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n")
}

pub(crate) fn last_line(log: &str) -> &str {
    log.lines().last().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn kilo(bytes: u64) -> f64 {
    bytes as f64 / 1000.0
}
