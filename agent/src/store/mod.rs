//! The little that must outlive a restart of the agent: one file, readable by its owner alone, replaced as a whole; and
//! beside it the clock shown last ([`clock`]), which changes with every attestation.
//!
//! What is lost when it is lost: the AK. The registrar refuses another AK for a known id, so a file that cannot be read is
//! never thrown away silently; the operator decides.

mod clock;
mod written;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keylime_mqtt_schemas::messages::limits::MAX_TICKET;
use keylime_mqtt_schemas::messages::{AkName, Bounded};
use nix::fcntl::{Flock, FlockArg};

use crate::logs::boot::BootRecord;
use crate::tpm::{Clock, SavedAk};

use clock::ShownClock;
use written::Written;

/// The file inside `state_dir`.
const FILE: &str = "state.json";
/// Beside it, held while an agent runs.
const LOCK: &str = "lock";
/// What a new state is called before it takes the place of the old one.
const UNFINISHED: &str = ".state-";
/// Far above what is kept; what is larger is not ours.
const LARGEST: u64 = 64 * 1024;
/// Group and others have no business in the file.
const ACCESSIBLE: u32 = 0o077;
/// Nor may they replace it.
const WRITABLE: u32 = 0o022;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system's, or permissions.
    #[error("state_dir: {} cannot be {what}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operator's: others could read the ticket or swap the AK.
    #[error("state_dir: {} is open to others (mode {mode:03o}); run `chmod go= {}`", .path.display(), .path.display())]
    OpenToOthers {
        /// File or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operator's: only deliberately is an AK given up.
    #[error(
        "state_dir: {} is damaged ({reason}). Restore it from a backup, or move it away to start with a new \
         attestation key; the device then has to be removed from Keylime first (keylime_tenant -c delete, -c regdelete)",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operator's: two agents with one AK and one id would throw each other out of the broker.
    #[error("state_dir: another agent runs with {}; stop it, or give this one a directory of its own", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The AK.
    pub ak: Option<SavedAk>,
    /// The AK that the registrar accepted.
    pub enrolled: Option<AkName>,
    /// The boot described last.
    pub boot: Option<BootRecord>,
    /// The clock of the last quote sent as evidence.
    pub last_quote: Option<Clock>,
    /// The bridge's ticket, opaque.
    pub ticket: Option<Bounded<MAX_TICKET>>,
}

/// The state and the file it is in.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    state: State,
    shown: ShownClock,
    /// Released when the agent ends, however it ends.
    lock: Option<Flock<File>>,
}

impl Store {
    /// Opens or creates the state for the one agent that runs with it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        create(directory)?;
        let mut store = Self::peek(directory)?;
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("opened", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::InUse { path: directory.to_owned() })?;
        store.lock = Some(lock);
        remove_unfinished(directory);
        Ok(store)
    }

    /// Looks at the state beside an agent that may be running; creates nothing.
    pub fn peek(directory: &Path) -> Result<Self, StoreError> {
        refuse_if_open(directory, WRITABLE)?;
        let mut state = load(&directory.join(FILE))?;
        let shown = ShownClock::in_directory(directory);
        // Of a clock the later one counts; a TPM that starts at nothing comes with another AK, and then there is none.
        state.last_quote = state.last_quote.map(|durable| shown.latest(durable));
        Ok(Self { state, directory: directory.to_owned(), shown, lock: None })
    }

    /// Whether an agent runs with this directory. Creates nothing.
    pub fn is_in_use(directory: &Path) -> bool {
        let Ok(file) = File::open(directory.join(LOCK)) else { return false };
        Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
    }

    /// What is kept.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Keeps the clock of a quote that is about to be sent; see [`clock`] for what that withstands.
    pub fn show_clock(&mut self, clock: Clock) -> Result<(), StoreError> {
        if self.state.last_quote.is_some() && self.shown.is_kept_durably(clock) {
            self.state.last_quote = Some(clock);
            return self.shown.overwrite(clock);
        }
        self.update(|state| state.last_quote = Some(clock))?;
        self.shown.keep_durably(clock)
    }

    /// Changes what is kept; on return it is on the disk. Nothing is written when nothing changed.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let mut state = self.state.clone();
        change(&mut state);
        if state != self.state {
            create(&self.directory)?;
            save(&self.directory, &state)?;
            self.state = state;
        }
        Ok(())
    }
}

fn load(path: &Path) -> Result<State, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::default()),
        opened => opened.map_err(io("read", path))?,
    };
    refuse_if_open(path, ACCESSIBLE)?;
    let metadata = file.metadata().map_err(io("read", path))?;
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    if metadata.len() > LARGEST {
        return Err(damaged(format!("{} bytes", metadata.len())));
    }
    let written: Written =
        serde_json::from_reader(std::io::BufReader::new(file)).map_err(|e| damaged(e.to_string()))?;
    State::try_from(written).map_err(|field| damaged(format!("{field} is not what was written")))
}

