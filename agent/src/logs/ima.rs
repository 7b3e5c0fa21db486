//! The kernel's ascii IMA log, read as it grows.
//!
//! The kernel appends whole lines and never changes old ones, so only what is new is read. The lines themselves are not
//! kept: of the log stays the number of lines, the byte offset behind the last whole one, and a sparse index from line to
//! offset. A log that is shorter than before, or begins or continues otherwise, is another log and is read from its start.
//!
//! The file in securityfs has no size and no change time; everything here goes by what reading gives.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

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
            marks: vec![0],
            spacing: FIRST_SPACING,
        }
    }

    /// Whole lines known.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Reads what came since the last time.
    pub fn refresh(&mut self) -> Result<Growth, LogError> {
        let mut file = File::open(&self.path).map_err(LogError::unreadable(KEY, &self.path))?;
        let same = self.is_still_there(&mut file).map_err(LogError::unreadable(KEY, &self.path))?;
        if !same {
            *self = Self::new(&self.path);
        }
        let before = self.entries;
        self.read_on(&mut file)?;
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

    fn read_on(&mut self, file: &mut File) -> Result<(), LogError> {
        let unreadable = |source| LogError::unreadable(KEY, &self.path)(source);
        file.seek(SeekFrom::Start(self.size)).map_err(unreadable)?;
        let mut chunk = vec![0; CHUNK];
        // What follows the last newline: the kernel is still writing it, or the next chunk has the rest.
        let mut partial: usize = 0;
        loop {
            let read = file.read(&mut chunk).map_err(LogError::unreadable(KEY, &self.path))?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return self.remember_tail(file);
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
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;

    const RECORDED: &[u8] =
        include_bytes!("../../tests/data/device-secure-violations/ascii_runtime_measurements");

    fn log_file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ascii_runtime_measurements");
        fs::write(&path, content).unwrap();
        (directory, path)
    }

    fn append(path: &Path, content: &[u8]) {
        OpenOptions::new().append(true).open(path).unwrap().write_all(content).unwrap();
    }

    #[test]
    fn a_recorded_log_comes_out_as_it_went_in_however_it_grew() {
        // Cuts in the middle of lines, at a newline, and several at once.
        for steps in [vec![0], vec![1, 500, 64_000], vec![100, 100, 101, 4096, 30_000], vec![RECORDED.len()]]
        {
            let (_directory, path) = log_file(b"");
            let mut log = ImaLog::new(&path);
            let mut written = 0;
            for step in steps.into_iter().chain([RECORDED.len()]) {
                append(&path, &RECORDED[written..step.max(written)]);
                written = step.max(written);
                log.refresh().unwrap();
                let whole = RECORDED[..written]
                    .split_inclusive(|byte| *byte == b'\n')
                    .filter(|line| line.ends_with(b"\n"))
                    .count();
                assert_eq!(log.entries(), whole as u64);
            }
            assert_eq!(log.entries(), 390);
            assert_eq!(
                log.lines(0, u64::MAX, usize::MAX).unwrap(),
                Lines { bytes: RECORDED.to_vec(), end: 390 }
            );
            assert_eq!(log.digest(0, 390).unwrap().as_slice(), Sha256::digest(RECORDED).as_slice());
        }
    }

    #[test]
    fn a_line_that_is_still_being_written_is_not_there_yet() {
        let (_directory, path) = log_file(b"one\ntw");
        let mut log = ImaLog::new(&path);
        assert_eq!(log.refresh().unwrap(), Growth::Lines(1));
        assert_eq!(log.lines(0, u64::MAX, 100).unwrap().bytes, b"one\n");
        append(&path, b"o\nthree");
        assert_eq!(log.refresh().unwrap(), Growth::Lines(1));
        assert_eq!(log.lines(1, u64::MAX, 100).unwrap().bytes, b"two\n");
        assert_eq!(log.refresh().unwrap(), Growth::Lines(0));
    }

    #[test]
    fn parts_of_whole_lines_add_up_to_the_log() {
        let (_directory, path) = log_file(RECORDED);
        let mut log = ImaLog::new(&path);
        log.refresh().unwrap();
        let (mut from, mut gathered) = (0, Vec::new());
        loop {
            let part = log.lines(from, u64::MAX, 1000).unwrap();
            if part.bytes.is_empty() {
                break;
            }
            assert!(part.bytes.len() <= 1000 && part.bytes.ends_with(b"\n"));
            gathered.extend(part.bytes);
            from = part.end;
        }
        assert_eq!((from, gathered.as_slice()), (390, RECORDED));
    }

    #[test]
    fn a_line_longer_than_a_part_still_goes_up() {
        let (_directory, path) = log_file(b"a\nlonger than four\nb\n");
        let mut log = ImaLog::new(&path);
        log.refresh().unwrap();
        assert_eq!(log.lines(0, 1, 100).unwrap(), Lines { bytes: b"a\n".to_vec(), end: 1 });
        assert_eq!(log.lines(1, 1, 100).unwrap(), Lines { bytes: Vec::new(), end: 1 });
        assert_eq!(
            log.lines(1, u64::MAX, 4).unwrap(),
            Lines { bytes: b"longer than four\n".to_vec(), end: 2 }
        );
    }

    #[test]
    fn any_line_of_a_long_log_is_found_with_few_marks() {
        let text: String =
            (0..600_000).flat_map(|number: u32| [number.to_string(), "\n".to_owned()]).collect();
        let (_directory, path) = log_file(text.as_bytes());
        let mut log = ImaLog::new(&path);
        log.refresh().unwrap();
        assert!(log.marks.len() <= MARKS && log.spacing > FIRST_SPACING);
        for number in [0, 1, 63, 64, 65, 8191, 262_144, 599_999] {
            assert_eq!(log.lines(number, u64::MAX, 1).unwrap().bytes, format!("{number}\n").into_bytes());
        }
        assert_eq!(log.lines(600_000, u64::MAX, 1).unwrap(), Lines { bytes: Vec::new(), end: 600_000 });
    }

    #[test]
    fn another_log_under_the_same_name_is_noticed() {
        let (_directory, path) = log_file(RECORDED);
        let mut log = ImaLog::new(&path);
        log.refresh().unwrap();
        for other in [&b"10 new boot\n"[..], b"", &[RECORDED, b"more\n"].concat()[1..]] {
            fs::write(&path, other).unwrap();
            assert_eq!(log.refresh().unwrap(), Growth::Replaced);
            assert_eq!(log.lines(0, u64::MAX, usize::MAX).unwrap().bytes, other);
            fs::write(&path, RECORDED).unwrap();
            log.refresh().unwrap();
            assert_eq!(log.entries(), 390);
        }
    }

    #[test]
    fn lines_that_are_not_there_are_an_error_not_an_empty_answer() {
        let (_directory, path) = log_file(b"one\n");
        let mut log = ImaLog::new(&path);
        log.refresh().unwrap();
        assert!(matches!(log.lines(2, u64::MAX, 100), Err(LogError::NoSuchLine { entries: 1, line: 2, .. })));
        assert!(matches!(log.digest(0, 2), Err(LogError::NoSuchLine { .. })));
        fs::write(&path, b"").unwrap();
        assert!(
            matches!(log.lines(0, u64::MAX, 100), Err(LogError::NoSuchLine { .. })),
            "replaced without a refresh"
        );
    }

    #[test]
    fn a_file_without_lines_does_not_fill_the_memory() {
        let (_directory, path) = log_file(&vec![0; LONGEST_LINE + 1]);
        assert!(matches!(ImaLog::new(&path).refresh(), Err(LogError::NotThat { .. })));
    }

    #[test]
    fn a_missing_file_is_named_with_its_key() {
        let error = ImaLog::new(Path::new("/nonexistent/ima")).refresh().unwrap_err().to_string();
        assert!(error.contains("ima_log") && error.contains("/nonexistent/ima"), "{error}");
    }
}
