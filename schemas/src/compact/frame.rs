//! One zstd frame (RFC 8878) without its magic number, with a dictionary that both sides have.
//!
//! The content's size is in the frame, so that a receiver allocates what it needs and no more.

use super::CompactError;
use zstd::zstd_safe::{CCtx, CParameter, ContentSizeError, DCtx, compress_bound, get_frame_content_size};

/// RFC 8878, 3.1.1: the same in every frame, so it does not travel.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// What a log usually is; zstd then takes about 2 MiB while it runs.
const LEVEL: i32 = 19;
/// From here on memory matters more than the last percent, in bytes.
const LARGE: usize = 256 * 1024;
/// For what is large.
const LARGE_LEVEL: i32 = 9;
/// So far back it looks (a power of two, in bytes), which bounds its tables.
const LARGE_WINDOW: u32 = 18;

/// The frame, or nothing when it would not be smaller than the bytes themselves.
///
/// The dictionary is content alone, or begins with tables (RFC 8878, 5).
pub(super) fn compress(bytes: &[u8], dictionary: &[u8]) -> Option<Vec<u8>> {
    let mut context = CCtx::try_create()?;
    if bytes.len() + dictionary.len() > LARGE {
        context.set_parameter(CParameter::CompressionLevel(LARGE_LEVEL)).ok()?;
        context.set_parameter(CParameter::WindowLog(LARGE_WINDOW)).ok()?;
    } else {
        context.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
    }
    context.set_parameter(CParameter::ChecksumFlag(false)).ok()?;
    context.set_parameter(CParameter::DictIdFlag(false)).ok()?;
    context.load_dictionary(dictionary).ok()?;
    let mut frame = Vec::with_capacity(compress_bound(bytes.len()));
    context.compress2(&mut frame, bytes).ok()?;
    let bare = frame.strip_prefix(&MAGIC)?;
    (bare.len() < bytes.len()).then(|| bare.to_vec())
}

/// What [`compress`] was given, if that is at most `limit` bytes.
pub(super) fn expand(bare: &[u8], dictionary: &[u8], limit: usize) -> Result<Vec<u8>, CompactError> {
    const BROKEN: CompactError = CompactError::Malformed("not a zstd frame with its size");
    let frame = [&MAGIC, bare].concat();
    let size = match get_frame_content_size(&frame) {
        Ok(Some(size)) => usize::try_from(size).map_err(|_| CompactError::TooLarge(limit))?,
        Ok(None) | Err(ContentSizeError) => return Err(BROKEN),
    };
    if size > limit {
        return Err(CompactError::TooLarge(limit));
    }
    let mut context = DCtx::try_create().ok_or(BROKEN)?;
    let mut bytes = Vec::with_capacity(size);
    context.decompress_using_dict(&mut bytes, &frame, dictionary).map_err(|_| BROKEN)?;
    if bytes.len() == size { Ok(bytes) } else { Err(BROKEN) }
}
