//! What a device brings along: its token, its ticket, and what it says of itself.

use std::fmt;

use zeroize::Zeroizing;

use crate::messages::limits::MAX_PUBLIC;
use crate::messages::{AkName, Bounded, Ready, ReadyTag, Signed};
use crate::statement::StatedBoot;

/// A session token of the verifier. Never shown, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes a token.
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// The token itself, for the `Authorization` header and for sealing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a ticket held, once its seal was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedTicket {
    /// The session token.
    pub token: Token,
    /// The AK that was proven for it.
    pub ak: AkName,
}

/// What a device said of itself in its last `Ready`. Claims, until the AK is trusted and the statement checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The boot and what belongs to it, as [`Self::statement`] says.
    pub stated: StatedBoot,
    /// TPM2B_PUBLIC of the AK.
    pub ak_public: Bounded<MAX_PUBLIC>,
    /// The name of that AK.
    pub ak: AkName,
    /// The boot's statement.
    pub statement: Signed,
    /// Lines in the IMA log.
    pub ima_entries: Option<u64>,
    /// Names all this but the length of the IMA log.
    pub tag: ReadyTag,
}

impl Facts {
    /// Reads a `Ready`; nothing when its AK is not a public area with a SHA-256 name.
    pub(super) fn of(ready: Ready) -> Option<Self> {
        let ak = AkName::of_public(ready.ak_public.as_slice())?;
        let tag = ready.tag();
        Some(Self {
            stated: StatedBoot::from(&ready),
            ak_public: ready.ak_public,
            ak,
            statement: ready.statement,
            ima_entries: ready.ima_entries,
            tag,
        })
    }
}
