//! The brokers of one link: which one is tried, when the next gets its turn, and the way back to the first.
//!
//! Invariant: the order is the operator's and a ring; each broker gets the same number of attempts.

use std::{collections::VecDeque, mem};

use tracing::info;

use crate::settings::{Broker, BrokerSettings};

pub(crate) struct Brokers {
    present: Broker,
    /// In the order in which they come next; the present one comes after the last.
    others: VecDeque<Broker>,
    /// How many steps the present one is from the first.
    position: usize,
    /// In a row, at the present one.
    failures: u16,
    patience: u16,
    /// How many have not had their turn since there was a good connection.
    fresh: usize,
}

/// What a lost connection means for the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Same,
    /// The next, which was not tried since there was a good connection.
    Fresh,
    /// The next, after all of them failed.
    Again,
}

impl Brokers {
    pub(crate) fn new(first: Broker, fallbacks: Vec<Broker>, settings: &BrokerSettings) -> Self {
        Self {
            present: first,
            fresh: fallbacks.len(),
            others: fallbacks.into(),
            position: 0,
            failures: 0,
            patience: settings.fallback_after_attempts,
        }
    }

    pub(crate) fn present(&mut self) -> &mut Broker {
        &mut self.present
    }

    pub(crate) fn address(&self) -> String {
        self.present.route.address()
    }

    /// The first broker, unless it is the present one.
    pub(crate) fn first(&self) -> Option<Broker> {
        let steps_back = self.position.checked_sub(1)?;
        self.others.iter().rev().nth(steps_back).cloned()
    }

    /// After a connection that was good, all is well with the present one.
    pub(crate) fn was_good(&mut self) {
        self.failures = 0;
        self.fresh = self.others.len();
    }

    /// After an attempt or a connection that failed.
    pub(crate) fn failed(&mut self) -> Choice {
        self.failures += 1;
        if self.others.is_empty() || self.failures < self.patience {
            self.failures = self.failures.min(self.patience);
            return Choice::Same;
        }
        self.failures = 0;
        self.step();
        info!(broker = self.address(), "the next broker is tried");
        match self.fresh.checked_sub(1) {
            Some(fewer) => {
                self.fresh = fewer;
                Choice::Fresh
            }
            None => Choice::Again,
        }
    }

    pub(crate) fn back_to_first(&mut self) {
        while self.position != 0 {
            self.step();
        }
        self.was_good();
    }

    fn step(&mut self) {
        if let Some(next) = self.others.pop_front() {
            self.others.push_back(mem::replace(&mut self.present, next));
            self.position = (self.position + 1) % (self.others.len() + 1);
        }
    }
}
