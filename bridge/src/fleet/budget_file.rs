//! The session budget over a restart of the bridge: a bridge that crashes again and again, each time with a full budget, would go
//! over Keylime's limit.
//!
//! An empty file, for a full disk has room for it; its modification time says since when the budget has been filling.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Added to the name of `ticket_key_file`
const SUFFIX: &str = ".session-budget";

#[derive(Debug)]
pub(super) struct BudgetFile {
    path: PathBuf,
    /// `None` where it could not be made
    file: Option<File>,
}

impl BudgetFile {
    /// The file beside the ticket keys
    pub(super) fn beside(ticket_key_file: &Path) -> Self {
        let mut path = ticket_key_file.as_os_str().to_owned();
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        let opened = OpenOptions::new().write(true).open(&path).or_else(|_| {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_modified(SystemTime::UNIX_EPOCH).map(|()| file)
        });
        if let Err(error) = &opened {
            tracing::warn!(
                file = %path.display(), %error,
                "the session budget is not kept over a restart: let the directory of ticket_key_file belong to the bridge's user"
            );
        }
        Self { path, file: opened.ok() }
    }

    /// For how long the budget has been filling; a clock that was set back is no reason to open more sessions
    pub(super) fn filling_for(&self) -> Duration {
        let Some(file) = &self.file else { return Duration::MAX };
        let since = file.metadata().and_then(|metadata| metadata.modified());
        since.map_or(Duration::MAX, |since| since.elapsed().unwrap_or_default())
    }

    /// Keeps that it has been filling for this long
    pub(super) fn keep(&self, filling_for: Duration) {
        let Some(file) = &self.file else { return };
        let now = SystemTime::now();
        if let Err(error) = file.set_modified(now.checked_sub(filling_for).unwrap_or(now)) {
            tracing::warn!(file = %self.path.display(), %error, "the session budget is not kept over a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    const HALF_A_MINUTE: Duration = Duration::from_secs(30);
    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_goes_on_filling() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("ticket.key");
        assert!(BudgetFile::beside(&keys).filling_for() > DAY, "nothing was spent yet");
        BudgetFile::beside(&keys).keep(HALF_A_MINUTE);
        let filling = BudgetFile::beside(&keys).filling_for();
        assert!(filling >= HALF_A_MINUTE && filling < DAY, "{filling:?}");
        let file = std::fs::metadata(dir.path().join("ticket.key.session-budget")).unwrap();
        assert_eq!((file.mode() & 0o777, file.len()), (0o600, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_the_budget_empty_and_a_missing_directory_leaves_it_full() {
        let dir = tempfile::tempdir().unwrap();
        let kept = BudgetFile::beside(&dir.path().join("ticket.key"));
        kept.file.as_ref().unwrap().set_modified(SystemTime::now() + DAY).unwrap();
        assert_eq!(kept.filling_for(), Duration::ZERO);
        let nowhere = BudgetFile::beside(&dir.path().join("missing").join("ticket.key"));
        nowhere.keep(Duration::ZERO);
        assert_eq!(nowhere.filling_for(), Duration::MAX);
    }
}
