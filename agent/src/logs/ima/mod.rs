//! The kernel's ascii IMA log, read as it grows.
//!
//! The kernel appends whole lines and never changes old ones, so only what is new is read. The lines themselves are not
//! kept, but for the last few: of the log stays the number of lines, the byte offset behind the last whole one, and a
//! sparse index from line to offset. A log that is shorter than before, or begins or continues otherwise, is another log
//! and is read from its start.
//!
//! The file in securityfs has no size and no change time; everything here goes by what reading gives. To seek in it makes
//! the kernel format all lines before (Linux `fs/seq_file.c`, traverse), so it stays open and is read on where it ended, and
//! new lines come from memory: an attestation costs the same however long the log is.

mod recent;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use keylime_mqtt_schemas::ima::has_sha256_templates;
use sha2::{Digest, Sha256};

use self::recent::Recent;
use super::LogError;

const KEY: &str = "ima_log";
/// Read at a time. The kernel formats lines on the fly, so larger reads gain nothing.
const CHUNK: usize = 64 * 1024;
/// Longest line taken for one: an ima-buf entry holds a file of some kilobytes in hex.
const LONGEST_LINE: usize = 1024 * 1024;
/// Marks in the index, 32 KiB of memory; when they are used up every second one goes.
const MARKS: usize = 4096;
/// Lines between marks at first.
const FIRST_SPACING: u64 = 64;
/// Bytes before the end that are compared to see that the log is still the same: a line or two, digests included.
const TAIL: usize = 256;

/// Whole lines of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// As the kernel gave them, each with its newline.
    pub bytes: Vec<u8>,
    /// The line after the last one here.
    pub end: u64,
}

/// A log and how far it was read.
#[derive(Debug)]
pub struct ImaLog {
    path: PathBuf,
    entries: u64,
    /// Offset behind the last whole line.
    size: u64,
    /// The last bytes before `size`.
    tail: Vec<u8>,
    recent: Recent,
    /// Read up to `size`; only of a file without a size of its own, which is the kernel's and never another.
    open: Option<File>,
    /// Offset of line `n * spacing`, for every `n`.
    marks: Vec<u64>,
    spacing: u64,
}

/// What [`ImaLog::refresh`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// The same log with so many more lines.
    Lines(u64),
    /// Another log: it was read from its start.
    Replaced,
}

