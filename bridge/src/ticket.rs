//! Tickets: the session token of a device, sealed, kept by the device.
//!
//! A bridge that restarts, or another replica, opens the ticket that comes with `Ready` and needs no new session, of which Keylime allows
//! few. Invariant: a ticket opens only for the agent and the verifier it was made for, under a key of the key file; anything else is no ticket.
//!
//! Form: version, nonce, then AES-256-GCM over {AK name, token}.

use crate::keylime::SessionToken;
use keylime_mqtt_broker_config::is_exposed;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::Zeroizing;

/// First byte of every ticket
const VERSION: u8 = 2;
/// Bytes of an AES-256 key
const KEY_LEN: usize = 32;
/// Keys in one file: the present one and some that are being retired
const MAX_KEYS: usize = 16;
/// Largest key file read, bytes
const MAX_KEY_FILE: usize = 16 * 1024;
/// Largest ticket made or looked at, bytes; ours have about 180
pub const MAX_TICKET: usize = keylime_mqtt_schemas::messages::limits::MAX_TICKET;
/// Largest AK name, bytes: an algorithm and a SHA-512 digest
const MAX_NAME: usize = 66;

/// The keys of the key file
#[derive(Debug)]
pub struct TicketKeys {
    keys: Vec<LessSafeKey>,
    random: SystemRandom,
}

/// What a ticket says
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The device's token, which the verifier may have dropped since
    pub token: SessionToken,
    /// Name of the AK that proved itself for this token
    pub ak_name: Vec<u8>,
}

/// A key file that cannot be used
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// Cannot be read, or not made where it was missing
    #[error(
        "ticket_key_file {path}: cannot be read or created ({source}); its directory must exist and belong to the bridge's user"
    )]
    Io {
        /// The file
        path: PathBuf,
        /// What the system said
        source: std::io::Error,
    },
    /// Others can read the keys
    #[error("ticket_key_file {path}: has mode {mode:o}, so others may read the keys; chmod 600 it")]
    Mode {
        /// The file
        path: PathBuf,
        /// Its permission bits
        mode: u32,
    },
    /// A line that is no key
    #[error(
        "ticket_key_file {path}, line {line}: is not a key of 64 hex digits (make one with: openssl rand -hex 32)"
    )]
    Line {
        /// The file
        path: PathBuf,
        /// Counted from 1
        line: usize,
    },
    /// None, or too many
    #[error("ticket_key_file {path}: must hold 1 to {MAX_KEYS} keys, one per line")]
    Count {
        /// The file
        path: PathBuf,
    },
    /// No randomness
    #[error("the system gives no random bytes for a ticket key")]
    Random,
}

/// A ticket could not be sealed; the device proves itself again instead
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a ticket could not be sealed")]
pub struct SealError;

impl TicketKeys {
    /// Reads the key file, or makes one with a fresh key and mode 0600
    ///
    /// # Errors
    /// When the file cannot be used, with what to do.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let io = |source| KeyFileError::Io { path: path.to_owned(), source };
        let random = SystemRandom::new();
        if !path.try_exists().map_err(io)? {
            create(path, &random)?;
        }
        // what is read is the file whose mode was looked at, whatever takes its place meanwhile
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let mode = metadata.mode() & 0o777;
        if is_exposed(path, mode) {
            return Err(KeyFileError::Mode { path: path.to_owned(), mode });
        }
        if metadata.len() > MAX_KEY_FILE as u64 {
            return Err(KeyFileError::Count { path: path.to_owned() });
        }
        // with room for all of it, for what has to be moved leaves a copy
        let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE));
        file.take(MAX_KEY_FILE as u64).read_to_string(&mut text).map_err(io)?;
        let mut keys = Vec::new();
        for (n, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fault = || KeyFileError::Line { path: path.to_owned(), line: n + 1 };
            let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
            hex::decode_to_slice(line.trim(), bytes.as_mut_slice()).map_err(|_| fault())?;
            let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).map_err(|_| fault())?;
            keys.push(LessSafeKey::new(key));
        }
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(KeyFileError::Count { path: path.to_owned() });
        }
        Ok(Self { keys, random })
    }

    /// Seals under the first key
    ///
    /// # Errors
    /// When the system gives no randomness or a field is out of bounds.
    pub fn seal(&self, agent: &str, verifier: &str, ticket: &Ticket) -> Result<Vec<u8>, SealError> {
        let key = self.keys.first().ok_or(SealError)?;
        let name_len = u8::try_from(ticket.ak_name.len()).map_err(|_| SealError)?;
        let mut nonce = [0u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError)?;
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_TICKET));
        content.push(name_len);
        content.extend_from_slice(&ticket.ak_name);
        content.extend_from_slice(ticket.token.expose().as_bytes());
        let nonce_of_use = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce_of_use, bound_to(agent, verifier), &mut content)
            .map_err(|_| SealError)?;
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&content);
        sealed.extend_from_slice(tag.as_ref());
        if sealed.len() > MAX_TICKET { Err(SealError) } else { Ok(sealed) }
    }

    /// Opens under any key; `None` for everything that is not a ticket of this agent and verifier
    pub fn open_ticket(&self, agent: &str, verifier: &str, sealed: &[u8]) -> Option<Ticket> {
        if sealed.len() > MAX_TICKET {
            return None;
        }
        let (version, rest) = sealed.split_first()?;
        let (nonce, content) = rest.split_first_chunk::<NONCE_LEN>()?;
        if *version != VERSION {
            return None;
        }
        self.keys.iter().find_map(|key| {
            // opening overwrites its input even when it fails
            let mut content = Zeroizing::new(content.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let plain = key.open_in_place(nonce, bound_to(agent, verifier), &mut content).ok()?;
            parse(plain)
        })
    }
}

