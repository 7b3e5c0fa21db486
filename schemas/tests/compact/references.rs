//! What a reference knows costs next to nothing, and a wrong one costs nothing but bytes.

use crate::logs::{DIRECT, SECURE, VIOLATIONS, line, lines, reference};
use keylime_mqtt_schemas::compact::{
    CompactError, Reference, ReferenceBuilder, ReferenceError, pack_ima, pack_uefi, unpack_ima, unpack_uefi,
};
use keylime_mqtt_schemas::messages::Digest;
use proptest::prelude::*;

#[test]
fn a_reference_is_named_by_the_digest_of_its_file() {
    let file = ReferenceBuilder::new().ima_log(DIRECT).uefi_log(SECURE).build().unwrap();
    let known = Reference::parse(&file).unwrap();
    assert_eq!(known.digest(), Digest::of(&[&file]));
    assert_eq!(known.uefi_log(), SECURE);
    // all but the boot aggregate, each once
    assert!((300..383).contains(&known.entries()), "{known:?}");
}

#[test]
fn a_policy_makes_a_reference_that_knows_what_the_policy_allows() {
    let log = lines(DIRECT, 1..101);
    let text = std::str::from_utf8(&log).unwrap();
    let mut digests = serde_json::Map::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let digest = fields[3].strip_prefix("sha256:").unwrap();
        digests.insert(fields[4].to_owned(), serde_json::json!([digest, "00".repeat(32)]));
    }
    let policy = serde_json::json!({
        "meta": {"version": 1}, "release": 0, "digests": digests, "excludes": ["/tmp/.*"],
        "keyrings": {".ima": ["11".repeat(32)]}, "ima": {"ignored_keyrings": []}, "ima-buf": {},
    });
    let file =
        ReferenceBuilder::new().runtime_policy(policy.to_string().as_bytes()).unwrap().build().unwrap();
    let known = Reference::parse(&file).unwrap();
    assert_eq!(known.entries(), 201);
    let packed = pack_ima(&log, Some(&known));
    assert_eq!(unpack_ima(&packed, log.len(), Some(&known)), Ok(log));
    assert!(packed.len() < 400, "{} bytes for 100 lines that are known", packed.len());
}

#[test]
fn what_is_not_a_policy_is_refused() {
    for policy in [
        "",
        "[]",
        "{}",
        r#"{"digests": []}"#,
        r#"{"digests": {"/x": "00"}}"#,
        r#"{"digests": {"/x": ["zz"]}}"#,
        r#"{"digests": {"/x": [1]}}"#,
        r#"{"digests": {}, "ima-buf": 1}"#,
    ] {
        let refused = ReferenceBuilder::new().runtime_policy(policy.as_bytes()).map(|_| ());
        assert_eq!(refused, Err(ReferenceError::Policy), "{policy}");
    }
}

#[test]
fn signatures_of_a_golden_machine_are_known_too() {
    let signature = [b"\x03\x02\x04\xaa\xbb\xcc\xdd\x01\x00".as_slice(), &[9; 256]].concat();
    let names: Vec<String> = (0..20u8).map(|number| format!("/usr/bin/{number}")).collect();
    let log: Vec<u8> = (0u8..)
        .zip(&names)
        .flat_map(|(number, name)| {
            line("ima-sig", "sha256:", &[number; 32], name.as_bytes(), Some(&signature))
        })
        .collect();
    let known = reference(&[&log], &[]);
    let packed = pack_ima(&log, Some(&known));
    assert!(packed.len() < 40, "{} bytes", packed.len());
    assert_eq!(unpack_ima(&packed, log.len(), Some(&known)).as_deref(), Ok(log.as_slice()));

    // signed anew, and measured by a kernel that does not log signatures
    let other = line("ima-sig", "sha256:", &[3; 32], b"/usr/bin/3", Some(&[3; 30]));
    let unsigned = line("ima-ng", "sha256:", &[4; 32], b"/usr/bin/4", None);
    let mixed = [other, unsigned].concat();
    let packed = pack_ima(&mixed, Some(&known));
    assert_eq!(unpack_ima(&packed, mixed.len(), Some(&known)), Ok(mixed));
}

#[test]
fn a_reference_that_is_missing_or_another_is_said_so() {
    let (one, other) = (reference(&[DIRECT], SECURE), reference(&[VIOLATIONS], DIRECT));
    let (ima, uefi) = (pack_ima(DIRECT, Some(&one)), pack_uefi(SECURE, Some(&one)));
    for wrong in [None, Some(&other)] {
        assert_eq!(unpack_ima(&ima, DIRECT.len(), wrong), Err(CompactError::UnknownReference));
        assert_eq!(unpack_uefi(&uefi, SECURE.len(), wrong), Err(CompactError::UnknownReference));
    }
}

#[test]
fn a_reference_that_knows_nothing_of_a_log_is_not_named_in_it() {
    let strange = reference(&[&line("ima-ng", "sha256:", &[1; 32], b"/strange", None)], &[]);
    assert_eq!(pack_ima(DIRECT, Some(&strange)), pack_ima(DIRECT, None));
    assert_eq!(pack_uefi(SECURE, Some(&strange)), pack_uefi(SECURE, None));
}

#[test]
fn a_file_that_is_cut_or_changed_is_refused_or_another_reference() {
    let file = ReferenceBuilder::new().ima_log(&lines(DIRECT, 0..5)).uefi_log(b"log").build().unwrap();
    for size in 0..file.len() {
        assert_eq!(Reference::parse(&file[..size]).unwrap_err(), ReferenceError::Malformed, "{size}");
    }
    assert_eq!(Reference::parse(&[&file, b"x".as_slice()].concat()).unwrap_err(), ReferenceError::Malformed);
    let endless = [b"keylime-mqtt-reference 1\n".as_slice(), &[0xFF; 8], &[0x7F]].concat();
    assert_eq!(Reference::parse(&endless).unwrap_err(), ReferenceError::TooLarge);
    assert_eq!(Reference::parse(&vec![0; 64 * 1024 * 1024 + 1]).unwrap_err(), ReferenceError::TooLarge);
    assert_eq!(
        ReferenceBuilder::new().uefi_log(&vec![0; 1024 * 1024 + 1]).build(),
        Err(ReferenceError::TooLarge)
    );
}

proptest! {
    #[test]
    fn any_file_is_a_reference_or_refused(
        mut file in prop::collection::vec(any::<u8>(), 0..300),
        with_magic in any::<bool>(),
    ) {
        if with_magic {
            file.splice(0..0, *b"keylime-mqtt-reference 1\n");
        }
        if let Ok(known) = Reference::parse(&file) {
            prop_assert!(known.entries() <= file.len());
        }
    }
}
