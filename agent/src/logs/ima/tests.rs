//! Logs that grow in every way, end in every way, or are no logs.

use std::fs::{self, OpenOptions};
use std::io::Write;

use super::*;

const RECORDED: &[u8] =
    include_bytes!("../../../tests/data/device-secure-violations/ascii_runtime_measurements");

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
fn a_log_tells_the_size_of_its_template_hashes_by_its_first_line() {
    let (_directory, path) = log_file(b"");
    let mut log = ImaLog::new(&path);
    log.refresh().unwrap();
    assert!(!log.has_sha256_templates().unwrap(), "there is no line");
    append(&path, RECORDED);
    log.refresh().unwrap();
    assert!(!log.has_sha256_templates().unwrap());

    let wide = [b"10 ", [b'e'; 64].as_slice(), b" ima-ng sha256:11 boot_aggregate\n", RECORDED].concat();
    let (_directory, path) = log_file(&wide);
    let mut log = ImaLog::new(&path);
    log.refresh().unwrap();
    assert!(log.has_sha256_templates().unwrap());
}

#[test]
fn a_recorded_log_comes_out_as_it_went_in_however_it_grew() {
    // Cuts in the middle of lines, at a newline, and several at once.
    for steps in [vec![0], vec![1, 500, 64_000], vec![100, 100, 101, 4096, 30_000], vec![RECORDED.len()]] {
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
        assert_eq!(log.lines(0, u64::MAX, usize::MAX).unwrap(), Lines { bytes: RECORDED.to_vec(), end: 390 });
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
    assert_eq!(log.lines(1, u64::MAX, 4).unwrap(), Lines { bytes: b"longer than four\n".to_vec(), end: 2 });
}

#[test]
fn any_line_of_a_long_log_is_found_with_few_marks() {
    let text: String = (0..600_000).flat_map(|number: u32| [number.to_string(), "\n".to_owned()]).collect();
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
    let (_directory, path) = log_file(&[&b"one\n"[..], &vec![b'x'; 100_000], b"\n"].concat());
    let mut log = ImaLog::new(&path);
    log.refresh().unwrap();
    assert!(matches!(log.lines(3, u64::MAX, 100), Err(LogError::NoSuchLine { entries: 2, line: 3, .. })));
    assert!(matches!(log.digest(0, 3), Err(LogError::NoSuchLine { .. })));
    fs::write(&path, b"").unwrap();
    let replaced = log.lines(0, u64::MAX, 100);
    assert!(matches!(replaced, Err(LogError::NoSuchLine { .. })), "replaced without a refresh");
}

#[test]
fn the_last_lines_come_from_memory_as_they_are_in_the_file_however_they_came() {
    let lines: Vec<Vec<u8>> = (0..400_u32)
        .map(|number| {
            // now and then one that is longer than all that is kept
            let length = if number % 97 == 50 { 50_000 } else { 60 + number % 70 };
            format!("{number} {}\n", "x".repeat(length as usize)).into_bytes()
        })
        .collect();
    for lines_at_once in [1, 7, 40, 400] {
        let (_directory, path) = log_file(b"");
        let mut log = ImaLog::new(&path);
        for (turn, some) in lines.chunks(lines_at_once).enumerate() {
            let text = some.concat();
            let (begun, rest) = text.split_at(text.len() / 3);
            append(&path, begun);
            log.refresh().unwrap();
            append(&path, rest);
            log.refresh().unwrap();
            let (first, end) = (turn * lines_at_once, turn * lines_at_once + some.len());
            assert_eq!(log.entries(), end as u64);
            for from in [first, end - 1, end, first / 2, 0] {
                let read = log.lines(from as u64, u64::MAX, usize::MAX).unwrap();
                assert_eq!((read.bytes, read.end), (lines[from..end].concat(), end as u64));
            }
            let middle = log.lines(first as u64, first as u64 + 1, usize::MAX).unwrap();
            assert_eq!(middle.bytes, lines[first]);
        }
    }
}

#[test]
fn a_file_of_the_kernel_stays_open_and_is_read_on() {
    // Without size and change time, as the log in securityfs.
    let path = Path::new("/proc/filesystems");
    let text = fs::read(path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), 0);
    let mut log = ImaLog::new(path);
    log.refresh().unwrap();
    assert!(log.open.is_some() && log.entries() > 0);
    let known = log.entries();
    assert_eq!(log.refresh().unwrap(), Growth::Lines(0));
    assert_eq!(log.lines(0, u64::MAX, usize::MAX).unwrap(), Lines { bytes: text, end: known });
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
