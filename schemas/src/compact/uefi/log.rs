//! The binary form of the log: little endian throughout.

use crate::compact::bytes::Reader;

/// Hash algorithms a log names: eight at most (TCG registry lists fewer that firmware uses).
pub(super) const MAX_ALGORITHMS: u32 = 8;
/// Least bytes of an event: PCR, type, number of digests, size of the data.
pub(super) const EVENT_SIZE: usize = 16;

/// A log taken apart; whatever follows the last whole event is `rest`.
pub(super) struct Log<'a> {
    /// The first event whole: it says which algorithms the others have
    pub(super) first: &'a [u8],
    pub(super) events: Vec<Event<'a>>,
    pub(super) rest: &'a [u8],
}

/// One TCG_PCR_EVENT2.
pub(super) struct Event<'a> {
    pub(super) pcr: u32,
    pub(super) kind: u32,
    pub(super) digests: Vec<(u16, &'a [u8])>,
    pub(super) data: &'a [u8],
}

/// Algorithm ids with the sizes of their digests.
pub(super) struct Algorithms(Vec<(u16, usize)>);

impl Algorithms {
    pub(super) fn digest_size(&self, algorithm: u16) -> Option<usize> {
        self.0.iter().find(|(id, _)| *id == algorithm).map(|(_, size)| *size)
    }
}

/// Nothing for what is not such a log.
pub(super) fn parse(bytes: &[u8]) -> Option<Log<'_>> {
    let mut rest = Reader(bytes);
    let (first, algorithms) = first_event(&mut rest)?;
    let mut events = Vec::new();
    loop {
        let before = rest;
        if let Some(event) = event(&mut rest, &algorithms) {
            events.push(event);
        } else {
            return Some(Log { first, events, rest: before.0 });
        }
    }
}

/// A TCG_PCR_EVENT of SHA-1's time whose data is a TCG_EfiSpecIDEvent.
pub(super) fn first_event<'a>(rest: &mut Reader<'a>) -> Option<(&'a [u8], Algorithms)> {
    const SIGNATURE: &[u8] = b"Spec ID Event03\0";
    let whole = rest.0;
    rest.take(4 + 4 + 20).ok()?;
    let size = size(rest)?;
    let mut data = Reader(rest.take(size).ok()?);
    if data.take(16).ok()? != SIGNATURE {
        return None;
    }
    // platform class, versions, uintn size
    data.take(4 + 4).ok()?;
    let count = u32(&mut data).filter(|count| *count <= MAX_ALGORITHMS)?;
    let mut algorithms = Vec::new();
    for _ in 0..count {
        algorithms.push((u16(&mut data)?, usize::from(u16(&mut data)?)));
    }
    Some((whole.get(..whole.len() - rest.0.len())?, Algorithms(algorithms)))
}

fn event<'a>(rest: &mut Reader<'a>, algorithms: &Algorithms) -> Option<Event<'a>> {
    let (pcr, kind) = (u32(rest)?, u32(rest)?);
    let count = u32(rest).filter(|count| *count <= MAX_ALGORITHMS)?;
    let mut digests = Vec::new();
    for _ in 0..count {
        let algorithm = u16(rest)?;
        digests.push((algorithm, rest.take(algorithms.digest_size(algorithm)?).ok()?));
    }
    let size = size(rest)?;
    Some(Event { pcr, kind, digests, data: rest.take(size).ok()? })
}

fn u32(rest: &mut Reader) -> Option<u32> {
    Some(u32::from_le_bytes(rest.take(4).ok()?.try_into().ok()?))
}

fn u16(rest: &mut Reader) -> Option<u16> {
    Some(u16::from_le_bytes(rest.take(2).ok()?.try_into().ok()?))
}

fn size(rest: &mut Reader) -> Option<usize> {
    usize::try_from(u32(rest)?).ok()
}
