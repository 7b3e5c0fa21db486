//! What a doctor found, step by step, for a person and for a program.
//!
//! The form for programs is stable: steps keep their names, fields are only ever added.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Of the form for programs; another number when a field changes its meaning or goes.
const VERSION: u8 = 1;
/// Exit code when all is well.
const ALL_WELL: u8 = 0;
/// Exit code when something failed or was found.
const NOT_WELL: u8 = 1;

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It works.
    Ok,
    /// It works, and an operator should still act.
    Finding,
    /// It does not work.
    Failed,
    /// Nothing is known of it.
    NotChecked,
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ok => "ok",
            Self::Finding => "FINDING",
            Self::Failed => "FAILED",
            Self::NotChecked => "not checked",
        })
    }
}

/// One step of the data's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// A word that programs can go by.
    pub step: &'static str,
    /// Of what: a broker, a file, a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// What became of it.
    pub state: State,
    /// What was seen.
    pub says: String,
    /// What to do.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Step {
    /// A step that works.
    pub fn ok(step: &'static str, says: impl Into<String>) -> Self {
        Self { step, of: None, state: State::Ok, says: says.into(), remedy: None }
    }

    /// A step that works, with something to mend.
    pub fn finding(step: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Finding, remedy: Some(remedy.into()), ..Self::ok(step, says) }
    }

    /// A step that does not work.
    pub fn failed(step: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Failed, remedy: Some(remedy.into()), ..Self::ok(step, says) }
    }

    /// A step that failed with an error whose words say what to do.
    pub fn error(step: &'static str, error: &impl fmt::Display) -> Self {
        Self { state: State::Failed, ..Self::ok(step, error.to_string()) }
    }

    /// A step of which nothing is known, and why.
    pub fn not_checked(step: &'static str, why: impl Into<String>) -> Self {
        Self { state: State::NotChecked, ..Self::ok(step, why) }
    }

    /// Names what the step is of.
    #[must_use]
    pub fn of(self, what: impl Into<String>) -> Self {
        Self { of: Some(what.into()), ..self }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, of, state, says, remedy } = self;
        write!(out, "{:<12} {step}", state.to_string())?;
        if let Some(of) = of {
            write!(out, " ({of})")?;
        }
        write!(out, ": {says}")?;
        match remedy {
            Some(remedy) => write!(out, "\n{:<12} -> {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// All steps of one run.
#[derive(Debug)]
pub struct Report {
    program: &'static str,
    steps: Vec<Step>,
    shown: Option<fn(&Step)>,
}

impl Report {
    /// Of a program; `shown` is called with each step as soon as it is known, for links on which steps take time.
    pub fn new(program: &'static str, shown: Option<fn(&Step)>) -> Self {
        Self { program, steps: Vec::new(), shown }
    }

    /// One more step.
    pub fn add(&mut self, step: Step) {
        if let Some(shown) = self.shown {
            shown(&step);
        }
        self.steps.push(step);
    }

    /// The steps up to now.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether nothing failed and nothing was found.
    pub fn is_well(&self) -> bool {
        !self.steps.iter().any(|step| matches!(step.state, State::Failed | State::Finding))
    }

    /// 0 when all is well, else 1.
    pub fn exit_code(&self) -> u8 {
        if self.is_well() { ALL_WELL } else { NOT_WELL }
    }

    /// One line for the end: how many steps are in which state.
    pub fn summary(&self) -> String {
        let count = |state| self.steps.iter().filter(|step| step.state == state).count();
        format!(
            "{} ok, {} failed, {} found, {} not checked",
            count(State::Ok),
            count(State::Failed),
            count(State::Finding),
            count(State::NotChecked)
        )
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut form = serializer.serialize_struct("Report", 4)?;
        form.serialize_field("version", &VERSION)?;
        form.serialize_field("program", self.program)?;
        form.serialize_field("well", &self.is_well())?;
        form.serialize_field("steps", &self.steps)?;
        form.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_for_programs_is_this_one() {
        let mut report = Report::new("a-doctor", None);
        report.add(Step::ok("name", "an address").of("b:1"));
        assert_eq!((report.is_well(), report.exit_code()), (true, 0));
        report.add(Step::not_checked("login", "waits for tls"));
        assert_eq!(report.exit_code(), 0, "what was not checked did not fail");
        report.add(Step::finding("acl", "too wide", "make it narrow"));
        assert_eq!(report.exit_code(), 1);
        report.add(Step::failed("tls", "no", "do"));
        let json = serde_json::json!({
            "version": 1,
            "program": "a-doctor",
            "well": false,
            "steps": [
                {"step": "name", "of": "b:1", "state": "ok", "says": "an address"},
                {"step": "login", "state": "not-checked", "says": "waits for tls"},
                {"step": "acl", "state": "finding", "says": "too wide", "do": "make it narrow"},
                {"step": "tls", "state": "failed", "says": "no", "do": "do"},
            ],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), json);
        assert_eq!(report.summary(), "1 ok, 1 failed, 1 found, 1 not checked");
    }
}
