//! The tables and the JSON.

use crate::goals::{LINES, Line, Unit};
use crate::workloads::{CYCLES, FIRST, Figure, Outcome, Spent, WAKES};
use anyhow::Result;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A workload's name and what came of it.
pub(crate) type Ran = (&'static str, Result<Outcome>);

/// Writes a figure as a person reads it.
fn written(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes if value < 10_000.0 => format!("{value:.0} B"),
        Unit::Bytes if value < 1e6 => format!("{:.1} kB", value / 1e3),
        Unit::Bytes => format!("{:.2} MB", value / 1e6),
        Unit::Commands => format!("{value:.2}"),
        Unit::Milliseconds => format!("{value:.2} ms"),
    }
}

fn figure<'a>(ran: &'a [Ran], line: &Line) -> Option<&'a Figure> {
    let figures = ran.iter().filter_map(|(_, outcome)| match outcome {
        Ok(Outcome::Measured(figures, _)) => Some(figures),
        _ => None,
    });
    figures.flatten().find(|figure| figure.line == line.id)
}

/// What of a line holds: `None` where nothing was measured or wanted.
fn met(ran: &[Ran], line: &Line) -> Option<bool> {
    Some(figure(ran, line)?.value.mean <= line.goal?)
}

/// Whether every goal that was measured is met.
pub(crate) fn all_met(ran: &[Ran]) -> bool {
    LINES.iter().all(|line| met(ran, line) != Some(false))
}

/// The tables, in Markdown.
pub(crate) fn tables(ran: &[Ran]) -> String {
    let mut rows = vec![
        "| workload | official agent | goal | measured | | |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    rows.extend(LINES.iter().filter_map(|line| row(ran, line)));
    rows.push(String::new());
    rows.extend([CYCLES, FIRST, WAKES].into_iter().flat_map(|table| fields(ran, table)));
    for (name, outcome) in ran {
        match outcome {
            Ok(Outcome::Measured(..)) => {}
            Ok(Outcome::Skipped(why)) => rows.push(format!("skipped: {name}: {why}")),
            Err(error) => rows.push(format!("FAILED: {name}: {error:#}")),
        }
    }
    rows.join("\n")
}

fn row(ran: &[Ran], line: &Line) -> Option<String> {
    let figure = figure(ran, line)?;
    let value = figure.value;
    let goal = line.goal.map_or_else(|| "–".to_owned(), |goal| format!("<= {}", written(goal, line.unit)));
    let verdict = match met(ran, line) {
        Some(true) => "met",
        Some(false) => "**not met**",
        None => "",
    };
    let mut notes = Vec::new();
    if value.count > 1 {
        notes.push(format!("n = {}", value.count));
    }
    if value.deviation > 0.0 {
        notes.push(format!("{:.0} to {:.0}, ±{:.1}", value.least, value.most, value.deviation));
    }
    notes.extend(Some(figure.note.clone()).filter(|note| !note.is_empty()));
    let measured = written(value.mean, line.unit);
    Some(format!(
        "| {} | {} | {goal} | {measured} | {verdict} | {} |",
        line.what,
        line.official,
        notes.join("; ")
    ))
}

fn spent(ran: &[Ran]) -> impl Iterator<Item = &Spent> {
    let all = ran.iter().filter_map(|(_, outcome)| match outcome {
        Ok(Outcome::Measured(_, spent)) => Some(spent),
        _ => None,
    });
    all.flatten()
}

/// Where bytes went, a column a workload.
fn fields(ran: &[Ran], table: &str) -> Vec<String> {
    let columns: Vec<&Spent> = spent(ran).filter(|spent| spent.table == table).collect();
    if columns.is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> = columns.iter().map(|spent| spent.column).collect();
    let mut rows = vec![
        format!("| {table} | field | {} |", names.join(" | ")),
        format!("|---|---|{}", "---|".repeat(columns.len())),
    ];
    let mut parts: Vec<(&str, &str)> = Vec::new();
    for part in columns.iter().flat_map(|spent| &spent.mean.parts) {
        let part = (part.of.as_str(), part.what.as_str());
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    // A field that only one workload has stands with the others of its message.
    let messages: Vec<&str> = parts.iter().map(|(of, _)| *of).collect();
    parts.sort_by_key(|(of, _)| messages.iter().position(|message| message == of));
    for (of, what) in parts {
        let cells = columns.iter().map(|spent| {
            let part = spent.mean.parts.iter().find(|part| part.of == of && part.what == what);
            part.map_or_else(|| "–".to_owned(), |part| format!("{:.1}", part.bytes))
        });
        rows.push(format!("| {of} | {what} | {} |", cells.collect::<Vec<_>>().join(" | ")));
    }
    let sums: Vec<String> = columns.iter().map(|spent| format!("{:.1}", spent.mean.bytes.mean)).collect();
    rows.push(format!("| all | | {} |", sums.join(" | ")));
    rows.push(String::new());
    rows
}

/// Everything, for programs.
pub(crate) fn write_json(ran: &[Ran], cycles: usize, file: &Path) -> Result<()> {
    let lines: Vec<Value> = LINES
        .iter()
        .filter_map(|line| {
            let figure = figure(ran, line)?;
            Some(json!({
                "id": line.id, "workload": line.what, "official": line.official, "goal": line.goal,
                "unit": format!("{:?}", line.unit), "measured": figure.value.json(), "met": met(ran, line),
                "note": figure.note,
            }))
        })
        .collect();
    let fields: Vec<Value> = spent(ran)
        .map(|Spent { table, column, mean }| {
            let parts: Vec<Value> =
                mean.parts.iter().map(|part| json!([part.of, part.what, part.bytes])).collect();
            json!({
                "table": table, "workload": column, "bytes": mean.bytes.json(), "up": mean.up,
                "packets": mean.packets, "parts": parts,
            })
        })
        .collect();
    let missing: Vec<Value> = ran
        .iter()
        .filter_map(|(name, outcome)| match outcome {
            Ok(Outcome::Skipped(why)) => Some(json!({ "workload": name, "skipped": why })),
            Err(error) => Some(json!({ "workload": name, "failed": format!("{error:#}") })),
            Ok(Outcome::Measured(..)) => None,
        })
        .collect();
    let all = json!({ "cycles": cycles, "lines": lines, "fields": fields, "missing": missing });
    Ok(fs::write(file, serde_json::to_vec_pretty(&all)?)?)
}
