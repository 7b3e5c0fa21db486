//! What the run shows: a table for people, JSON for machines, and whether all of it holds.

use crate::plan::{MOMENTS, Moment, PARTS, Part};
use crate::recovery::{Apart, Back};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// One strike or fault and what came of it.
pub(crate) struct Entry {
    pub(crate) parts: Vec<Part>,
    /// What happened, where it was no kill
    pub(crate) fault: Option<String>,
    pub(crate) moment: Moment,
    /// Whether it fell into the moment
    pub(crate) hit: bool,
    pub(crate) sessions: usize,
    pub(crate) backs: Vec<Back>,
    /// What a device may take: two intervals and the connection
    pub(crate) bound: Duration,
}

/// All that was measured.
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// Whether what takes many strikes and an idle machine is told and not judged
    pub(crate) short: bool,
    /// From PASS to PASS where nothing is broken
    pub(crate) interval: Duration,
    pub(crate) entries: Vec<Entry>,
    /// What was left out, and figures that stand alone
    pub(crate) notes: Vec<String>,
    /// False FAILs, lost devices, what was left behind
    pub(crate) violations: Vec<String>,
    /// Claims and whether they held
    pub(crate) claims: Vec<(String, bool)>,
}

impl Report {
    fn kills(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.fault.is_none())
    }

    pub(crate) fn kills_of(&self, part: Part) -> usize {
        self.kills().filter(|entry| entry.parts.contains(&part)).count()
    }

    pub(crate) fn kill_count(&self) -> usize {
        self.kills().map(|entry| entry.parts.len()).sum()
    }

    pub(crate) fn at_named_points(&self) -> usize {
        self.kills().filter(|entry| entry.hit).map(|entry| entry.parts.len()).sum()
    }

    /// Devices that took longer than their bound.
    pub(crate) fn late(&self) -> Vec<String> {
        let mut late = Vec::new();
        for entry in &self.entries {
            for back in entry.backs.iter().filter(|back| back.apart.is_none() && back.after > entry.bound) {
                late.push(format!(
                    "device {} after {}: {:.1} s, allowed {:.1} s",
                    back.device,
                    entry.name(),
                    back.after.as_secs_f64(),
                    entry.bound.as_secs_f64()
                ));
            }
        }
        late
    }

    /// A claim that many strikes on an idle machine can show.
    pub(crate) fn measured(&mut self, claim: String, holds: bool) {
        if self.short {
            self.notes.push(format!("not judged: {claim}"));
        } else {
            self.claims.push((claim, holds));
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.violations.is_empty() && self.claims.iter().all(|(_, held)| *held)
    }

    fn intervals(&self, after: Duration) -> f64 {
        after.as_secs_f64() / self.interval.as_secs_f64()
    }

    fn figures(&self, entries: &[&Entry]) -> (usize, f64, f64, BTreeMap<Apart, usize>) {
        let mut times: Vec<Duration> = Vec::new();
        let mut apart: BTreeMap<Apart, usize> = BTreeMap::new();
        for back in entries.iter().flat_map(|entry| &entry.backs) {
            match back.apart {
                None => times.push(back.after),
                Some(why) => *apart.entry(why).or_default() += 1,
            }
        }
        times.sort();
        let median = times.get(times.len() / 2).map_or(0.0, |after| self.intervals(*after));
        let longest = times.last().map_or(0.0, |after| self.intervals(*after));
        (times.len(), median, longest, apart)
    }

    pub(crate) fn table(&self) -> String {
        let mut rows = vec![format!(
            "{:<10} {:<22} {:>5} {:>7} {:>14} {:>11} {:>9}",
            "part", "killed at", "kills", "returns", "back: median", "max (intv.)", "apart"
        )];
        for part in PARTS {
            for moment in MOMENTS {
                let falls = |entry: &&Entry| {
                    let at = if entry.hit { entry.moment } else { Moment::AnyTime };
                    entry.parts.contains(&part) && at == moment
                };
                let entries: Vec<&Entry> = self.kills().filter(falls).collect();
                if entries.is_empty() {
                    continue;
                }
                let (returns, median, longest, apart) = self.figures(&entries);
                let apart: usize = apart.values().sum();
                let kills = entries.len();
                rows.push(format!(
                    "{part:<10} {moment:<22} {kills:>5} {returns:>7} {median:>14.2} {longest:>11.2} {apart:>9}"
                ));
            }
        }
        for entry in self.entries.iter().filter(|entry| entry.fault.is_some()) {
            let (returns, median, longest, apart) = self.figures(&[entry]);
            let apart: usize = apart.values().sum();
            let name = entry.name();
            rows.push(format!("{name:<38} {returns:>7} {median:>14.2} {longest:>11.2} {apart:>9}"));
        }
        let all: Vec<&Entry> = self.entries.iter().collect();
        let mut aparts: BTreeMap<Apart, Vec<f64>> = BTreeMap::new();
        for back in all.iter().flat_map(|entry| &entry.backs) {
            if let Some(why) = back.apart {
                aparts.entry(why).or_default().push(self.intervals(back.after));
            }
        }
        for (why, mut intervals) in aparts {
            intervals.sort_by(f64::total_cmp);
            let median = intervals.get(intervals.len() / 2).copied().unwrap_or_default();
            let longest = intervals.last().copied().unwrap_or_default();
            rows.push(format!(
                "apart: {why}: {} times; back {median:.2} (median), {longest:.2} (max) intervals after that",
                intervals.len()
            ));
        }
        rows.extend(self.notes.iter().cloned());
        rows.extend(self.violations.iter().map(|violation| format!("VIOLATED: {violation}")));
        for (claim, held) in &self.claims {
            rows.push(format!("{} {claim}", if *held { "holds:" } else { "FAILS:" }));
        }
        rows.join("\n")
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let entries: Vec<Value> = self.entries.iter().map(Entry::json).collect();
        let claims: Vec<Value> =
            self.claims.iter().map(|(claim, held)| json!({ "claim": claim, "holds": held })).collect();
        let report = json!({
            "seed": self.seed,
            "interval_seconds": self.interval.as_secs_f64(),
            "kills": self.kill_count(),
            "at_named_points": self.at_named_points(),
            "entries": entries,
            "notes": self.notes,
            "violations": self.violations,
            "claims": claims,
        });
        Ok(fs::write(file, serde_json::to_vec_pretty(&report)?)?)
    }
}

impl Entry {
    pub(crate) fn name(&self) -> String {
        let parts = || self.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        self.fault.clone().unwrap_or_else(|| format!("{} killed at {}", parts(), self.moment))
    }

    fn json(&self) -> Value {
        let back = |back: &Back| {
            json!({
                "device": back.device,
                "seconds": back.after.as_secs_f64(),
                "apart": back.apart.map(|why| why.to_string()),
            })
        };
        json!({
            "what": self.name(),
            "hit": self.hit,
            "sessions": self.sessions,
            "bound_seconds": self.bound.as_secs_f64(),
            "back": self.backs.iter().map(back).collect::<Vec<_>>(),
        })
    }
}
