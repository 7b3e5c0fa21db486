//! The socket through which `waiting` asks the running bridge.
//!
//! A file would go on showing devices after the bridge has ended; a socket is true or silent. Whoever connects gets one JSON document and the end of the
//! stream. Invariant: mode 0600, so only the bridge's own user and root can ask.

use crate::fleet::{Snapshot, SnapshotRequest};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, unix};
use tokio::sync::{mpsc, oneshot};

/// Largest answer read: some hundred bytes for each of very many devices
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// A running bridge answers in milliseconds
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket cannot be served or asked
#[derive(Debug, Error)]
pub enum StatusError {
    /// Cannot be made
    #[error(
        "status_socket {path}: cannot be made ({source}); its directory must exist and belong to the bridge's user"
    )]
    Bind {
        /// Where
        path: PathBuf,
        /// What the system said
        source: io::Error,
    },
    /// Another bridge serves it
    #[error("status_socket {path}: a bridge is running that serves it; give each bridge its own")]
    InUse {
        /// Where
        path: PathBuf,
    },
    /// Something else is in its place
    #[error("status_socket {path}: is there and no socket; remove it or choose another path")]
    NotASocket {
        /// Where
        path: PathBuf,
    },
    /// Nobody answers
    #[error(
        "status_socket {path}: no bridge answers ({source}); is `keylime-mqtt-bridge run` running, and as this user?"
    )]
    Silent {
        /// Where
        path: PathBuf,
        /// What the system said
        source: io::Error,
    },
    /// Not a bridge of this version
    #[error(
        "status_socket {path}: answers in another form ({source}); bridge and command are of different versions"
    )]
    Foreign {
        /// Where
        path: PathBuf,
        /// What the parser said
        source: serde_json::Error,
    },
}

/// A served socket; removed when dropped
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Takes the place of a socket that a killed bridge left behind, of nothing else
    ///
    /// # Errors
    /// When a bridge serves it, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, StatusError> {
        let bind = |source| StatusError::Bind { path: path.to_owned(), source };
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(StatusError::NotASocket { path: path.to_owned() });
            }
            if UnixStream::connect(path).is_ok() {
                return Err(StatusError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(bind)?;
        }
        let listener = UnixListener::bind(path).map_err(bind)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(bind)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until the fleet is gone
    pub async fn serve(self, fleet: mpsc::Sender<SnapshotRequest>) {
        while let Ok((stream, _)) = self.listener.accept().await {
            let (request, answer) = oneshot::channel();
            if fleet.send(request).await.is_err() {
                return;
            }
            let Ok(snapshot) = answer.await else { return };
            // one after the other: there is one operator, and each is given little time
            let written = tokio::time::timeout(PATIENCE, write(stream.into_split().1, &snapshot)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!("who asked for the status did not read it");
            }
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the status socket was removed by someone else");
        }
    }
}

async fn write(mut stream: unix::OwnedWriteHalf, snapshot: &Snapshot) -> io::Result<()> {
    let json = serde_json::to_vec(snapshot).map_err(io::Error::other)?;
    stream.write_all(&json).await?;
    stream.shutdown().await
}

/// Asks the running bridge
///
/// # Errors
/// When none runs, or it answers in another form.
pub fn ask(path: &Path) -> Result<Snapshot, StatusError> {
    let silent = |source| StatusError::Silent { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).map_err(silent)?;
    serde_json::from_slice(&answer).map_err(|source| StatusError::Foreign { path: path.to_owned(), source })
}
