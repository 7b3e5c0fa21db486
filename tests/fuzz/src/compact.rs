//! Logs as they travel, and the reference files that make them short.

use std::sync::LazyLock;

use keylime_mqtt_schemas::compact::{
    Reference, ReferenceBuilder, pack_ima, pack_uefi, unpack_ima, unpack_uefi,
};

use crate::bytes::Bytes;

/// What a receiver would allow; small, so that an input of a fuzzer can pass it.
const LIMIT: usize = 16 * 1024;

const UEFI_LOG: &[u8] = include_bytes!("../../data/uefi-direct-boot.bin");
const IMA_LINES: &[u8] = b"10 0000000000000000000000000000000000000000 ima-ng sha256:0000000000000000000000000000000000000000000000000000000000000000 /bin/false\n\
10 91f34b5c671d73504b274a919661cf80dab1e127 ima-ng sha1:1801e1be3e65ef1eaa5c16617bec8f1274eaf6b3 boot_aggregate\n\
10 8c1ba9e9bf3b9b2e2b3d5e1a5f4e6b0a1b2c3d4e ima-sig sha256:2222222222222222222222222222222222222222222222222222222222222222 /usr/bin/true 030204\n";

static REFERENCE: LazyLock<Reference> = LazyLock::new(|| {
    let mut builder = ReferenceBuilder::new();
    builder.ima_log(IMA_LINES).uefi_log(UEFI_LOG);
    Reference::parse(&builder.build().expect("a small reference")).expect("just built")
});

pub(crate) fn ima_unpack(packed: &[u8]) {
    for reference in [None, Some(&*REFERENCE)] {
        if let Ok(lines) = unpack_ima(packed, LIMIT, reference) {
            assert!(lines.len() <= LIMIT && lines.capacity() <= 2 * LIMIT, "{} bytes", lines.capacity());
        }
    }
}

/// Any bytes come out as they went in.
pub(crate) fn ima_pack(lines: &[u8]) {
    for reference in [None, Some(&*REFERENCE)] {
        let packed = pack_ima(lines, reference);
        assert!(packed.len() <= lines.len() + 1, "packing made it larger");
        assert_eq!(unpack_ima(&packed, lines.len(), reference).as_deref(), Ok(lines));
    }
}

pub(crate) fn uefi_unpack(input: &[u8]) {
    let mut bytes = Bytes(input);
    let size = usize::from(bytes.u16());
    for reference in [None, Some(&*REFERENCE)] {
        if let Ok(log) = unpack_uefi(bytes.0, size, reference) {
            assert!(log.len() == size && log.capacity() <= 2 * size + 64, "{} bytes", log.capacity());
        }
    }
}

/// Any bytes come out as they went in.
pub(crate) fn uefi_pack(log: &[u8]) {
    for reference in [None, Some(&*REFERENCE)] {
        let packed = pack_uefi(log, reference);
        assert!(packed.len() <= log.len() + 1, "packing made it larger");
        assert_eq!(unpack_uefi(&packed, log.len(), reference).as_deref(), Ok(log));
    }
}

/// A reference file, and the three things one is made of.
pub(crate) fn reference(input: &[u8]) {
    if let Ok(reference) = Reference::parse(input) {
        assert!(reference.entries() <= input.len() && reference.uefi_log().len() <= input.len());
        let packed = pack_ima(IMA_LINES, Some(&reference));
        assert_eq!(unpack_ima(&packed, IMA_LINES.len(), Some(&reference)).as_deref(), Ok(IMA_LINES));
    }
    let mut bytes = Bytes(input);
    let (policy, uefi) = (bytes.piece(), bytes.piece());
    let mut builder = ReferenceBuilder::new();
    builder.uefi_log(uefi).ima_log(bytes.0);
    // what is no policy leaves the builder as it was
    let refused = builder.runtime_policy(policy).is_err();
    if let Ok(file) = builder.build() {
        let reference = Reference::parse(&file);
        assert!(reference.is_ok(), "a reference that was built is refused (policy refused: {refused})");
    }
}
