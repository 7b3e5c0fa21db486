//! What the viewer sees: redrawn in place on a terminal, plain lines elsewhere.
//!
//! Everything in it comes from the broker, as any relying party could read it. Bytes are those of the MQTT messages
//! (topic and payload), without TLS and TCP. No line is wider than 80 columns, and on a narrower terminal lines are
//! cut, for a line that the terminal wraps would break the redrawing.

use crate::TICK;
use crate::fleet::Fleet;
use anyhow::{Result, bail};
use keylime_mqtt_schemas::messages::{AttestationResult, Verdict};
use keylime_mqtt_tests::observe::Seen;
use keylime_mqtt_tests::world::World;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Without a terminal the whole table is printed this often.
const PRINT_EVERY: Duration = Duration::from_secs(5);

/// Columns for a reason, which stands indented below its device.
const REASON_WIDTH: usize = 76;

/// One device of the table.
struct Row {
    id: String,
    result: Option<(AttestationResult, Instant)>,
    passes: u64,
    sent: usize,
    received: usize,
    /// Bytes up to the first PASS: what enrolment and first attestation cost.
    first: Option<(usize, usize)>,
}

/// The table and its place in what the observer has seen.
pub(crate) struct Table<'a> {
    world: &'a World,
    rows: Vec<Row>,
    seen: usize,
    drawn: usize,
    terminal: bool,
    printed: Option<Instant>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(world: &'a World, fleet: &Fleet) -> Result<Self> {
        let rows = fleet.ids().map(|id| Row::new(id.to_owned())).collect();
        world.observer()?;
        let terminal = std::io::stdout().is_terminal();
        Ok(Self { world, rows, seen: 0, drawn: 0, terminal, printed: None })
    }

    /// Shows the table until `done`; an error after `bound`.
    pub(crate) fn watch_until(
        &mut self,
        bound: Duration,
        awaited: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + bound;
        self.drawn = 0;
        while !done(self) {
            if Instant::now() > deadline {
                bail!("in vain awaited within {bound:?}: {awaited}\n{}", self.world.tails());
            }
            std::thread::sleep(TICK);
            self.update()?;
        }
        self.draw(true)
    }

    /// Shows the table for a while.
    pub(crate) fn watch_for(&mut self, duration: Duration) -> Result<()> {
        let until = Instant::now() + duration;
        self.drawn = 0;
        while Instant::now() < until {
            std::thread::sleep(TICK);
            self.update()?;
        }
        Ok(())
    }

    pub(crate) fn verdict(&self, id: &str) -> Option<Verdict> {
        self.rows.iter().find(|row| row.id == id).and_then(Row::verdict)
    }

    pub(crate) fn all_pass(&self) -> bool {
        self.rows.iter().all(|row| row.verdict() == Some(Verdict::Pass))
    }

    pub(crate) fn all_pass_but(&self, id: &str) -> bool {
        self.rows.iter().filter(|row| row.id != id).all(|row| row.verdict() == Some(Verdict::Pass))
    }

    /// What an attestation cost, from the first PASS on.
    pub(crate) fn summary(&self) -> String {
        let lines = self.rows.iter().filter_map(|row| {
            let (first_up, first_down) = row.first?;
            let (up, down) = (row.sent - first_up, row.received - first_down);
            let rounds = usize::try_from(row.passes.saturating_sub(1)).ok().filter(|rounds| *rounds > 0)?;
            Some(format!(
                "{:<10} first PASS: {first_up} B up, {first_down} B down; then {} B up, {} B down an attestation",
                row.id,
                up / rounds,
                down / rounds
            ))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn update(&mut self) -> Result<()> {
        let news = self.world.observer()?.seen_from(self.seen);
        self.seen += news.len();
        let mut changed = false;
        for message in &news {
            for row in &mut self.rows {
                changed |= row.take(message);
            }
        }
        self.draw(changed)
    }

    fn draw(&mut self, changed: bool) -> Result<()> {
        let due = self.printed.is_none_or(|printed| printed.elapsed() >= PRINT_EVERY);
        if !self.terminal && !changed && !due {
            return Ok(());
        }
        self.printed = Some(Instant::now());
        let mut lines = vec![format!(
            "{:<10} {:<8} {:>8} {:>12} {:>12} {:>12}",
            "device", "result", "age", "attestations", "bytes up", "bytes down"
        )];
        lines.extend(self.rows.iter().flat_map(|row| row.lines(self.terminal)));
        let mut out = std::io::stdout().lock();
        if self.terminal && self.drawn > 0 {
            // Up to the first line, and clear from there.
            write!(out, "\x1b[{}A\x1b[J", self.drawn)?;
        }
        let text = lines.join("\n");
        if self.terminal {
            // Wrapping off, and on again.
            writeln!(out, "\x1b[?7l{text}\x1b[?7h")?;
        } else {
            writeln!(out, "{text}")?;
        }
        self.drawn = lines.len();
        Ok(out.flush()?)
    }
}

impl Row {
    fn new(id: String) -> Self {
        Self { id, result: None, passes: 0, sent: 0, received: 0, first: None }
    }

    fn verdict(&self) -> Option<Verdict> {
        self.result.as_ref().map(|(result, _)| result.verdict)
    }

    /// Takes a message in; whether the verdict is another than before.
    fn take(&mut self, message: &Seen) -> bool {
        let mut levels = message.topic.split('/').skip_while(|level| *level != self.id).skip(1);
        let bytes = message.topic.len() + message.payload.len();
        match levels.next() {
            Some("evidence" | "presence") => self.sent += bytes,
            Some("challenge") => self.received += bytes,
            Some("result") => return self.take_result(message),
            _ => {}
        }
        false
    }

    fn take_result(&mut self, message: &Seen) -> bool {
        let Some(result) = message.result() else { return false };
        let changed = self.verdict() != Some(result.verdict);
        if result.verdict == Verdict::Pass {
            self.passes += 1;
            self.first.get_or_insert((self.sent, self.received));
        }
        self.result = Some((result, message.at));
        changed
    }

    fn lines(&self, colour: bool) -> Vec<String> {
        let (word, age, count, reason) = match &self.result {
            None => ("-".to_owned(), "-".to_owned(), 0, ""),
            Some((result, at)) => (
                format!("{:?}", result.verdict).to_uppercase(),
                format!("{} s", at.elapsed().as_secs()),
                result.attestation_count.unwrap_or_default(),
                result.reason.as_deref().unwrap_or_default(),
            ),
        };
        let paint = match self.verdict() {
            Some(Verdict::Pass) if colour => ("\x1b[32m", "\x1b[0m"),
            Some(Verdict::Fail | Verdict::Timeout) if colour => ("\x1b[1;31m", "\x1b[0m"),
            _ => ("", ""),
        };
        let first = format!(
            "{:<10} {}{word:<8}{} {age:>8} {count:>12} {:>12} {:>12}",
            self.id, paint.0, paint.1, self.sent, self.received
        );
        std::iter::once(first).chain(wrapped(reason).into_iter().map(|line| format!("    {line}"))).collect()
    }
}

/// At the spaces, into lines of [`REASON_WIDTH`].
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= REASON_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
