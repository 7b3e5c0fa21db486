//! Every IMA log comes back as it was.

use crate::logs::{DIRECT, VIOLATIONS, any_line, any_log, line, lines, real_paths, reference};
use keylime_mqtt_schemas::compact::{CompactError, Reference, pack_ima, unpack_ima};
use proptest::prelude::*;

/// What was packed comes back, in no more than its own size.
fn restored(log: &[u8], packed: &[u8], reference: Option<&Reference>) {
    assert!(packed.len() <= log.len() + 1, "{} bytes became {}", log.len(), packed.len());
    assert_eq!(unpack_ima(packed, log.len(), reference).as_deref(), Ok(log));
    if let Some(less) = log.len().checked_sub(1) {
        assert_eq!(unpack_ima(packed, less, reference), Err(CompactError::TooLarge(less)));
    }
}

#[test]
fn recorded_logs_come_back_whole_and_in_parts() {
    for log in [DIRECT, VIOLATIONS, &real_paths()] {
        restored(log, &pack_ima(log, None), None);
        let known = reference(&[DIRECT], &[]);
        restored(log, &pack_ima(log, Some(&known)), Some(&known));
        for start in (0..370).step_by(10) {
            let part = lines(log, start..start + 10);
            restored(&part, &pack_ima(&part, None), None);
            restored(&part, &pack_ima(&part, Some(&known)), Some(&known));
        }
    }
}

#[test]
fn lines_of_every_template_are_restored_from_columns_and_not_sent_as_text() {
    const SIGNATURE: &[u8] = b"\x03\x02\x04\xaa\xbb\xcc\xdd\x01\x00 and what is as random as a digest";
    type Case = (&'static str, &'static str, usize, &'static [u8], Option<&'static [u8]>);
    let cases: [Case; 9] = [
        ("ima", "", 20, b"/bin/old", None),
        ("ima-ng", "sha1:", 20, b"/bin/a", None),
        ("ima-ng", "sha384:", 48, b"/bin/with blank", None),
        ("ima-ng", "sha512:", 64, b"", None),
        ("ima-ngv2", "verity:sha256:", 32, b"/bin/verity", None),
        ("ima-sig", "sha256:", 32, b"/bin/unsigned", Some(b"")),
        ("ima-sig", "sha256:", 32, b"/bin/\xff\xfe", Some(SIGNATURE)),
        ("ima-sigv2", "ima:sha512:", 64, b"/bin/signed", Some(SIGNATURE)),
        ("ima-buf", "sha256:", 32, b"dm_table_load", Some(&[b'x'; 300])),
    ];
    for (template, algorithm, size, name, last) in cases {
        let line = line(template, algorithm, &[7; 64][..size], name, last);
        let packed = pack_ima(&line, None);
        restored(&line, &packed, None);
        // form, lengths, one run: no template hash and nothing in hex
        let most = size + name.len() + last.unwrap_or_default().len() + 8;
        assert!(packed.len() <= most, "{}: {} bytes", line.escape_ascii(), packed.len());
    }
}

#[test]
fn a_violation_is_its_name() {
    let line = format!("10 {} ima-ng sha256:{} /root/tomtou\n", "0".repeat(40), "0".repeat(64));
    let packed = pack_ima(line.as_bytes(), None);
    restored(line.as_bytes(), &packed, None);
    assert!(packed.len() < 20, "{} bytes", packed.len());
}

#[test]
fn a_digest_that_was_seen_before_is_not_sent_again() {
    let empty_file = [0xe3; 32];
    let names: Vec<String> = (0..50).map(|number| format!("/usr/bin/{number}")).collect();
    let log: Vec<u8> =
        names.iter().flat_map(|name| line("ima-ng", "sha256:", &empty_file, name.as_bytes(), None)).collect();
    let packed = pack_ima(&log, None);
    restored(&log, &packed, None);
    assert!(packed.len() < 32 + 50 * 4, "{} bytes", packed.len());
}

#[test]
fn more_lines_than_a_part_has_come_back() {
    let log = real_paths().repeat(3);
    assert!(log.len() > 500_000);
    restored(&log, &pack_ima(&log, None), None);
    // and text that is no log at all
    let text = b"what is no line of a log\n".repeat(20_000);
    restored(&text, &pack_ima(&text, None), None);
}

#[test]
fn nothing_packs_to_nothing() {
    assert_eq!(pack_ima(b"", None), b"");
    assert_eq!(unpack_ima(b"", 0, None), Ok(Vec::new()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_log_comes_back_as_it_was(log in any_log()) {
        restored(&log, &pack_ima(&log, None), None);
    }

    #[test]
    fn any_log_comes_back_through_a_reference(log in any_log(), golden in any_log(), own in any::<bool>()) {
        // the device's own log, or another machine's
        let golden = if own { [golden, log.clone()].concat() } else { golden };
        let known = reference(&[&golden], &[]);
        restored(&log, &pack_ima(&log, Some(&known)), Some(&known));
    }

    #[test]
    fn any_line_comes_back_alone(line in any_line()) {
        restored(&line, &pack_ima(&line, None), None);
    }
}
