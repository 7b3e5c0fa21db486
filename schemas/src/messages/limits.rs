//! Bounds of the messages' fields, in bytes, each with its reason.

/// A TPMS_ATTEST is 113 bytes and its extraData; firmware may name more PCR banks than one.
pub const MAX_ATTEST: usize = 512;
/// A TPMT_SIGNATURE of an RSA key of 4096 bits is 518 bytes.
pub const MAX_SIGNATURE: usize = 600;
/// A TPM2B_PUBLIC of an RSA key of 4096 bits is about 600 bytes.
pub const MAX_PUBLIC: usize = 1024;
/// EK certificates are 0.8 to 2 kB; the registrar's column holds 2048 characters.
pub const MAX_CERTIFICATE: usize = 4096;
/// A ticket seals a session token of about 80 bytes and an AK name.
pub const MAX_TICKET: usize = 512;
/// The number in an RSA signature, up to 4096 bits.
pub const MAX_RSA_SIGNATURE: usize = 512;
/// 24 PCRs of 32 bytes.
pub const MAX_PCR_VALUES: usize = 24 * 32;
/// IMA lines inside one evidence, packed and unpacked: what a log may grow by between offer and quote. Above that the
/// log goes as blobs.
pub const MAX_INLINE_IMA: usize = 768 * 1024;
/// One part of a log, as it travels.
pub const MAX_PART: usize = 64 * 1024;
/// IMA lines of one part, unpacked; a single line may be as long.
pub const MAX_PART_LINES: usize = 1024 * 1024;
/// A UEFI log; the largest known are below 100 kB.
pub const MAX_UEFI_LOG: u32 = 4 * 1024 * 1024;
/// The registrar's blob for an RSA EK is 336 bytes.
pub const MAX_CREDENTIAL: usize = 2048;
/// What makes a `Hello` as large as a payload may be.
pub const MAX_PADDING: usize = crate::fragment::MAX_PAYLOAD;
/// `Enrol` and `Ready` come unasked, so they are small and never fragmented.
pub const MAX_FIRST_CONTACT: usize = 8 * 1024;
