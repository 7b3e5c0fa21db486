//! The operator's admission list.
//!
//! A text file of lines `id = EK hash`, with `#` comments. Invariant: what is in force was read completely and without
//! a fault; a faulty change leaves the former list in force and is reported by file and line.

use super::ek_public::EkHash;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use thiserror::Error;

/// Largest list read, bytes: some hundred thousand devices
const MAX_LIST: u64 = 64 * 1024 * 1024;
/// Longest id (Keylime's database)
const MAX_ID: usize = 80;

/// A list that cannot be used
#[derive(Debug, Error)]
pub enum ListError {
    /// Not readable
    #[error(
        "[admission] list_file {path}: cannot be read ({source}); make the file, which may be empty, readable for the bridge's user"
    )]
    Unreadable {
        /// The file
        path: PathBuf,
        /// What the system said
        source: std::io::Error,
    },
    /// A line that is none
    #[error(
        "[admission] list_file {path}, line {line}: {problem}; write lines as: id = 64 hex digits of the EK hash"
    )]
    Line {
        /// The file
        path: PathBuf,
        /// Counted from 1
        line: usize,
        /// What is wrong with it
        problem: &'static str,
    },
}

/// Ids and the EKs that may bear them
#[derive(Debug)]
pub struct AdmissionList {
    path: PathBuf,
    /// As it was read last; none while it cannot be
    stamp: Option<Stamp>,
    ids: HashMap<String, EkHash>,
}

/// What it takes to look at the file without holding the list: it may be large, and its disk slow
#[derive(Debug)]
pub struct ListReader {
    path: PathBuf,
    stamp: Option<Stamp>,
}

/// A file that has changed, and what was read of it
#[derive(Debug)]
pub struct ChangedList {
    stamp: Option<Stamp>,
    ids: Result<HashMap<String, EkHash>, ListError>,
}

/// Changes whenever an editor or a tool has replaced or rewritten the file
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl AdmissionList {
    /// Reads a list
    ///
    /// # Errors
    /// When it cannot be read, or at its first faulty line.
    pub fn open(path: &Path) -> Result<Self, ListError> {
        let (stamp, ids) = read(path)?;
        Ok(Self { path: path.to_owned(), stamp: Some(stamp), ids })
    }

    /// For looking whether the file has changed
    pub fn reader(&self) -> ListReader {
        ListReader { path: self.path.clone(), stamp: self.stamp }
    }

    /// Puts a changed file in force
    ///
    /// # Errors
    /// As [`AdmissionList::open`], once per change; the former entries stay.
    pub fn adopt(&mut self, changed: ChangedList) -> Result<(), ListError> {
        self.stamp = changed.stamp;
        self.ids = changed.ids?;
        Ok(())
    }

    /// How many ids it has
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it has none
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The EK that may bear an id
    pub fn ek_hash_of(&self, id: &str) -> Option<&EkHash> {
        self.ids.get(id)
    }
}

impl ListReader {
    /// Reads the file if it has changed
    pub fn read(self) -> Option<ChangedList> {
        match stamp_of(&self.path) {
            Ok(stamp) if self.stamp == Some(stamp) => None,
            // the same fault as before
            Err(_) if self.stamp.is_none() => None,
            Ok(seen) => Some(match read(&self.path) {
                Ok((stamp, ids)) => ChangedList { stamp: Some(stamp), ids: Ok(ids) },
                Err(error) => ChangedList { stamp: Some(seen), ids: Err(error) },
            }),
            Err(error) => Some(ChangedList { stamp: None, ids: Err(error) }),
        }
    }
}

fn stamp_of(path: &Path) -> Result<Stamp, ListError> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata =
        fs::metadata(path).map_err(|source| ListError::Unreadable { path: path.to_owned(), source })?;
    Ok(Stamp { modified: metadata.modified().ok(), len: metadata.len(), inode: metadata.ino() })
}

fn read(path: &Path) -> Result<(Stamp, HashMap<String, EkHash>), ListError> {
    // taken first, so that a change during the reading is seen by the next refresh
    let stamp = stamp_of(path)?;
    let unreadable = |source| ListError::Unreadable { path: path.to_owned(), source };
    if stamp.len > MAX_LIST {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let mut ids = HashMap::new();
    for (n, line) in text.lines().enumerate() {
        let fault = |problem| ListError::Line { path: path.to_owned(), line: n + 1, problem };
        let content = line.split('#').next().unwrap_or_default().trim();
        if content.is_empty() {
            continue;
        }
        let (id, hash) = content.split_once('=').ok_or_else(|| fault("there is no ="))?;
        let (id, hash) = (id.trim(), hash.trim());
        let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if id.is_empty() || id.len() > MAX_ID || !id.chars().all(safe) {
            return Err(fault("the id is not 1 to 80 of A-Z a-z 0-9 _ . -"));
        }
        let hash = EkHash::parse(hash).ok_or_else(|| fault("the EK hash is not 64 hex digits"))?;
        if ids.insert(id.to_owned(), hash).is_some() {
            return Err(fault("the id stands in an earlier line too"));
        }
    }
    Ok((stamp, ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

    /// True if the file had changed
    fn refresh(list: &mut AdmissionList) -> Result<bool, ListError> {
        let changed = list.reader().read();
        changed.map_or(Ok(false), |changed| list.adopt(changed).map(|()| true))
    }

    #[test]
    fn a_faulty_change_is_reported_by_line_and_leaves_the_former_list_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admitted");
        fs::write(&path, format!("# ours\ngate-1 = {A} # north\n\n")).unwrap();
        let mut list = AdmissionList::open(&path).unwrap();
        assert_eq!(list.ek_hash_of("gate-1").unwrap().as_str(), A);
        assert!(!refresh(&mut list).unwrap());

        fs::write(&path, format!("gate-1 = {A}\ngate-2 {B}\n")).unwrap();
        let error = refresh(&mut list).unwrap_err().to_string();
        assert!(error.contains("admitted, line 2"), "{error}");
        assert!(list.ek_hash_of("gate-1").is_some());
        assert!(!refresh(&mut list).unwrap(), "the same fault is not reported again");

        fs::write(&path, format!("gate-2 = {B}\n")).unwrap();
        assert!(refresh(&mut list).unwrap());
        assert!(list.ek_hash_of("gate-1").is_none());
        assert_eq!(list.ek_hash_of("gate-2").unwrap().as_str(), B.to_lowercase());

        fs::remove_file(&path).unwrap();
        assert!(matches!(refresh(&mut list), Err(ListError::Unreadable { .. })));
        assert!(!refresh(&mut list).unwrap(), "nor is a missing file");
        assert!(list.ek_hash_of("gate-2").is_some());
        fs::write(&path, "").unwrap();
        assert!(refresh(&mut list).unwrap());
    }

    #[test]
    fn each_kind_of_faulty_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admitted");
        for bad in [format!("a/b = {A}"), format!(" = {A}"), "a = 12".to_owned(), format!("a = {A}\na = {A}")]
        {
            fs::write(&path, &bad).unwrap();
            assert!(matches!(AdmissionList::open(&path), Err(ListError::Line { .. })), "{bad}");
        }
    }
}
