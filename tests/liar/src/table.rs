//! How often each lie was told in each flow, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use crate::flow::Flow;
use crate::lie::LIES;

/// What came of one lie in one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Told.
    pub(crate) told: u64,
    /// Came to nothing at once: the attestation ended within its interval.
    pub(crate) refused: u64,
    /// Cost a repeat or a new attempt.
    pub(crate) delayed: u64,
}

/// The table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    cells: BTreeMap<(usize, Flow), Counts>,
}

impl Table {
    pub(crate) fn cell(&mut self, lie: usize, flow: Flow) -> &mut Counts {
        self.cells.entry((lie, flow)).or_default()
    }

    pub(crate) fn told(&self, lie: usize, flow: Flow) -> u64 {
        self.cells.get(&(lie, flow)).map_or(0, |counts| counts.told)
    }

    /// All lies told.
    pub fn total(&self) -> u64 {
        self.cells.values().map(|counts| counts.told).sum()
    }

    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        for ((lie, flow), counts) in &other.cells {
            let cell = self.cell(*lie, *flow);
            cell.told += counts.told;
            cell.refused += counts.refused;
            cell.delayed += counts.delayed;
        }
    }

    /// Cells of the list that were told less often than `least`.
    pub fn below(&self, least: u64) -> Vec<(&'static str, Flow, u64)> {
        let cells = LIES.iter().enumerate().flat_map(|(lie, entry)| {
            entry.flows.iter().map(move |flow| (entry.name, *flow, self.told(lie, *flow)))
        });
        cells.filter(|(_, _, told)| *told < least).collect()
    }

    /// One line for each cell, for another process to read.
    pub fn to_lines(&self) -> String {
        let line = |((lie, flow), counts): (&(usize, Flow), &Counts)| {
            let name = LIES.get(*lie).map_or("?", |entry| entry.name);
            format!("{name}\t{flow}\t{}\t{}\t{}\n", counts.told, counts.refused, counts.delayed)
        };
        self.cells.iter().map(line).collect()
    }

    /// Reads [`Self::to_lines`]; lines that are none are left out.
    pub fn from_lines(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, flow, told, refused, delayed] = fields.as_slice() else { continue };
            let Some(lie) = LIES.iter().position(|lie| lie.name == *name) else { continue };
            let Some(flow) = Flow::ALL.into_iter().find(|known| known.name() == *flow) else { continue };
            let number = |text: &str| text.parse().unwrap_or(0);
            *table.cell(lie, flow) =
                Counts { told: number(told), refused: number(refused), delayed: number(delayed) };
        }
        table
    }
}

impl fmt::Display for Table {
    /// A row for each lie, a column for each flow: told/refused/delayed; `-` where a flow has nothing to lie about.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<36}", "told/refused/delayed")?;
        for flow in Flow::ALL {
            write!(f, " {flow:>14}")?;
        }
        writeln!(f)?;
        for (at, lie) in LIES.iter().enumerate() {
            write!(f, "{:<36}", lie.name)?;
            for flow in Flow::ALL {
                let counts = self.cells.get(&(at, flow)).copied().unwrap_or_default();
                let shown = if counts.told == 0 && !lie.flows.contains(&flow) {
                    "-".to_owned()
                } else {
                    format!("{}/{}/{}", counts.told, counts.refused, counts.delayed)
                };
                write!(f, " {shown:>14}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_written_is_read_again_and_adds_up() {
        let mut table = Table::default();
        *table.cell(0, Flow::Steady) = Counts { told: 3, refused: 1, delayed: 2 };
        let mut read = Table::from_lines(&table.to_lines());
        assert_eq!(read.told(0, Flow::Steady), 3);
        read.add(&table);
        assert_eq!(read.total(), 6);
        assert!(read.below(6).iter().all(|(name, flow, _)| (*name, *flow) != (LIES[0].name, Flow::Steady)));
    }
}