impl ImaLog {
    /// A log not read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            entries: 0,
            size: 0,
            tail: Vec::new(),
            recent: Recent::default(),
            open: None,
            marks: vec![0],
            spacing: FIRST_SPACING,
        }
    }

    /// Whole lines known.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether its template hashes are SHA-256, by its first line; they are not where there is none.
    pub fn has_sha256_templates(&self) -> Result<bool, LogError> {
        let mut sha256 = false;
        self.visit(0, self.entries.min(1), |line| {
            sha256 = has_sha256_templates(line);
            false
        })?;
        Ok(sha256)
    }

    /// Reads what came since the last time.
    pub fn refresh(&mut self) -> Result<Growth, LogError> {
        let before = self.entries;
        if let Some(mut file) = self.open.take() {
            // Ends within a line only where this file is not what it seemed: then it is opened anew.
            if !self.read_on(&mut file)? {
                self.open = Some(file);
            }
            return Ok(Growth::Lines(self.entries - before));
        }
        let mut file = File::open(&self.path).map_err(LogError::unreadable(KEY, &self.path))?;
        let same = self.is_still_there(&mut file).map_err(LogError::unreadable(KEY, &self.path))?;
        if !same {
            *self = Self::new(&self.path);
        }
        let before = if same { before } else { 0 };
        file.seek(SeekFrom::Start(self.size)).map_err(LogError::unreadable(KEY, &self.path))?;
        let partial = self.read_on(&mut file)?;
        let has_size = file.metadata().map_err(LogError::unreadable(KEY, &self.path))?.len() > 0;
        if has_size || partial || self.size == 0 {
            self.remember_tail(&mut file)?;
        } else {
            self.open = Some(file);
        }
        Ok(if same { Growth::Lines(self.entries - before) } else { Growth::Replaced })
    }

    /// Whole lines from `from` up to but without `to` or the end, as many as fit in `max_bytes`, and at least one if
    /// there is one.
    pub fn lines(&self, from: u64, to: u64, max_bytes: usize) -> Result<Lines, LogError> {
        let mut bytes = Vec::new();
        let mut end = from;
        self.visit(from, to.min(self.entries).max(from), |line| {
            let fits = bytes.is_empty() || bytes.len() + line.len() <= max_bytes;
            if fits {
                bytes.extend_from_slice(line);
                end += 1;
            }
            fits
        })?;
        Ok(Lines { bytes, end })
    }

    /// SHA-256 over the lines from `from` up to but without `to`, with their newlines.
    pub fn digest(&self, from: u64, to: u64) -> Result<[u8; 32], LogError> {
        let mut hash = Sha256::new();
        self.visit(from, to, |line| {
            hash.update(line);
            true
        })?;
        Ok(hash.finalize().into())
    }

    fn is_still_there(&self, file: &mut File) -> std::io::Result<bool> {
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(self.size - self.tail.len() as u64))?;
        file.take(self.tail.len() as u64).read_to_end(&mut tail)?;
        Ok(tail == self.tail)
    }

    /// Reads to the end of the file; true when it ends within a line.
    fn read_on(&mut self, file: &mut File) -> Result<bool, LogError> {
        let read = self.read_lines(file);
        if read.is_err() {
            self.recent.forget(self.entries);
        }
        read
    }

    fn read_lines(&mut self, file: &mut File) -> Result<bool, LogError> {
        let mut chunk = vec![0; CHUNK];
        // What follows the last newline: the kernel is still writing it, or the next chunk has the rest.
        let mut partial: usize = 0;
        loop {
            let read = file.read(&mut chunk).map_err(LogError::unreadable(KEY, &self.path))?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                self.recent.end(partial, self.entries);
                return Ok(partial > 0);
            };
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                partial += piece.len();
                if partial > LONGEST_LINE {
                    return Err(self.not_a_log());
                }
                if piece.ends_with(b"\n") {
                    self.size += partial as u64;
                    self.entries += 1;
                    partial = 0;
                    self.mark();
                }
            }
            self.recent.append(bytes);
        }
    }

    /// Notes where the line that begins at `size` is, if it is one for the index.
    fn mark(&mut self) {
        if !self.entries.is_multiple_of(self.spacing) {
            return;
        }
        if self.marks.len() == MARKS {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
            self.spacing *= 2;
            if !self.entries.is_multiple_of(self.spacing) {
                return;
            }
        }
        self.marks.push(self.size);
    }

    /// Once per refresh: seeking in securityfs makes the kernel format the log again up to there.
    fn remember_tail(&mut self, file: &mut File) -> Result<(), LogError> {
        let unreadable = |source| LogError::unreadable(KEY, &self.path)(source);
        let length = self.size.min(TAIL as u64);
        let mut tail = Vec::with_capacity(TAIL);
        file.seek(SeekFrom::Start(self.size - length)).map_err(unreadable)?;
        file.take(length).read_to_end(&mut tail).map_err(unreadable)?;
        self.tail = tail;
        Ok(())
    }

    /// Shows the lines `from..to` one by one, each with its newline, until `show` says false.
    pub fn visit(&self, from: u64, to: u64, mut show: impl FnMut(&[u8]) -> bool) -> Result<(), LogError> {
        if from > to || to > self.entries {
            let line = from.max(to);
            return Err(LogError::NoSuchLine {
                key: KEY,
                path: self.path.clone(),
                entries: self.entries,
                line,
            });
        }
        if let Some(lines) = self.recent.lines(from) {
            for line in (from..to).zip(lines).map(|(_, line)| line) {
                if !show(line) {
                    break;
                }
            }
            return Ok(());
        }
        let unreadable = |source| LogError::unreadable(KEY, &self.path)(source);
        let mark = usize::try_from(from / self.spacing).unwrap_or(usize::MAX).min(self.marks.len() - 1);
        let offset = self.marks.get(mark).copied().unwrap_or_default();
        let mut line_number = mark as u64 * self.spacing;
        let mut file = File::open(&self.path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        // Not beyond what was counted: the log may have grown meanwhile.
        let mut reader = std::io::BufReader::with_capacity(CHUNK, file.take(self.size - offset));
        let mut line = Vec::new();
        while line_number < to {
            line.clear();
            std::io::BufRead::read_until(&mut reader, b'\n', &mut line).map_err(unreadable)?;
            if !line.ends_with(b"\n") {
                // It was counted, so the log was replaced since.
                return Err(LogError::NoSuchLine {
                    key: KEY,
                    path: self.path.clone(),
                    entries: line_number,
                    line: to,
                });
            }
            if line_number >= from && !show(&line) {
                break;
            }
            line_number += 1;
        }
        Ok(())
    }

    fn not_a_log(&self) -> LogError {
        LogError::NotThat {
            key: KEY,
            path: self.path.clone(),
            expected: "an ascii IMA log (ascii_runtime_measurements)",
        }
    }
}

#[cfg(test)]
mod tests;
