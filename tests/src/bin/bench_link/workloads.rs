//! The workloads: each starts a world of its own, lets its device do one thing, and says what that cost.

use crate::phases::{Phases, Steady, whole};
use crate::reference::with_reference;
use crate::rig::{CALM, NO_PINGS, Plan, Rig, Trace, agent};
use crate::statistics::Statistics;
use crate::{sleeping, uefi};
use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::programs::{mean_length, sample};
use serde_json::json;
use std::time::Duration;

/// Above this the verifier parses its policy for seconds in each attestation: one pattern allows everything then.
const LISTED_MOST: usize = 2_000;
/// The bytes do not depend on it; the larger, the longer a run takes.
const QUOTE_INTERVAL: u32 = 2;
/// Cycles between two lines of progress.
const SAY_EVERY: usize = 25;

/// A figure for a line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) line: &'static str,
    pub(crate) value: Statistics,
    pub(crate) note: String,
}

impl Figure {
    pub(crate) fn new(line: &'static str, value: Statistics, note: impl Into<String>) -> Self {
        Self { line, value, note: note.into() }
    }

    pub(crate) fn bytes(line: &'static str, bytes: usize) -> Self {
        Self::new(line, Statistics::of(&[whole(bytes)]), "")
    }
}

/// Where bytes went: a column of one of the tables below the first.
#[derive(Clone, Debug)]
pub(crate) struct Spent {
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) mean: Steady,
}

/// Tables of where bytes went.
pub(crate) const CYCLES: &str = "bytes of a mean cycle";
pub(crate) const FIRST: &str = "bytes of a first attestation";
pub(crate) const WAKES: &str = "bytes of a mean wake, after connecting";

/// What came of a workload.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Measured(Vec<Figure>, Vec<Spent>),
    /// It needs something that agent or bridge does not have
    Skipped(String),
}

