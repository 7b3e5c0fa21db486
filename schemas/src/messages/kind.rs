//! A message of several kinds is a map of one entry whose key is the kind's number.
//!
//! serde_cbor writes a kind's *name* for such an enum even in its packed form (it reads both), hence this by hand.

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Writes `{kind: body}`.
pub(super) fn entry<S: Serializer>(
    serializer: S,
    kind: u8,
    body: &impl Serialize,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(&kind, body)?;
    map.end()
}
