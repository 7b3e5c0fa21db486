//! The fields of IMA's templates, hashed as the kernel hashes them and never copied.

use super::ImaProblem;
use sha2::Digest;
use sha2::digest::Output;

/// The `ima` template holds a bare SHA-1 or MD5 digest, padded to this.
const OLD_DIGEST_LEN: usize = 20;
/// The `ima` template's name field: 255 bytes and a NUL.
const OLD_NAME_LEN: usize = 256;
/// Hex is decoded in pieces of this many bytes.
const PIECE: usize = 64;

/// The hash of a template's data, from the text of its fields.
pub(crate) fn hash<H: Digest>(template: &[u8], text: &[u8]) -> Result<Output<H>, ImaProblem> {
    let mut hash = H::new();
    match template {
        b"ima" => {
            let [digest, name] = split(text)?;
            old(&mut hash, digest, name)?;
        }
        b"ima-ng" | b"ima-ngv2" => {
            let [digest, name] = split(text)?;
            digest_field(&mut hash, digest)?;
            name_field(&mut hash, name);
        }
        // a missing signature or buffer is an empty last field after its blank
        b"ima-sig" | b"ima-sigv2" | b"ima-buf" => {
            let [digest, name, bytes] = split(text)?;
            digest_field(&mut hash, digest)?;
            name_field(&mut hash, name);
            hex_field(&mut hash, bytes)?;
        }
        b"ima-modsig" => {
            let [digest, name, signature, modsig_digest, modsig] = split(text)?;
            digest_field(&mut hash, digest)?;
            name_field(&mut hash, name);
            hex_field(&mut hash, signature)?;
            if modsig_digest.is_empty() {
                length(&mut hash, 0);
            } else {
                digest_field(&mut hash, modsig_digest)?;
            }
            hex_field(&mut hash, modsig)?;
        }
        _ => return Err(ImaProblem::UnknownTemplate),
    }
    Ok(hash.finalize())
}

/// What is before the first blank, and what is after it.
pub(crate) fn cut(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b' ', text)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Digest, name and `N - 2` fields without blanks.
///
/// Older kernels leave blanks in names, so the name is whatever lies between the others.
pub(crate) fn split<const N: usize>(text: &[u8]) -> Result<[&[u8]; N], ImaProblem> {
    let (digest, mut rest) = cut(text).ok_or(ImaProblem::Malformed)?;
    let mut fields = [digest; N];
    for field in fields.iter_mut().skip(2).rev() {
        let at = memchr::memrchr(b' ', rest).ok_or(ImaProblem::Malformed)?;
        *field = rest.get(at + 1..).ok_or(ImaProblem::Malformed)?;
        rest = rest.get(..at).ok_or(ImaProblem::Malformed)?;
    }
    if let Some(name) = fields.get_mut(1) {
        *name = rest;
    }
    Ok(fields)
}

/// d-ng and d-ngv2: `sha256:<hex>`, `ima:sha256:<hex>`; hashed as length, algorithm with colon, NUL, digest.
fn digest_field(hash: &mut impl Digest, text: &[u8]) -> Result<(), ImaProblem> {
    match memchr::memrchr(b':', text).and_then(|at| text.split_at_checked(at + 1)) {
        Some((algorithm, digest)) => {
            length(hash, algorithm.len() + 1 + digest.len() / 2);
            hash.update(algorithm);
            hash.update([0]);
            hex(hash, digest)
        }
        None => hex_field(hash, text),
    }
}

/// n-ng: NUL-terminated.
fn name_field(hash: &mut impl Digest, name: &[u8]) {
    length(hash, name.len() + 1);
    hash.update(name);
    hash.update([0]);
}

fn hex_field(hash: &mut impl Digest, text: &[u8]) -> Result<(), ImaProblem> {
    length(hash, text.len() / 2);
    hex(hash, text)
}

fn hex(hash: &mut impl Digest, text: &[u8]) -> Result<(), ImaProblem> {
    let mut bytes = [0; PIECE];
    for piece in text.chunks(2 * PIECE) {
        let decoded = bytes.get_mut(..piece.len() / 2).ok_or(ImaProblem::Malformed)?;
        hex::decode_to_slice(piece, decoded).map_err(|_| ImaProblem::Malformed)?;
        hash.update(decoded);
    }
    Ok(())
}

fn length(hash: &mut impl Digest, bytes: usize) {
    hash.update(u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
}

/// The `ima` template: no lengths, fixed fields.
fn old(hash: &mut impl Digest, digest: &[u8], name: &[u8]) -> Result<(), ImaProblem> {
    if digest.len() > 2 * OLD_DIGEST_LEN || name.len() >= OLD_NAME_LEN {
        return Err(ImaProblem::Malformed);
    }
    let zeros = [0; OLD_NAME_LEN];
    hex(hash, digest)?;
    hash.update(zeros.get(digest.len() / 2..OLD_DIGEST_LEN).unwrap_or_default());
    hash.update(name);
    hash.update(zeros.get(name.len()..).unwrap_or_default());
    Ok(())
}