fn parse(plain: &[u8]) -> Option<Ticket> {
    let (name_len, rest) = plain.split_first()?;
    let (ak_name, token) = rest.split_at_checked(usize::from(*name_len))?;
    if ak_name.len() > MAX_NAME {
        return None;
    }
    let token = Zeroizing::new(std::str::from_utf8(token).ok()?.to_owned());
    Some(Ticket { token: SessionToken::new(token).ok()?, ak_name: ak_name.to_vec() })
}

/// Agent and verifier, unambiguously: an id holds no NUL
fn bound_to(agent: &str, verifier: &str) -> Aad<Vec<u8>> {
    let mut bytes = b"keylime-mqtt ticket\0".to_vec();
    bytes.extend_from_slice(agent.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(verifier.as_bytes());
    Aad::from(bytes)
}

fn create(path: &Path, random: &SystemRandom) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    random.fill(key.as_mut_slice()).map_err(|_| KeyFileError::Random)?;
    let line = Zeroizing::new(hex::encode(key.as_slice()));
    // Made beside its place and then put there whole: a full disk or a kill in between would leave a file without a key,
    // with which no bridge starts. Under a name of its own, for bridges that share the file may start at once.
    let mut name = [0u8; 4];
    random.fill(&mut name).map_err(|_| KeyFileError::Random)?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", hex::encode(name)));
    let unfinished = Path::new(&unfinished);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        // fails where another bridge was faster: its key is the one
        fs::hard_link(unfinished, path)
    };
    let written = write();
    fs::remove_file(unfinished).ok();
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(io(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: &str = "https://verifier:8881/";

    fn ticket() -> Ticket {
        let token = SessionToken::new(Zeroizing::new("uuid.secret".to_owned())).unwrap();
        Ticket { token, ak_name: vec![0, 11, 1, 2, 3] }
    }

    fn write_keys(path: &Path, text: &str, mode: u32) {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_ticket_opens_for_its_own_agent_and_verifier_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let keys = TicketKeys::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let sealed = keys.seal("a", VERIFIER, &ticket()).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(keys.open_ticket("a", VERIFIER, &sealed), Some(ticket()));
        assert_eq!(keys.open_ticket("b", VERIFIER, &sealed), None);
        assert_eq!(keys.open_ticket("a", "https://other/", &sealed), None);
        // after a restart too
        assert_eq!(TicketKeys::open(&path).unwrap().open_ticket("a", VERIFIER, &sealed), Some(ticket()));
    }

    #[test]
    fn any_changed_or_cut_ticket_is_no_ticket() {
        let dir = tempfile::tempdir().unwrap();
        let keys = TicketKeys::open(&dir.path().join("keys")).unwrap();
        let sealed = keys.seal("a", VERIFIER, &ticket()).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(keys.open_ticket("a", VERIFIER, &changed), None);
            assert_eq!(keys.open_ticket("a", VERIFIER, &sealed[..at]), None);
        }
        assert_eq!(keys.open_ticket("a", VERIFIER, &vec![1; MAX_TICKET + 1]), None);
    }

    #[test]
    fn bridges_that_start_at_once_with_one_key_file_have_one_key_and_leave_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let open = || TicketKeys::open(&path).unwrap();
        let all: Vec<TicketKeys> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..16).map(|_| scope.spawn(open)).collect();
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let sealed = all[0].seal("a", VERIFIER, &ticket()).unwrap();
        assert!(all.iter().all(|keys| keys.open_ticket("a", VERIFIER, &sealed).is_some()));
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["keys"]);
    }

    #[test]
    fn a_key_file_with_more_keys_than_are_ever_in_use_or_of_any_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let keys = |n: usize| format!("{}\n", "11".repeat(KEY_LEN)).repeat(n);
        write_keys(&path, &keys(MAX_KEYS), 0o600);
        TicketKeys::open(&path).unwrap();
        for text in [keys(MAX_KEYS + 1), "#\n".repeat(MAX_KEY_FILE), String::new()] {
            write_keys(&path, &text, 0o600);
            assert!(matches!(TicketKeys::open(&path), Err(KeyFileError::Count { .. })));
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        write_keys(&old, &format!("{}\n", "11".repeat(32)), 0o600);
        write_keys(&new, &format!("# present\n{}\n{}\n", "22".repeat(32), "11".repeat(32)), 0o600);
        let (old, new) = (TicketKeys::open(&old).unwrap(), TicketKeys::open(&new).unwrap());
        let sealed_by_old = old.seal("a", VERIFIER, &ticket()).unwrap();
        assert_eq!(new.open_ticket("a", VERIFIER, &sealed_by_old), Some(ticket()));
        let sealed_by_new = new.seal("a", VERIFIER, &ticket()).unwrap();
        assert_eq!(old.open_ticket("a", VERIFIER, &sealed_by_new), None);
    }

    #[test]
    fn a_key_file_that_others_can_read_or_that_holds_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = "33".repeat(32);
        let cases = [("readable", key.as_str(), 0o644), ("empty", "", 0o600), ("short", "1234", 0o600)];
        for (name, text, mode) in cases {
            let path = dir.path().join(name);
            write_keys(&path, text, mode);
            let error = TicketKeys::open(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
