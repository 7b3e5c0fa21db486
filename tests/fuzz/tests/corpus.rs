//! What fuzzing has found worth keeping, in every test run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keylime_mqtt_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    fs::read_dir(corpus().join(target)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_target_takes_its_whole_corpus() {
    for target in TARGETS {
        for path in inputs(target.name) {
            // named when it fails: nothing else would say which input it was
            println!("{}", path.display());
            (target.run)(&fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let entries = fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap());
    let kept: BTreeSet<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(targets, kept);
    for target in targets {
        assert!(!inputs(&target).is_empty(), "the corpus of {target} is empty");
    }
}
