//! Certificates and key of one broker, taken up again when their files change.
//!
//! Invariant: there is always a usable TLS configuration. Files that cannot be used leave the present one in
//! place, with a warning that names the file; files that did not change leave it too, and with it the tickets
//! that make a reconnect cheap.

use std::{
    hash::{BuildHasher, RandomState},
    path::Path,
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

    /// The file of this client's certificate.
    pub(crate) fn certificate_file(&self) -> &Path {
        &self.files.cert
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;

    /// A self-signed certificate as CA and as its own, in a directory of its own.
    fn directory() -> (TempDir, TlsFiles) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name| dir.path().join(name);
        let files = TlsFiles {
            ca: file("ca.pem"),
            cert: file("client.pem"),
            key: file("client.key"),
            allow_tls12: false,
            alpn: Vec::new(),
        };
        issue(&files);
        fs::copy(&files.cert, &files.ca).expect("a CA file");
        (dir, files)
    }

    fn issue(files: &TlsFiles) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["client".to_owned()]).expect("parameters");
        fs::write(&files.cert, params.self_signed(&key).expect("a certificate").pem()).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("permissions");
    }

    #[test]
    fn what_did_not_change_keeps_its_configuration_and_so_its_tls_sessions() {
        let (_dir, files) = directory();
        let mut credentials = Credentials::load(files.clone()).expect("usable files");
        let before = Arc::clone(credentials.config());
        // the same bytes written again are no change
        fs::write(&files.cert, fs::read(&files.cert).expect("read")).expect("written");
        assert_eq!(credentials.look(), Change::None);
        assert!(Arc::ptr_eq(&before, credentials.config()));
    }

    #[test]
    fn a_changed_identity_and_changed_roots_are_told_apart() {
        let (_dir, files) = directory();
        let mut credentials = Credentials::load(files.clone()).expect("usable files");
        fs::copy(&files.cert, &files.ca).expect("the same");
        issue(&files);
        assert_eq!(credentials.look(), Change::Identity);
        assert_eq!(credentials.look(), Change::None);
        fs::copy(&files.cert, &files.ca).expect("another CA");
        assert_eq!(credentials.look(), Change::Roots);
    }

    #[tokio::test(start_paused = true)]
    async fn unusable_files_leave_what_is_in_use_and_are_complained_of_once_they_stay() {
        let (_dir, files) = directory();
        let mut credentials = Credentials::load(files.clone()).expect("usable files");
        let before = Arc::clone(credentials.config());
        let good = fs::read(&files.key).expect("the key");
        let said = |credentials: &Credentials| credentials.trouble.as_ref().map(|trouble| trouble.said);
        // half of a renewal: the key of the next certificate
        fs::write(&files.key, KeyPair::generate().expect("a key").serialize_pem()).expect("written");
        assert_eq!((credentials.look(), said(&credentials)), (Change::None, Some(false)));
        advance(SETTLING).await;
        assert_eq!((credentials.look(), said(&credentials)), (Change::None, Some(true)));
        let reason = credentials.trouble.clone().expect("trouble").reason;
        assert!(reason.contains("client.pem") && reason.contains("client.key"), "{reason}");
        assert!(Arc::ptr_eq(&before, credentials.config()));
        fs::write(&files.key, good).expect("written");
        assert_eq!((credentials.look(), said(&credentials)), (Change::None, None));
    }
}
