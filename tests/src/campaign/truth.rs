//! What is true in the end: each verdict that was published, held against the verifier's own record.

use crate::process::Process;
use crate::world::World;
use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::messages::{AttestationResult, Verdict};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The bridge publishes what stands in the verifier's record already, so this is the reader's own delay on a starved machine.
const RECORDED_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks at the record.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the verifier has judged: by agent and SHA-256 of the nonce, `pass` or `fail`.
type Judged = BTreeMap<(String, String), String>;

/// The verifier's record, read on and on: see [`Keylime::follow_record`](crate::keylime::Keylime::follow_record).
pub(super) struct Record {
    file: PathBuf,
    _reader: Process,
}

impl Record {
    /// From now on; what was judged before may be gone already.
    pub(super) fn follow(world: &World) -> Result<Self> {
        let file = world.scratch.path().join("record");
        let reader = world.keylime.follow_record(&file)?;
        Ok(Self { file, _reader: reader })
    }

    fn judged(&self) -> Result<Judged> {
        let text = fs::read_to_string(&self.file)?;
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let words = |line: &str| {
            let mut words = line.split(' ');
            let entry = ((words.next()?.to_owned(), words.next()?.to_owned()), words.next()?.to_owned());
            matches!(entry.1.as_str(), "pass" | "fail").then_some(entry)
        };
        lines
            .map(|line| words(line).with_context(|| format!("the record's reader says {line:?}:\n{text}")))
            .collect()
    }
}

/// Each PASS of a device is one that the verifier gave it, and none came after a FAIL. Returns whether it was failed.
pub(super) fn is_true(world: &World, id: &str, record: &Record) -> Result<bool> {
    let results = world.observer()?.results(id);
    let deadline = Instant::now() + RECORDED_WITHIN;
    let mut judged = record.judged()?;
    while !results.iter().all(|result| is_recorded(result, &judged)) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
        judged = record.judged()?;
    }
    judge(&results, &judged).with_context(|| format!("what was published of {id}"))
}

fn is_recorded(result: &AttestationResult, judged: &Judged) -> bool {
    result.verdict != Verdict::Pass || said(result, judged).is_some()
}

/// What the verifier says of the attestation that a result speaks of.
fn said<'a>(result: &AttestationResult, judged: &'a Judged) -> Option<&'a str> {
    let of = (result.agent_id.to_string(), result.nonce_sha256.clone()?);
    judged.get(&of).map(String::as_str)
}

fn judge(results: &[AttestationResult], judged: &Judged) -> Result<bool> {
    let mut failed = false;
    for result in results {
        match result.verdict {
            Verdict::Pass => {
                let said = said(result, judged).unwrap_or("nothing");
                ensure!(said == "pass", "a false PASS, of which Keylime says {said}: {result:?}");
                ensure!(!failed, "PASS after FAIL: {result:?}");
            }
            Verdict::Fail => failed |= result.nonce_sha256.is_some(),
            _ => {}
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(verdict: Verdict, nonce: Option<&str>) -> AttestationResult {
        AttestationResult {
            agent_id: "gw-7".parse().expect("an id"),
            verdict,
            time: 1,
            valid_until: 2,
            nonce_sha256: nonce.map(ToOwned::to_owned),
            attestation_count: None,
            reason: None,
        }
    }

    fn judged(entries: &[(&str, &str, &str)]) -> Judged {
        let owned = |(id, nonce, said): &(&str, &str, &str)| {
            ((String::from(*id), String::from(*nonce)), String::from(*said))
        };
        entries.iter().map(owned).collect()
    }

    #[test]
    fn a_pass_is_true_where_keylime_gave_it() {
        let record = judged(&[("gw-7", "aa", "pass"), ("gw-7", "bb", "fail")]);
        let results = [result(Verdict::Pass, Some("aa")), result(Verdict::Fail, Some("bb"))];
        assert!(judge(&results, &record).expect("all of it is true"));
        assert!(!judge(&results[..1], &record).expect("all of it is true"));
    }

    #[test]
    fn a_pass_is_false_that_keylime_never_gave_or_gave_another_device() {
        let pass = [result(Verdict::Pass, Some("aa"))];
        for record in [
            judged(&[]),
            judged(&[("gw-7", "bb", "pass")]),
            judged(&[("gw-7", "aa", "fail")]),
            judged(&[("gw-8", "aa", "pass")]),
        ] {
            assert!(judge(&pass, &record).is_err(), "{record:?}");
        }
        assert!(judge(&[result(Verdict::Pass, None)], &judged(&[("gw-7", "aa", "pass")])).is_err());
    }

    #[test]
    fn no_pass_comes_after_a_fail() {
        let record = judged(&[("gw-7", "aa", "fail"), ("gw-7", "bb", "pass")]);
        let results = [result(Verdict::Fail, Some("aa")), result(Verdict::Pass, Some("bb"))];
        assert!(judge(&results, &record).is_err());
    }
}
