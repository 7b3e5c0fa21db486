//! A session token: the one secret that Keylime gives to the bridge.
//!
//! Invariant: it is readable only by the code that puts it in a request header or seals it in a ticket; it never formats
//! itself and is wiped when dropped.

use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest token accepted, bytes; Keylime's is a UUID, a dot and 43 characters
const MAX_TOKEN_LEN: usize = 512;

/// A bearer token of one agent's session at the verifier
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken(Zeroizing<String>);

/// What is wrong with a would-be token
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Empty or above the bound
    #[error("a session token has 1 to {MAX_TOKEN_LEN} bytes, this one {0}")]
    Length(usize),
    /// Would not be safe in a header
    #[error("a session token is made of visible ASCII characters, this one is not")]
    Characters,
}

impl SessionToken {
    /// Takes over a token that may stand in an HTTP header
    ///
    /// # Errors
    /// When it is empty, too long, or holds anything but visible ASCII.
    pub fn new(token: Zeroizing<String>) -> Result<Self, TokenError> {
        if token.is_empty() || token.len() > MAX_TOKEN_LEN {
            return Err(TokenError::Length(token.len()));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        Ok(Self(token))
    }

    /// The secret itself: for a request header and for sealing only
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows_itself() {
        let token = SessionToken::new(Zeroizing::new("uuid.s3cr3t".to_owned())).unwrap();
        assert!(!format!("{token:?}").contains("s3cr3t"));
    }

    #[test]
    fn what_could_break_a_header_is_refused() {
        for bad in ["", "a b", "a\r\nX-Admin: 1", "ä"] {
            assert!(SessionToken::new(Zeroizing::new(bad.to_owned())).is_err(), "{bad:?}");
        }
        assert!(SessionToken::new(Zeroizing::new("a".repeat(MAX_TOKEN_LEN + 1))).is_err());
    }
}
