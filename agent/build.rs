//! How the agent is linked for a device.

use std::env;

/// As in `[profile.device]`; no other profile of the workspace has it.
const SMALL: &str = "z";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    if is("OPT_LEVEL", SMALL) && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        // A third of a megabyte of relocations becomes some kilobytes. Needs glibc 2.36 (Debian 12) on the device.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
