//! UEFI event logs (TCG PC Client Platform Firmware Profile, 10.2: crypto agile) in columns.
//!
//! Most digests in such a log are hashes of the event's own data, or of a known part of it, and are recomputed. The others
//! stand apart, as they do not compress. Event data goes through zstd with a dictionary of what firmware, shim and GRUB
//! measure on most machines; certificates above all. With a reference, what its log holds too costs little.
//!
//! ```text
//! packed   form (1 byte)  [reference tag (2)]  stream length  stream (a zstd frame, or as it is)  digests
//! stream   first event  number of classes { PCR, type, algorithms }  number of events
//!          class of each event   origin of each digest   size of each event's data   the data   what follows the log
//! ```
//!
//! The packer restores what it packed; a log that does not come out as it was goes as it is.

mod columns;
mod log;
mod origin;

use super::bytes::{Reader, Restored, push_number};
use super::{CompactError, Reference, frame};
use columns::Columns;

/// The log as it is.
const PLAIN: u8 = 0;
/// The log in a zstd frame.
const SQUEEZED: u8 = 1;
/// Columns, their stream in a zstd frame.
const SQUEEZED_COLUMNS: u8 = 2;
/// Added to the form when a reference's log was used.
const REFERENCED: u8 = 4;

/// Event data as machines measure it, the likeliest last: Microsoft's certificates in KEK and db and Debian's as shim
/// measures it, boot variables, device paths, GRUB's commands. Made from a recorded log of OVMF, shim and GRUB.
const EVENTS: &[u8] = include_bytes!("events.bin");

/// Packs a UEFI log as the kernel gives it (`binary_bios_measurements`); any bytes are taken.
///
/// Packed bytes are never more than one byte longer than the log.
pub fn pack_uefi(log: &[u8], reference: Option<&Reference>) -> Vec<u8> {
    let known = reference.filter(|reference| !reference.uefi_log().is_empty());
    let restores = |packed: &Vec<u8>| {
        packed.len() <= log.len() && unpack_uefi(packed, log.len(), known).is_ok_and(|bytes| bytes == log)
    };
    let in_columns = in_columns(log, known).filter(restores);
    let packed = in_columns.or_else(|| squeezed(log, known).filter(restores));
    packed.unwrap_or_else(|| [&[PLAIN], log].concat())
}

/// How much of a log is a UEFI event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UefiShape {
    /// Whole events.
    pub events: usize,
    /// Bytes behind the last of them.
    pub left: usize,
}

/// Takes a UEFI log apart and says how far that went; nothing for what does not begin as one.
pub fn shape_of_uefi(log: &[u8]) -> Option<UefiShape> {
    let log = log::parse(log)?;
    Some(UefiShape { events: log.events.len(), left: log.rest.len() })
}

/// What [`pack_uefi`] was given, if that is exactly `size` bytes.
pub fn unpack_uefi(
    packed: &[u8],
    size: usize,
    reference: Option<&Reference>,
) -> Result<Vec<u8>, CompactError> {
    let mut packed = Reader(packed);
    let form = packed.byte()?;
    let (form, reference) = match form.checked_sub(REFERENCED) {
        Some(form) => {
            let tag = packed.take(2)?;
            let named = reference.filter(|reference| reference.tag() == tag);
            (form, Some(named.ok_or(CompactError::UnknownReference)?))
        }
        None => (form, None),
    };
    let known = Known::of(reference);
    let log = match form {
        PLAIN if packed.0.len() > size => return Err(CompactError::TooLarge(size)),
        PLAIN => packed.0.to_vec(),
        SQUEEZED => frame::expand(packed.0, &known.dictionary, size)?,
        SQUEEZED_COLUMNS => {
            let length = packed.size()?;
            let stream = frame::expand(packed.take(length)?, &known.dictionary, size)?;
            let mut out = Restored::new(size);
            columns::restore(&stream, packed, &known.digests, &mut out)?;
            out.bytes
        }
        _ => return Err(CompactError::Malformed("an unknown form")),
    };
    if log.len() == size { Ok(log) } else { Err(CompactError::Malformed("a log of another size")) }
}

/// What both sides know when a log is packed.
struct Known<'a> {
    /// The dictionary, and the columns of the reference's log
    dictionary: Vec<u8>,
    /// Digests in the reference's log that cannot be recomputed
    digests: Vec<&'a [u8]>,
}

impl<'a> Known<'a> {
    fn of(reference: Option<&'a Reference>) -> Self {
        let log = reference.map(Reference::uefi_log).unwrap_or_default();
        match Columns::of(log, &[]) {
            Some(columns) => {
                Self { dictionary: [EVENTS, &columns.stream()].concat(), digests: columns.digests }
            }
            None => Self { dictionary: [EVENTS, log].concat(), digests: Vec::new() },
        }
    }
}

fn form(form: u8, reference: Option<&Reference>) -> Vec<u8> {
    match reference {
        Some(reference) => [&[form + REFERENCED], reference.tag().as_slice()].concat(),
        None => vec![form],
    }
}

fn squeezed(log: &[u8], reference: Option<&Reference>) -> Option<Vec<u8>> {
    let frame = frame::compress(log, &Known::of(reference).dictionary)?;
    Some([form(SQUEEZED, reference), frame].concat())
}

fn in_columns(log: &[u8], reference: Option<&Reference>) -> Option<Vec<u8>> {
    let known = Known::of(reference);
    let columns = Columns::of(log, &known.digests)?;
    let stream = columns.stream();
    // the receiver takes no stream that is longer than the log
    if stream.len() > log.len() {
        return None;
    }
    let frame = frame::compress(&stream, &known.dictionary)?;
    let mut packed = form(SQUEEZED_COLUMNS, reference);
    push_number(&mut packed, frame.len() as u64);
    packed.extend_from_slice(&frame);
    packed.extend_from_slice(&columns.digests.concat());
    Some(packed)
}
