//! A log as columns, and back.

use super::log::{self, EVENT_SIZE, Log, MAX_ALGORITHMS};
use super::origin::{self, Origin};
use crate::compact::CompactError;
use crate::compact::bytes::{Reader, Restored, push_number, push_signed};

/// Most classes of events in a log; firmware, boot loaders and kernel have some thirty.
const MAX_CLASSES: usize = 1024;

/// What events of one kind have in common.
#[derive(PartialEq, Eq)]
struct Class {
    pcr: u32,
    kind: u32,
    algorithms: Vec<u16>,
}

pub(super) struct Columns<'a> {
    first: &'a [u8],
    classes: Vec<Class>,
    /// Class of each event
    events: Vec<u64>,
    /// Origin of each digest, with its number where it has one
    origins: Vec<u8>,
    sizes: Vec<u8>,
    data: Vec<&'a [u8]>,
    rest: &'a [u8],
    /// Digests that do not follow from anything
    pub(super) digests: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    /// Nothing for what is not a log. `known` are the digests of a reference.
    pub(super) fn of(bytes: &'a [u8], known: &[&[u8]]) -> Option<Self> {
        let Log { first, events, rest } = log::parse(bytes)?;
        let mut columns = Self {
            first,
            rest,
            classes: Vec::new(),
            events: Vec::with_capacity(events.len()),
            origins: Vec::new(),
            sizes: Vec::new(),
            data: Vec::with_capacity(events.len()),
            digests: Vec::new(),
        };
        let mut expected = 0;
        for event in events {
            let algorithms = event.digests.iter().map(|(algorithm, _)| *algorithm).collect();
            columns.class(Class { pcr: event.pcr, kind: event.kind, algorithms });
            for (algorithm, digest) in event.digests {
                columns.digest(algorithm, digest, event.data, known, &mut expected);
            }
            push_number(&mut columns.sizes, event.data.len() as u64);
            columns.data.push(event.data);
        }
        (columns.classes.len() <= MAX_CLASSES).then_some(columns)
    }

    fn class(&mut self, class: Class) {
        let place = self.classes.iter().position(|other| *other == class).unwrap_or_else(|| {
            self.classes.push(class);
            self.classes.len() - 1
        });
        self.events.push(place as u64);
    }

    fn digest(
        &mut self,
        algorithm: u16,
        digest: &'a [u8],
        data: &[u8],
        known: &[&[u8]],
        expected: &mut usize,
    ) {
        let is_it = |other: &&[u8]| *other == digest;
        if let Some(part) = origin::explained(algorithm, digest, data) {
            self.origins.push(Origin::Hash(part).to_byte());
        } else if let Some(place) = known.iter().position(is_it) {
            self.origins.push(Origin::Known.to_byte());
            let number = |place: usize| i64::try_from(place).unwrap_or_default();
            push_signed(&mut self.origins, number(place) - number(*expected));
            *expected = place + 1;
        } else if let Some(back) = self.digests.iter().rev().position(is_it) {
            self.origins.push(Origin::Repeated.to_byte());
            push_number(&mut self.origins, back as u64);
        } else {
            self.origins.push(Origin::New.to_byte());
            self.digests.push(digest);
        }
    }

    pub(super) fn stream(&self) -> Vec<u8> {
        let mut stream = self.first.to_vec();
        push_number(&mut stream, self.classes.len() as u64);
        for class in &self.classes {
            push_number(&mut stream, class.pcr.into());
            push_number(&mut stream, class.kind.into());
            push_number(&mut stream, class.algorithms.len() as u64);
            for algorithm in &class.algorithms {
                push_number(&mut stream, (*algorithm).into());
            }
        }
        push_number(&mut stream, self.events.len() as u64);
        for class in &self.events {
            push_number(&mut stream, *class);
        }
        stream.extend_from_slice(&self.origins);
        stream.extend_from_slice(&self.sizes);
        for data in &self.data {
            stream.extend_from_slice(data);
        }
        stream.extend_from_slice(self.rest);
        stream
    }
}

const NOT_A_LOG: CompactError = CompactError::Malformed("columns of something that is not a UEFI log");

