//! IMA lines in columns: kinds, names, numbers; digests and signatures apart, as they do not compress.
//!
//! ```text
//! packed   form (1 byte)  [reference tag (2)]  stream length  stream (a zstd frame, or as it is)  digests and signatures
//! stream   runs { kind, count }  texts, each with a newline  numbers and short byte strings, line after line
//! ```
//!
//! A line goes into columns only if it is exactly what the columns give back; any other goes as text. Lines that are not
//! smaller in columns go as they are.

mod line;
mod pack;
mod unpack;

pub(super) use line::Measured;
pub use pack::pack_ima;
pub use unpack::unpack_ima;

/// The lines as they are.
const PLAIN: u8 = 0;
/// The lines in a zstd frame.
const SQUEEZED: u8 = 1;
/// Columns, their stream as it is.
const COLUMNS: u8 = 2;
/// Columns, their stream in a zstd frame.
const SQUEEZED_COLUMNS: u8 = 3;
/// Added to the form of columns that use a reference.
const REFERENCED: u8 = 4;

/// Of a signature so much is compressed: type, version, hash, key id and size are alike in all of one signer
/// (Linux `security/integrity/integrity.h`, struct signature_v2_hdr). The rest is as random as a digest.
const SIGNATURE_HEADER: usize = 9;

/// In place of a signature's length plus one: it is the reference's.
const AS_KNOWN: u64 = 0;

/// What names in such logs are made of, the likeliest last.
const NAMES: &[u8] = include_bytes!("names.txt");
/// How often which letters and lengths come in the columns of ten lines, as a zstd dictionary begins (RFC 8878, 5): made
/// with `ZDICT_finalizeDictionary` from names of a Debian system. Without it, tables in each frame cost a few percent.
const FREQUENCIES: &[u8] = include_bytes!("names.entropy");

fn dictionary() -> Vec<u8> {
    [FREQUENCIES, NAMES].concat()
}
