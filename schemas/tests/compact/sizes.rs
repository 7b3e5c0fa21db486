//! What logs cost on the wire. Sizes do not depend on the machine that packs; a byte more than here is a decision.

use crate::logs::{DIRECT, NO_LOADER, SECURE, TWO_BANKS, VIOLATIONS, lines, real_paths, reference};
use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder, pack_ima, pack_uefi};

/// Bytes for an entry, in hundredths, in segments of so many lines.
fn per_entry(log: &[u8], segment: usize, reference: Option<&Reference>) -> usize {
    let all = log.split_inclusive(|byte| *byte == b'\n').count();
    let starts = (0..all - all % segment).step_by(segment);
    let sizes = starts.map(|start| pack_ima(&lines(log, start..start + segment), reference).len());
    sizes.sum::<usize>() * 100 / (all - all % segment)
}

#[test]
fn entries_cost_their_digest_and_a_few_bytes_for_their_name() {
    let real = real_paths();
    let cases = [
        ("1000 real paths at once", &real[..], 1000, 4200),
        ("100 of them", &real, 100, 4500),
        ("ten of them", &real, 10, 4900),
        ("a device's log in tens", DIRECT, 10, 4200),
        ("another's, with violations", VIOLATIONS, 10, 4200),
        ("all of a device's log", DIRECT, 383, 3900),
    ];
    for (what, log, segment, most) in cases {
        let cost = per_entry(log, segment, None);
        println!("{what}: {}.{:02} bytes an entry", cost / 100, cost % 100);
        assert!(cost <= most, "{what}: {cost} hundredths of a byte an entry");
    }
}

#[test]
fn no_ten_lines_of_a_device_cost_more_than_500_bytes() {
    for log in [DIRECT, VIOLATIONS] {
        for start in (0..370).step_by(10) {
            let packed = pack_ima(&lines(log, start..start + 10), None);
            assert!(packed.len() <= 500, "lines {start}..: {} bytes", packed.len());
        }
    }
}

#[test]
fn entries_that_a_reference_knows_cost_two_bytes() {
    let real = real_paths();
    let golden = reference(&[&real], &[]);
    // as a policy has them: by path
    let mut sorted: Vec<&[u8]> = real.split_inclusive(|byte| *byte == b'\n').collect();
    sorted.sort_by_key(|line| line[115..].to_vec());
    let policy = reference(&[&sorted.concat()], &[]);
    let cases = [
        ("in its order, ten", &golden, 10, 200),
        ("in its order, 1000", &golden, 1000, 5),
        ("in another, ten", &policy, 10, 400),
        ("in another, 1000", &policy, 1000, 200),
    ];
    for (what, known, segment, most) in cases {
        let cost = per_entry(&real, segment, Some(known));
        println!("{what}: {}.{:02} bytes an entry", cost / 100, cost % 100);
        assert!(cost <= most, "{what}: {cost} hundredths of a byte an entry");
    }
}

#[test]
fn a_device_of_the_same_kind_costs_what_differs() {
    let known = reference(&[DIRECT], SECURE);
    let packed = pack_ima(VIOLATIONS, Some(&known));
    println!("a log of 390 lines, given another boot's: {} bytes", packed.len());
    assert!(packed.len() <= 1100, "{} bytes", packed.len());
}

#[test]
fn uefi_logs_cost_what_cannot_be_known() {
    let own = |log| reference(&[], log);
    let cases = [
        ("Secure Boot", SECURE, None, 1500),
        ("two banks", TWO_BANKS, None, 1030),
        ("no loader", NO_LOADER, None, 390),
        ("two banks, given Secure Boot's", TWO_BANKS, Some(own(SECURE)), 620),
        ("its own", SECURE, Some(own(SECURE)), 60),
    ];
    for (what, log, known, most) in cases {
        let packed = pack_uefi(log, known.as_ref());
        println!("{what}: {} of {} bytes", packed.len(), log.len());
        assert!(packed.len() <= most, "{what}: {} bytes", packed.len());
    }
}

#[test]
fn a_reference_is_little_more_than_its_digests_and_paths() {
    let file = ReferenceBuilder::new().ima_log(&real_paths()).build().unwrap();
    assert!(file.len() < 1000 * (32 + 70 + 3) + 30, "{} bytes", file.len());
}
