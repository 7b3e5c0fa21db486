//! Logs to pack: recorded ones, and generated ones of every template with names as odd as a kernel lets them be.

use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder};
use proptest::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// 390 lines of a Debian device, with violations and odd names.
pub(crate) const VIOLATIONS: &[u8] = include_bytes!("../data/violations.ima");
/// 383 lines of another boot.
pub(crate) const DIRECT: &[u8] = include_bytes!("../data/direct.ima");
/// Secure Boot with shim and GRUB.
pub(crate) const SECURE: &[u8] = include_bytes!("../data/secure.uefi");
/// GRUB without Secure Boot, SHA-1 and SHA-256 banks.
pub(crate) const TWO_BANKS: &[u8] = include_bytes!("../data/grub-sha1.uefi");
/// The kernel straight from the firmware.
pub(crate) const NO_LOADER: &[u8] = include_bytes!("../data/direct.uefi");
pub(crate) const UEFI_LOGS: [&[u8]; 3] = [SECURE, TWO_BANKS, NO_LOADER];
/// A thousand paths of a Debian machine, 67 bytes in the mean.
const PATHS: &str = include_str!("../data/paths.txt");

/// An `ima-ng` log of real paths with digests of no use to a compressor.
pub(crate) fn real_paths() -> Vec<u8> {
    let lines =
        PATHS.lines().map(|path| line("ima-ng", "sha256:", &Sha256::digest(path), path.as_bytes(), None));
    lines.collect::<Vec<_>>().concat()
}

/// The first lines of a log.
pub(crate) fn lines(log: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let lines: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
    lines[range].concat()
}

pub(crate) fn reference(logs: &[&[u8]], uefi: &[u8]) -> Reference {
    let mut builder = ReferenceBuilder::new();
    for log in logs {
        builder.ima_log(log);
    }
    Reference::parse(&builder.uefi_log(uefi).build().unwrap()).unwrap()
}

/// A line as the kernel writes it: template data by hand, after ima_template_lib.c.
pub(crate) fn line(
    template: &str,
    algorithm: &str,
    digest: &[u8],
    name: &[u8],
    last: Option<&[u8]>,
) -> Vec<u8> {
    let sized = |field: &[u8]| [&u32::try_from(field.len()).unwrap().to_le_bytes(), field].concat();
    let mut data = if template == "ima" {
        let name = name.get(..255).unwrap_or(name);
        let mut data = [digest, name].concat();
        data.resize(digest.len() + 256, 0);
        data
    } else {
        let nul: &[u8] = if algorithm.is_empty() { b"" } else { b"\0" };
        let digest = [algorithm.as_bytes(), nul, digest].concat();
        [sized(&digest), sized(&[name, b"\0"].concat())].concat()
    };
    let mut text = [template.as_bytes(), b" ", algorithm.as_bytes()].concat();
    text.extend_from_slice(hex::encode(digest).as_bytes());
    text.push(b' ');
    text.extend_from_slice(name);
    if let Some(last) = last {
        data.extend_from_slice(&sized(last));
        text.push(b' ');
        text.extend_from_slice(hex::encode(last).as_bytes());
    }
    [b"10 ", hex::encode(Sha1::digest(&data)).as_bytes(), b" ", &text, b"\n"].concat()
}

/// Names: real ones, short ones of any bytes but newline, blanks, escaped newlines, UTF-8, 4 kB, none at all.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let real = prop::sample::select(PATHS.lines().take(40).collect::<Vec<_>>());
    prop_oneof![
        8 => real.prop_map(|path| path.as_bytes().to_vec()),
        2 => "/[a-z ]{0,12}".prop_map(String::into_bytes),
        2 => "/\\PC{0,20}".prop_map(String::into_bytes),
        1 => Just(b"/root/new\\nline and\\ blank ".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| bytes.into_iter().filter(|byte| *byte != b'\n').collect()),
        1 => (3000..4096usize, any::<u8>()).prop_map(|(size, byte)| vec![byte.max(b' '); size]),
    ]
}

/// Digests: few different ones, so that some come twice.
fn digest(size: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), size),
        2 => (0..4u8).prop_map(move |byte| vec![byte; size]),
    ]
}

fn signature() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..12),
        prop::collection::vec(any::<u8>(), 256).prop_map(|bytes| [
            b"\x03\x02\x04\xaa\xbb\xcc\xdd\x01\x00",
            bytes.as_slice()
        ]
        .concat()),
    ]
}

/// One line with its newline.
pub(crate) fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let measured = |template: &'static str, algorithm: &'static str, size: usize| {
        (digest(size), name()).prop_map(move |(digest, name)| line(template, algorithm, &digest, &name, None))
    };
    let signed = |template: &'static str, algorithm: &'static str, size: usize| {
        let fields = (digest(size), name(), signature());
        fields.prop_map(move |(digest, name, last)| line(template, algorithm, &digest, &name, Some(&last)))
    };
    let zeros = "0".repeat(40);
    let violation = name().prop_map(move |name| {
        [format!("10 {zeros} ima-ng sha256:{} ", "0".repeat(64)).as_bytes(), &name, b"\n"].concat()
    });
    let good = prop_oneof![
        8 => measured("ima-ng", "sha256:", 32),
        1 => measured("ima-ng", "sha1:", 20),
        1 => measured("ima-ng", "sha512:", 64),
        1 => measured("ima-ng", "md5:", 16),
        1 => measured("ima-ngv2", "ima:sha256:", 32),
        1 => measured("ima", "", 20),
        4 => signed("ima-sig", "sha256:", 32),
        1 => signed("ima-sigv2", "verity:sha256:", 32),
        2 => signed("ima-buf", "sha256:", 32),
        2 => violation,
    ];
    let good = good.boxed();
    prop_oneof![
        12 => good.clone(),
        // not as the kernel would say it, or not what columns hold
        2 => (good, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut line, place, byte)| {
            let place = place.index(line.len() - 1);
            line[place] = byte;
            line
        }),
        1 => Just(b"10 0123 ima-modsig sha256:00 /x  sha256:00 3082\n".to_vec()),
        1 => Just(b"11 0123 ima-ng sha256:00 /x\n".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(|bytes| [&bytes, b"\n".as_slice()].concat()),
    ]
}

/// A log, its last line perhaps still being written.
pub(crate) fn any_log() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 0..30)];
    (prop::collection::vec(any_line(), 0..40), tail).prop_map(|(lines, tail)| [lines.concat(), tail].concat())
}