/// A workload by its name, as `--only` takes it, with the number of cycles asked for.
pub(crate) type Workload = (&'static str, fn(usize) -> Result<Outcome>);

/// In the order in which they are begun: what takes longest first.
pub(crate) const WORKLOADS: [Workload; 10] = [
    ("100000", |cycles| logs("100000", 100_000, cycles)),
    ("20000", |cycles| logs("20000", 20_000, cycles)),
    ("wake", sleeping::wake),
    ("ten", ten),
    ("1000", |cycles| logs("1000", 1_000, cycles)),
    ("quote", quote),
    ("20000-reference", |_| with_reference("20000-reference", "first-20000-reference", 20_000)),
    ("1000-reference", |_| with_reference("1000-reference", "first-1000-reference", 1_000)),
    ("idle", |_| sleeping::idle()),
    ("binary", |_| binary()),
];

impl Plan {
    /// A device that is asked for a quote and nothing else.
    pub(crate) fn quote_only(name: &'static str) -> Self {
        Self {
            name,
            quote_interval: QUOTE_INTERVAL,
            keep_alive: NO_PINGS,
            programs: Vec::new(),
            uefi: None,
            policies: Policies::quote_only(),
            agent: String::new(),
            bridge: Vec::new(),
        }
    }

    /// A device with both logs, which has run these programs.
    pub(crate) fn with_logs(name: &'static str, programs: Vec<String>) -> Result<Self> {
        let policies = Policies { runtime: Some(allowing(&programs)), ..Policies::measured_boot() };
        Ok(Self { programs, uefi: Some(uefi::device()?), policies, ..Self::quote_only(name) })
    }
}

fn allowing(programs: &[String]) -> serde_json::Value {
    let mut names: Vec<&str> = programs.iter().map(String::as_str).collect();
    let every = names.len() > LISTED_MOST;
    names.truncate(LISTED_MOST);
    let mut policy = runtime_policy(&names);
    if every && let Some(excludes) = policy.get_mut("excludes") {
        *excludes = json!(["boot_aggregate", "^/(usr|srv)/.*"]);
    }
    policy
}

/// When the device enrolled, when it came again, when it first passed.
pub(crate) struct Begun {
    pub(crate) enrolling: Duration,
    pub(crate) attesting: Duration,
    pub(crate) passed: Duration,
}

impl Rig {
    /// Enrols in a session of its own and attests in a second, so that the first attestation can be told apart.
    pub(crate) fn begin(&mut self) -> Result<Begun> {
        let enrolling = self.now();
        self.device.start_agent()?;
        self.world.await_registration(&self.device)?;
        eventually("the device is ready", &self.world.scratch.logs(), || {
            Ok(self.messages()?.iter().any(|message| message.kind == "Ready").then_some(()))
        })?;
        self.device.stop_agent()?;
        self.world.enrol(&self.device, &self.plan.policies)?;
        let attesting = self.now();
        self.device.start_agent()?;
        let passed = self.passes_after(attesting)?;
        self.progress("passed for the first time");
        Ok(Begun { enrolling, attesting, passed })
    }

    /// Lets that many cycles pass; before each, `between` may do something to the device.
    fn cycles(
        &mut self,
        count: usize,
        mut between: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<Cycles> {
        let mut passed = self.passes_after(self.now())?;
        std::thread::sleep(CALM);
        let from = self.now();
        let before = (self.agent_cpu()?, self.bridge_cpu()?, self.device.swtpm().commands());
        for cycle in 0..count {
            between(self, cycle)?;
            passed = self.passes_after(passed)?;
            if (cycle + 1) % SAY_EVERY == 0 {
                self.progress(&format!("{} of {count} cycles", cycle + 1));
            }
        }
        std::thread::sleep(CALM);
        let after = (self.agent_cpu()?, self.bridge_cpu()?, self.device.swtpm().commands());
        self.await_challenges(from, count + 1)?;
        Ok(Cycles {
            from,
            count,
            agent: milliseconds(after.0.saturating_sub(before.0), count),
            bridge: milliseconds(after.1.saturating_sub(before.1), count),
            commands: Statistics::shared(whole(usize::try_from(after.2 - before.2)?), count),
            memory: self.agent_memory()?,
        })
    }
}

/// What cycles cost besides bytes.
struct Cycles {
    from: Duration,
    count: usize,
    agent: Statistics,
    bridge: Statistics,
    commands: Statistics,
    memory: (u64, u64),
}

impl Cycles {
    fn steady(&self, trace: &Trace) -> Result<Steady> {
        let mut cuts = trace.challenges(self.from)?;
        cuts.truncate(self.count + 1);
        trace.steady(&cuts)
    }
}

fn milliseconds(total: Duration, count: usize) -> Statistics {
    Statistics::shared(total.as_secs_f64() * 1000.0, count)
}

impl Begun {
    /// Cut from the trace.
    pub(crate) fn phases(&self, trace: &Trace) -> Result<Phases> {
        let challenges = trace.challenges(self.passed)?;
        let next = challenges.first().context("no challenge after the first PASS")?;
        trace.phases(self.enrolling, self.attesting, *next)
    }
}

fn quote(cycles: usize) -> Result<Outcome> {
    let mut rig = Rig::build(Plan::quote_only("quote"))?;
    let begun = rig.begin()?;
    let ran = rig.cycles(cycles, |_, _| Ok(()))?;
    let trace = rig.finish()?;
    let phases = begun.phases(&trace)?;
    let steady = ran.steady(&trace)?;
    let figures = vec![
        Figure::new("steady-quote", steady.bytes, direction(&steady)),
        Figure::new("bridge-cpu-quote", ran.bridge, ""),
        Figure::bytes("connect", phases.connect),
        Figure::bytes("enrolment", phases.enrolment),
        Figure::new("first-quote", phases.first.bytes, ""),
    ];
    Ok(Outcome::Measured(figures, vec![Spent { table: CYCLES, column: "quote", mean: steady }]))
}

/// Both logs, of one of the three sizes that lines speak of.
fn logs(name: &'static str, entries: usize, cycles: usize) -> Result<Outcome> {
    let mut rig = Rig::build(Plan::with_logs(name, sample(entries - 1)?)?)?;
    rig.progress(&format!(
        "{entries} IMA entries, names of {} characters in the mean; a UEFI log of {} bytes",
        mean_length(&rig.plan.programs),
        rig.plan.uefi.as_ref().map_or(0, |log| log.bytes().len())
    ));
    let begun = rig.begin()?;
    let ran = rig.cycles(cycles, |_, _| Ok(()))?;
    let trace = rig.finish()?;
    let phases = begun.phases(&trace)?;
    let steady = ran.steady(&trace)?;
    let [first, cpu, memory] = match entries {
        1_000 => ["first-1000", "cpu-1000", "memory-1000"],
        20_000 => ["first-20000", "cpu-20000", "memory-20000"],
        _ => ["first-100000", "cpu-100000", "memory-100000"],
    };
    let (peak, own) = ran.memory;
    let mut figures = vec![
        Figure::new(first, phases.first.bytes, ""),
        Figure::new(cpu, ran.agent, ""),
        Figure::new(
            memory,
            Statistics::of(&[bytes(peak)?]),
            format!("the peak; {:.1} MB without files", bytes(own)? / 1e6),
        ),
    ];
    match entries {
        1_000 => figures.extend([
            Figure::new("steady-logs", steady.bytes, direction(&steady)),
            Figure::new("tpm-commands", ran.commands, ""),
            Figure::new("bridge-cpu-logs", ran.bridge, ""),
        ]),
        20_000 => {}
        _ => figures.push(Figure::new("steady-100000", steady.bytes, direction(&steady))),
    }
    let mut spent = vec![Spent { table: FIRST, column: name, mean: phases.first }];
    if entries == 1_000 {
        spent.push(Spent { table: CYCLES, column: name, mean: steady });
    }
    Ok(Outcome::Measured(figures, spent))
}

/// Ten programs that run for the first time between any two attestations.
fn ten(cycles: usize) -> Result<Outcome> {
    const NEW: usize = 10;
    let mut plan = Plan::with_logs("ten", sample(999)?)?;
    let all = sample(plan.programs.len() + NEW * cycles)?;
    plan.policies.runtime = Some(allowing(&all));
    let mut rig = Rig::build(plan)?;
    rig.begin()?;
    let fresh = all.get(rig.plan.programs.len()..).unwrap_or_default().to_vec();
    let ran = rig.cycles(cycles, |rig, cycle| {
        let new = fresh.get(NEW * cycle..NEW * (cycle + 1)).unwrap_or_default();
        rig.device.run_programs(new)
    })?;
    let trace = rig.finish()?;
    let steady = ran.steady(&trace)?;
    let figures = vec![Figure::new("steady-ten", steady.bytes, direction(&steady))];
    Ok(Outcome::Measured(figures, vec![Spent { table: CYCLES, column: "ten", mean: steady }]))
}

fn binary() -> Result<Outcome> {
    let size = std::fs::metadata(agent()?)?.len();
    ensure!(!cfg!(debug_assertions), "this is a debug build: `make bench-link` measures release builds");
    Ok(Outcome::Measured(vec![Figure::new("binary", Statistics::of(&[bytes(size)?]), "")], Vec::new()))
}

fn direction(steady: &Steady) -> String {
    format!("{:.0} up, {:.0} down, {:.1} packets", steady.up, steady.bytes.mean - steady.up, steady.packets)
}

fn bytes(count: u64) -> Result<f64> {
    Ok(whole(usize::try_from(count)?))
}
