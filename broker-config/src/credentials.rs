//! Certificates and key of one broker, taken up again when their files change.
//!
//! Invariant: there is always a usable TLS configuration. Files that cannot be used leave the present one in
//! place, with a warning that names the file; files that did not change leave it too, and with it the tickets
//! that make a reconnect cheap.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::tls::{TlsBytes, TlsFileError, TlsFiles};

/// Certificate and key are two files, and no tool replaces two at once: so long they may disagree.
const SETTLING: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Credentials {
    files: TlsFiles,
    config: Arc<ClientConfig>,
    hasher: RandomState,
    taken_up: Prints,
    /// What is wrong with the files, since when, and whether that was said.
    trouble: Option<Trouble>,
}

/// Of the files' contents, to see a change without keeping a second copy of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prints {
    roots: u64,
    identity: u64,
}

#[derive(Debug, Clone)]
struct Trouble {
    reason: String,
    since: Instant,
    said: bool,
}

/// What a look at the files led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing new, or nothing usable.
    None,
    /// Other CAs: for the next connection.
    Roots,
    /// Another certificate or key: the present connection is of the old one.
    Identity,
}

impl Credentials {
    /// Reads the files for the first time, when an error still ends the start.
    pub(crate) fn load(files: TlsFiles) -> Result<Self, TlsFileError> {
        let hasher = RandomState::new();
        let bytes = files.read()?;
        let config = Arc::new(files.client_config(&bytes)?);
        let taken_up = Prints::of(&bytes, &hasher);
        Ok(Self { files, config, hasher, taken_up, trouble: None })
    }

    /// One for all connections until the files change, so that TLS sessions resume.
    pub(crate) fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Looks at the files and takes up what changed.
    pub(crate) fn look(&mut self) -> Change {
        let looked = self.files.read().and_then(|bytes| {
            let prints = Prints::of(&bytes, &self.hasher);
            if prints == self.taken_up {
                return Ok(None);
            }
            Ok(Some((self.files.client_config(&bytes)?, prints)))
        });
        match looked {
            Ok(Some((config, prints))) => self.take_up(config, prints),
            Ok(None) => {
                self.trouble = None;
                Change::None
            }
            Err(error) => {
                self.complain(error.to_string());
                Change::None
            }
        }
    }

    fn take_up(&mut self, config: ClientConfig, prints: Prints) -> Change {
        let change = if prints.identity == self.taken_up.identity { Change::Roots } else { Change::Identity };
        self.config = Arc::new(config);
        self.taken_up = prints;
        self.trouble = None;
        let files = &self.files;
        info!(ca_file = %files.ca.display(), cert_file = %files.cert.display(), "changed certificates were taken up");
        change
    }

    /// Once for each reason, and not before the files had time to settle.
    fn complain(&mut self, reason: String) {
        let now = Instant::now();
        match &mut self.trouble {
            Some(trouble) if trouble.reason == reason => {
                if !trouble.said && now.duration_since(trouble.since) >= SETTLING {
                    trouble.said = true;
                    warn!(reason, "changed certificates cannot be used; the ones in use stay in use");
                }
            }
            _ => self.trouble = Some(Trouble { reason, since: now, said: false }),
        }
    }
}

impl Prints {
    fn of(bytes: &TlsBytes, hasher: &RandomState) -> Self {
        Self {
            roots: hasher.hash_one(bytes.ca.as_slice()),
            identity: hasher.hash_one((bytes.cert.as_slice(), bytes.key.as_slice())),
        }
    }
}