/// The log, from its stream and the digests that stand apart.
pub(super) fn restore(
    stream: &[u8],
    mut digests: Reader,
    known: &[&[u8]],
    out: &mut Restored,
) -> Result<(), CompactError> {
    let mut rest = Reader(stream);
    let (first, algorithms) = log::first_event(&mut rest).ok_or(NOT_A_LOG)?;
    out.push(first)?;
    let classes = classes(&mut rest)?;
    let events = events(&mut rest, &classes, out)?;

    // four columns side by side: where each begins is known when the one before has been read
    let mut origins = rest;
    for _ in events.iter().flat_map(|class| &class.algorithms) {
        skip_origin(&mut rest)?;
    }
    let mut sizes = rest;
    for _ in &events {
        rest.number()?;
    }
    let mut seen = Vec::new();
    let mut expected = 0;
    for class in events {
        let size = sizes.size()?;
        let data = rest.take(size)?;
        out.push(&class.pcr.to_le_bytes())?;
        out.push(&class.kind.to_le_bytes())?;
        out.push(&length(class.algorithms.len())?)?;
        for algorithm in &class.algorithms {
            out.push(&algorithm.to_le_bytes())?;
            let size = algorithms.digest_size(*algorithm).ok_or(NOT_A_LOG)?;
            let before = out.bytes.len();
            match Origin::from_byte(origins.byte()?)? {
                Origin::Hash(part) => {
                    out.push(&origin::hash(*algorithm, part, data).ok_or(NOT_A_LOG)?)?;
                }
                Origin::New => {
                    let digest = digests.take(size)?;
                    seen.push(digest);
                    out.push(digest)?;
                }
                Origin::Repeated => {
                    let back = origins.size()?;
                    out.push(seen.iter().rev().nth(back).ok_or(NOT_A_LOG)?)?;
                }
                Origin::Known => {
                    let step = isize::try_from(origins.signed()?).map_err(|_| NOT_A_LOG)?;
                    let place = usize::checked_add_signed(expected, step).ok_or(NOT_A_LOG)?;
                    out.push(known.get(place).ok_or(NOT_A_LOG)?)?;
                    expected = place + 1;
                }
            }
            if out.bytes.len() - before != size {
                return Err(NOT_A_LOG);
            }
        }
        out.push(&length(data.len())?)?;
        out.push(data)?;
    }
    digests.finished()?;
    out.push(rest.0)
}

fn classes(rest: &mut Reader) -> Result<Vec<Class>, CompactError> {
    let count = at_most(MAX_CLASSES, rest.size()?)?;
    let mut classes = Vec::with_capacity(count);
    for _ in 0..count {
        let (pcr, kind) = (narrow(rest.number()?)?, narrow(rest.number()?)?);
        // a few, or the same data would be hashed over and over
        let count = at_most(MAX_ALGORITHMS as usize, rest.size()?)?;
        let mut algorithms = Vec::with_capacity(count);
        for _ in 0..count {
            algorithms.push(narrow(rest.number()?)?);
        }
        classes.push(Class { pcr, kind, algorithms });
    }
    Ok(classes)
}

fn events<'a>(
    rest: &mut Reader,
    classes: &'a [Class],
    out: &Restored,
) -> Result<Vec<&'a Class>, CompactError> {
    let count = at_most(out.limit() / EVENT_SIZE, rest.size()?)?;
    let mut events = Vec::with_capacity(count.min(rest.0.len()));
    for _ in 0..count {
        events.push(classes.get(rest.size()?).ok_or(NOT_A_LOG)?);
    }
    Ok(events)
}

fn skip_origin(rest: &mut Reader) -> Result<(), CompactError> {
    if matches!(Origin::from_byte(rest.byte()?)?, Origin::Repeated | Origin::Known) {
        rest.number()?;
    }
    Ok(())
}

fn at_most(most: usize, count: usize) -> Result<usize, CompactError> {
    if count <= most { Ok(count) } else { Err(NOT_A_LOG) }
}

fn narrow<N: TryFrom<u64>>(number: u64) -> Result<N, CompactError> {
    N::try_from(number).map_err(|_| NOT_A_LOG)
}

fn length(bytes: usize) -> Result<[u8; 4], CompactError> {
    u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| NOT_A_LOG)
}
