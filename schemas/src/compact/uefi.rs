//! placeholder
use super::frame;
use super::{CompactError, Reference};
/// Packs
pub fn pack_uefi(log: &[u8], _reference: Option<&Reference>) -> Vec<u8> {
    match frame::compress(log, &[]) {
        Some(f) => [&[1], f.as_slice()].concat(),
        None => [&[0], log].concat(),
    }
}
/// Unpacks
pub fn unpack_uefi(
    packed: &[u8],
    size: usize,
    _reference: Option<&Reference>,
) -> Result<Vec<u8>, CompactError> {
    match packed {
        [0, r @ ..] if r.len() == size => Ok(r.to_vec()),
        [1, r @ ..] => frame::expand(r, &[], size),
        _ => Err(CompactError::Malformed("an unknown form")),
    }
}
