//! `make bench-link`: what an attestation costs on the link, counted outside the programs.
//!
//! Real parts: Keylime, swtpm, mosquitto with TLS client certificates, agent and bridge as released. The device's
//! agent lives in a network namespace ([`link`]); tcpdump records every packet between it and the broker
//! ([`capture`]); an observer beside the broker records what was said ([`messages`]). From both, [`phases`] tells
//! what each byte was for, and [`report`] holds it against [`goals`].
//!
//! Ctrl-C ends everything, by the guard of [`keylime_mqtt_tests::process`].

// Tables for a person and progress lines are what this program is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod capture;
mod goals;
mod link;
mod messages;
mod phases;
mod reference;
mod report;
mod rig;
mod sleeping;
mod statistics;
mod uefi;
mod workloads;

use anyhow::{Context, Result};
use clap::Parser;
use keylime_mqtt_tests::scratch::Scratch;
use link::Link;
use report::Ran;
use std::cmp::Reverse;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use workloads::{WORKLOADS, Workload};

/// What an attestation costs on the link.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these workloads; may be given more than once
    #[arg(long, value_name = "NAME", value_parser = WORKLOADS.map(|(name, _)| name))]
    only: Vec<String>,
    /// Cycles of each steady workload
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..))]
    cycles: u16,
    /// Workloads at a time; each has a Keylime of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Where the figures go, as JSON
    #[arg(long, default_value = ".run/bench-link.json")]
    json: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    end_on_ctrl_c()?;
    Link::make(&Scratch::new()?).context("nothing can be counted without a link")?;
    let wanted: Vec<Workload> = WORKLOADS
        .into_iter()
        .filter(|(name, _)| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name))
        .collect();
    let ran = run(wanted, arguments.cycles.into(), arguments.jobs);
    println!("{}", report::tables(&ran));
    if let Some(dir) = arguments.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    report::write_json(&ran, arguments.cycles.into(), &arguments.json)?;
    println!("{}", arguments.json.display());
    let failed = ran.iter().any(|(_, outcome)| outcome.is_err());
    if !report::all_met(&ran) {
        println!("some goals are not met");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs them, `jobs` at a time.
fn run(wanted: Vec<Workload>, cycles: usize, jobs: u8) -> Vec<Ran> {
    let queue = Mutex::new(wanted.into_iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((name, workload)) = next else { return };
                    eprintln!("{name}: begins");
                    let outcome = workload(cycles);
                    match &outcome {
                        Ok(_) => eprintln!("{name}: done"),
                        Err(error) => eprintln!("{name}: FAILED: {error:#}"),
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((name, outcome));
                }
            });
        }
    });
    let mut done: Vec<Ran> = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    // What is begun first is the largest, and is shown last.
    done.sort_by_key(|(name, _)| Reverse(WORKLOADS.iter().position(|(other, _)| other == name)));
    done
}

/// On Ctrl-C this process ends at once, and the guard ends all others and removes namespaces and files.
fn end_on_ctrl_c() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            eprintln!("\nending everything");
            std::process::exit(130);
        }
    });
    Ok(())
}
