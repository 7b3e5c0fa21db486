//! Feeds one target, named by `FUZZ_TARGET`, from libFuzzer; the command line is libFuzzer's own.

#![no_main]

use std::sync::LazyLock;

use keylime_mqtt_fuzz::{TARGETS, Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ");
    target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is none of: {}", names()))
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
