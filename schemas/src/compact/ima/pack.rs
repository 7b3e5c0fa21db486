//! Lines into columns.

use super::line::{Kind, Parsed, Source};
use super::{AS_KNOWN, COLUMNS, PLAIN, REFERENCED, SIGNATURE_HEADER, SQUEEZED, SQUEEZED_COLUMNS, dictionary};
use crate::compact::Reference;
use crate::compact::bytes::{Restored, push_number, push_signed};
use crate::compact::frame;
use std::collections::HashMap;

/// Packs whole lines, each with its newline; any bytes are taken.
///
/// With a reference, what it knows costs a byte or two. Packed bytes are never more than one byte longer than the lines.
pub fn pack_ima(lines: &[u8], reference: Option<&Reference>) -> Vec<u8> {
    if lines.is_empty() {
        return Vec::new();
    }
    let plain = || match frame::compress(lines, &dictionary()) {
        Some(frame) => [&[SQUEEZED], frame.as_slice()].concat(),
        None => [&[PLAIN], lines].concat(),
    };
    // a last line that is still being written has no newline yet: not a line to take apart
    let columns = lines.ends_with(b"\n").then(|| in_columns(lines, reference)).flatten();
    match columns {
        // nothing was taken apart, or little: a frame around all may be smaller
        Some(columns) if columns.len() * 2 < lines.len() => columns,
        Some(columns) => Some(plain()).filter(|plain| plain.len() < columns.len()).unwrap_or(columns),
        None => plain(),
    }
}

#[derive(Default)]
struct Columns {
    /// Kinds with how many lines in a row have them
    runs: Vec<(u64, u64)>,
    texts: Vec<u8>,
    numbers: Vec<u8>,
    random: Vec<u8>,
    known: usize,
    /// The entry that comes next if the log is in the reference's order
    expected: usize,
}

fn in_columns(lines: &[u8], reference: Option<&Reference>) -> Option<Vec<u8>> {
    let mut columns = Columns::default();
    let mut scratch = Restored::new(usize::MAX);
    let mut seen = HashMap::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if let Some(parsed) = Parsed::of(line, &mut scratch) {
            columns.line(&parsed, reference, &mut seen);
        } else {
            columns.kind(Kind::Text);
            columns.texts.extend_from_slice(line);
        }
    }
    columns.packed(reference, lines.len())
}

impl Columns {
    fn kind(&mut self, kind: Kind) {
        let number = kind.to_number();
        match self.runs.last_mut() {
            Some((last, count)) if *last == number => *count += 1,
            _ => self.runs.push((number, 1)),
        }
    }

    fn line(&mut self, parsed: &Parsed, reference: Option<&Reference>, seen: &mut HashMap<Vec<u8>, u64>) {
        let fields = parsed.fields();
        let known = || {
            let number = reference?.find(fields.digest, fields.name, self.expected)?;
            Some((number, reference?.at(number)?))
        };
        let mut signature_known = false;
        let source = if parsed.violation {
            Source::Violation
        } else if let Some((number, entry)) = known() {
            signature_known = entry.signature == fields.last;
            push_signed(&mut self.numbers, distance(number, self.expected));
            self.expected = number + 1;
            self.known += 1;
            Source::Known
        } else {
            let next = seen.len() as u64;
            if let Some(place) = seen.get(fields.digest) {
                push_number(&mut self.numbers, next - 1 - place);
                Source::Repeated
            } else {
                seen.insert(fields.digest.to_vec(), next);
                self.random.extend_from_slice(fields.digest);
                Source::New
            }
        };
        self.kind(Kind::Fields { source, shape: parsed.shape });
        if source != Source::Known {
            self.texts.extend_from_slice(fields.name);
            self.texts.push(b'\n');
        }
        if !parsed.shape.has_last() {
            return;
        }
        if signature_known {
            push_number(&mut self.numbers, AS_KNOWN);
        } else {
            push_number(&mut self.numbers, fields.last.len() as u64 + 1);
            let header = if parsed.shape.is_signed() { SIGNATURE_HEADER } else { usize::MAX };
            let (header, rest) = fields.last.split_at_checked(header).unwrap_or((fields.last, &[]));
            self.numbers.extend_from_slice(header);
            self.random.extend_from_slice(rest);
        }
    }

    /// Nothing if the stream is longer than the lines: a receiver who bounds these does not take it.
    fn packed(self, reference: Option<&Reference>, lines: usize) -> Option<Vec<u8>> {
        let mut stream = Vec::with_capacity(self.texts.len() + self.numbers.len() + 4 * self.runs.len() + 4);
        push_number(&mut stream, self.runs.len() as u64);
        for (kind, count) in self.runs {
            push_number(&mut stream, kind);
            push_number(&mut stream, count);
        }
        stream.extend_from_slice(&self.texts);
        stream.extend_from_slice(&self.numbers);
        if stream.len() > lines {
            return None;
        }
        let (form, stream) = match frame::compress(&stream, &dictionary()) {
            Some(frame) => (SQUEEZED_COLUMNS, frame),
            None => (COLUMNS, stream),
        };
        let mut packed = Vec::with_capacity(stream.len() + self.random.len() + 8);
        match reference.filter(|_| self.known > 0) {
            Some(reference) => {
                packed.push(form + REFERENCED);
                packed.extend_from_slice(&reference.tag());
            }
            None => packed.push(form),
        }
        push_number(&mut packed, stream.len() as u64);
        packed.extend_from_slice(&stream);
        packed.extend_from_slice(&self.random);
        Some(packed)
    }
}

/// Numbers of entries are below two million.
fn distance(number: usize, expected: usize) -> i64 {
    let number = i64::try_from(number).unwrap_or_default();
    number - i64::try_from(expected).unwrap_or_default()
}
