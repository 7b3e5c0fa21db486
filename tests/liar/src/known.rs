//! What a liar knows: all that it has seen, and how to sign with a key of its own.

use std::collections::{BTreeMap, VecDeque};

use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::messages::limits::MAX_TICKET;
use keylime_mqtt_schemas::messages::{Bounded, Digest, Down, PcrValues, Question, Signed, Up};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::liar::Direction;

/// Messages remembered per device and direction.
const REMEMBERED: usize = 64;
/// Tickets remembered per device.
const TICKETS: usize = 8;

/// What the liar's own key signs.
#[derive(Debug, Clone, Copy)]
pub enum Stamp<'a> {
    /// A statement: a quote of no PCRs over this digest.
    Statement(&'a Digest),
    /// A certification of the key by itself over this nonce.
    Certify(&'a [u8]),
    /// A quote of these values over this nonce.
    Quote(&'a [u8], &'a PcrValues),
}

/// A key of the liar's own, with which it can say whatever a TPM can.
pub trait Forger {
    /// TPM2B_PUBLIC.
    fn public(&self) -> Vec<u8>;
    /// Signs as a TPM would.
    fn sign(&self, stamp: Stamp<'_>) -> Signed;
}

/// What was seen of one device.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Vec<u8>>,
    presence: VecDeque<Vec<u8>>,
    /// The same from before the last restart of either side.
    former_up: VecDeque<Vec<u8>>,
    former_down: VecDeque<Vec<u8>>,
    pub(crate) tickets: VecDeque<Bounded<MAX_TICKET>>,
    pub(crate) last: BTreeMap<&'static str, Up>,
    /// Nonces of the last challenge and the last `Prove`.
    pub(crate) challenge: Option<keylime_mqtt_schemas::messages::Challenge>,
    pub(crate) prove: Option<keylime_mqtt_schemas::messages::Prove>,
}

impl Memory {
    pub(crate) fn restarted(&mut self) {
        self.former_up = std::mem::take(&mut self.up);
        self.former_down = std::mem::take(&mut self.down);
    }

    pub(crate) fn saw_up(&mut self, payload: &[u8], up: Option<&Up>) {
        remember(&mut self.up, payload.to_vec(), REMEMBERED);
        if let Some(up) = up {
            self.last.insert(up.kind(), up.clone());
        }
    }

    pub(crate) fn saw_presence(&mut self, payload: &[u8]) {
        remember(&mut self.presence, payload.to_vec(), REMEMBERED);
    }

    pub(crate) fn past(&self, direction: Direction) -> &VecDeque<Vec<u8>> {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
            Direction::Presence => &self.presence,
        }
    }

    /// From before the last restart; a presence is the same then.
    pub(crate) fn former(&self, direction: Direction) -> Option<&VecDeque<Vec<u8>>> {
        match direction {
            Direction::Up => Some(&self.former_up),
            Direction::Down => Some(&self.former_down),
            Direction::Presence => None,
        }
    }

    pub(crate) fn saw_down(&mut self, payload: &[u8], down: Option<&Down>) {
        remember(&mut self.down, payload.to_vec(), REMEMBERED);
        match down.map(|down| &down.question) {
            Some(Question::Challenge(challenge)) => {
                if let Some(ticket) = &challenge.ticket
                    && self.tickets.back() != Some(ticket)
                {
                    remember(&mut self.tickets, ticket.clone(), TICKETS);
                }
                self.challenge = Some(challenge.clone());
            }
            Some(Question::Prove(prove)) => self.prove = Some(*prove),
            _ => {}
        }
    }
}

fn remember<T>(queue: &mut VecDeque<T>, one: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(one);
}

/// What an edit has to hand.
pub(crate) struct Known<'a> {
    pub(crate) rng: &'a mut StdRng,
    pub(crate) id: AgentId,
    pub(crate) own: &'a Memory,
    pub(crate) others: Vec<&'a Memory>,
    pub(crate) forger: &'a dyn Forger,
}

impl Known<'_> {
    /// The last message of this kind that another device sent.
    pub(crate) fn others_last(&mut self, kind: &str) -> Option<Up> {
        let said: Vec<&Up> = self.others.iter().filter_map(|memory| memory.last.get(kind)).collect();
        said.choose(self.rng).map(|up| (*up).clone())
    }

    pub(crate) fn others_ticket(&mut self) -> Option<Bounded<MAX_TICKET>> {
        let tickets: Vec<_> = self.others.iter().filter_map(|memory| memory.tickets.back()).collect();
        tickets.choose(self.rng).map(|ticket| (*ticket).clone())
    }

    /// A ticket of this device that a newer one has taken the place of.
    pub(crate) fn superseded_ticket(&self) -> Option<Bounded<MAX_TICKET>> {
        self.own.tickets.iter().rev().nth(1).cloned()
    }

    /// The same with one bit turned.
    pub(crate) fn flipped<const MAX: usize>(&mut self, bytes: &Bounded<MAX>) -> Bounded<MAX> {
        let mut changed = bytes.as_slice().to_vec();
        flip(&mut changed, self.rng);
        // as long as it was
        changed.try_into().unwrap_or_default()
    }

    pub(crate) fn flipped_array<const N: usize>(&mut self, bytes: &[u8; N]) -> [u8; N] {
        let mut changed = *bytes;
        flip(&mut changed, self.rng);
        changed
    }
}

/// Turns one bit.
pub(crate) fn flip(bytes: &mut [u8], rng: &mut StdRng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.random_range(0..bytes.len());
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.random_range(0..8);
    }
}