fn create(directory: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("created", directory))
}

fn refuse_if_open(path: &Path, bits: u32) -> Result<(), StoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & bits != 0 => {
            Err(StoreError::OpenToOthers { path: path.to_owned(), mode: metadata.mode() & 0o777 })
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("read", path)(error)),
        _ => Ok(()),
    }
}

/// A new file in place of the old one: a power cut leaves the one or the other.
fn save(directory: &Path, state: &State) -> Result<(), StoreError> {
    let path = directory.join(FILE);
    let written = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        serde_json::to_writer_pretty(&mut file, &Written::from(state))?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(directory)?.sync_all()
    };
    written().map_err(io("written", &path))
}

/// What agents left that were killed while they wrote. Under the lock nobody else writes.
fn remove_unfinished(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(file = %entry.path().display(), %error, "an unfinished state stays");
        }
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn full() -> State {
        State {
            ak: Some(SavedAk { public: vec![1; 280], private: vec![2; 222] }),
            enrolled: Some([3; 34].into()),
            boot: Some(BootRecord { marker: [4; 16].into(), time: 5 }),
            last_quote: Some(Clock { clock_ms: 6, reset_count: 7, restart_count: 8, safe: true }),
            ticket: Some(vec![9; 200].try_into().unwrap()),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart_and_readable_by_the_owner_alone() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("new/state");
        let mut store = Store::open(&directory).unwrap();
        assert_eq!(store.state(), &State::default());
        store.update(|state| *state = full()).unwrap();
        drop(store);
        assert_eq!(Store::open(&directory).unwrap().state(), &full());
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "no temporary files stay: {left:?}");
    }

    #[test]
    fn what_a_killed_agent_left_half_written_is_gone_after_the_next_start() {
        let base = tempfile::tempdir().unwrap();
        Store::open(base.path()).unwrap().update(|state| *state = full()).unwrap();
        for left in 0..3 {
            fs::write(base.path().join(format!(".state-left{left}")), "{").unwrap();
        }
        // beside an agent that runs nothing is touched
        Store::peek(base.path()).unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 5);
        assert_eq!(Store::open(base.path()).unwrap().state(), &full());
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2, "the state and the lock");
    }

    #[test]
    fn a_state_that_others_can_read_is_refused_with_the_remedy() {
        let base = tempfile::tempdir().unwrap();
        Store::open(base.path()).unwrap().update(|state| *state = full()).unwrap();
        let path = base.path().join(FILE);
        for open in [0o640, 0o604, 0o622] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let error = Store::open(base.path()).unwrap_err();
            assert!(matches!(error, StoreError::OpenToOthers { mode, .. } if mode == open));
            assert!(error.to_string().contains("chmod go="), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(Store::open(base.path()), Err(StoreError::OpenToOthers { mode: 0o770, .. })));
    }

    #[test]
    fn looking_at_a_state_that_is_not_there_creates_nothing() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("state");
        assert_eq!(Store::peek(&directory).unwrap().state(), &State::default());
        assert!(!directory.exists());
        Store::peek(&directory).unwrap().update(|state| *state = full()).unwrap();
        assert_eq!(Store::peek(&directory).unwrap().state(), &full());
    }

    #[test]
    fn a_damaged_state_is_never_overwritten_and_the_operator_told_what_it_costs() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join(FILE);
        let mut store = Store::open(base.path()).unwrap();
        store.update(|state| *state = full()).unwrap();
        drop(store);
        let good = fs::read_to_string(&path).unwrap();
        let damages = [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("\"ak_private\"", "\"ak_secret\""),
            good.replace(&STANDARD.encode([2; 222]), "?"),
            good.replace(&hex::encode([4; 16]), "04"),
            "x".repeat(70_000),
        ];
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            let error = Store::open(base.path()).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("regdelete"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }

    #[test]
    fn two_agents_cannot_run_with_one_state_but_one_may_look() {
        let base = tempfile::tempdir().unwrap();
        let running = Store::open(base.path()).unwrap();
        assert!(matches!(Store::open(base.path()), Err(StoreError::InUse { .. })));
        Store::peek(base.path()).unwrap();
        assert!(Store::is_in_use(base.path()));
        drop(running);
        assert!(!Store::is_in_use(base.path()));
        Store::open(base.path()).unwrap();
    }

    #[test]
    fn nothing_secret_shows_in_debug_output() {
        let shown = format!("{:?}", full());
        assert!(!shown.contains("[2, 2") && !shown.contains("[9, 9"), "{shown}");
    }
}
