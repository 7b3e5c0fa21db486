//! Names of what a device runs, as an IMA log lists them: this machine's own files below /usr.
//!
//! Realistic names matter, since they are most of what compression has to work on. A real log has some order (a
//! program's libraries follow it, a package's files run together), so the sample takes short runs of neighbours,
//! in an order that is the same on each run of one machine. Digests follow from the names and do not compress.

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::fs;
use std::path::Path;

/// Where programs and libraries are.
const ROOT: &str = "/usr";

/// Neighbours that are measured one after the other.
const RUN: usize = 4;

/// Any number: it makes the order the same each time.
const SEED: u64 = 10;

/// `count` different names.
pub fn sample(count: usize) -> Result<Vec<String>> {
    let mut files = Vec::new();
    walk(Path::new(ROOT), &mut files)?;
    ensure!(!files.is_empty(), "{ROOT} has no files to name");
    files.sort_unstable();
    let mut runs: Vec<&[String]> = files.chunks(RUN).collect();
    runs.shuffle(&mut StdRng::seed_from_u64(SEED));
    let once: Vec<&String> = runs.into_iter().flatten().collect();
    // A machine with fewer files than asked for: a second and third root of the same files, as containers have.
    let rooted = |root: usize| {
        let prefix = if root == 0 { String::new() } else { format!("/srv/root-{root}") };
        once.iter().map(move |file| format!("{prefix}{file}"))
    };
    Ok((0..=count / once.len()).flat_map(rooted).take(count).collect())
}

/// Mean length, for the report.
pub fn mean_length(programs: &[String]) -> usize {
    programs.iter().map(String::len).sum::<usize>() / programs.len().max(1)
}

fn walk(dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file()
            && let Some(name) = entry.path().to_str()
            && !name.contains(char::is_whitespace)
        {
            files.push(name.to_owned());
        }
    }
    Ok(())
}
