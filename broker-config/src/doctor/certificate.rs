//! For how long the certificates of the `[broker]` table are good, what they are named, and whether the clock can be true.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{DateTime, Decode};

use super::report::{Report, Step};
use crate::settings::CheckedBroker;

/// X.520, commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// A certificate that ends so soon should have a successor by now.
const SOON: Duration = Duration::from_secs(21 * DAY);
const DAY: u64 = 24 * 3600;
/// 2026-01-01: no clock that is right shows an earlier time, for this program is not older.
const EARLIEST: u64 = 1_767_225_600;

/// What a step wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The common name of its subject, by which brokers' ACLs go.
    pub(crate) common_name: Option<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    pub(crate) fn from_der(der: &[u8]) -> Option<Self> {
        let parsed = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
        let names = parsed.subject.0.iter().flat_map(|relative| relative.0.iter());
        let mut common_names = names.filter(|name| name.oid == COMMON_NAME);
        // the strings of a name all have the text as their content
        let text = common_names.next().and_then(|name| std::str::from_utf8(name.value.value()).ok());
        Some(Self {
            common_name: text.map(|text| text.escape_debug().to_string()),
            not_before: UNIX_EPOCH + parsed.validity.not_before.to_unix_duration(),
            not_after: UNIX_EPOCH + parsed.validity.not_after.to_unix_duration(),
        })
    }

    fn in_file(path: &Path) -> Option<Self> {
        let leaf = CertificateDer::pem_file_iter(path).ok()?.next()?.ok()?;
        Self::from_der(&leaf)
    }

    /// Until when, and how many days that is.
    pub(crate) fn validity(&self, now: SystemTime) -> String {
        let left = self.not_after.duration_since(now).map_or(0, |left| left.as_secs() / DAY);
        format!("valid until {} ({left} days)", shown(self.not_after))
    }

    pub(crate) fn ends_soon(&self, now: SystemTime) -> bool {
        self.not_after.duration_since(now).unwrap_or_default() < SOON
    }
}

impl CheckedBroker {
    /// The files of this client's certificates, each once.
    fn own_certificates(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = [&self.first]
            .into_iter()
            .chain(&self.fallbacks)
            .map(|broker| broker.credentials.certificate_file().to_owned())
            .collect();
        files.dedup();
        files
    }

    /// Steps `clock` and `certificate`: whether the clock can be true, and how long this client's own certificates are
    /// good. Gives the common name in the first one.
    pub fn check_certificates(&self, report: &mut Report) -> Option<String> {
        self.check_certificates_at(SystemTime::now(), report)
    }

    fn check_certificates_at(&self, now: SystemTime, report: &mut Report) -> Option<String> {
        let own: Vec<_> = self
            .own_certificates()
            .into_iter()
            .map(|file| (Certificate::in_file(&file), file.display().to_string()))
            .collect();
        report.add(clock(now, own.iter().filter_map(|(certificate, _)| certificate.as_ref())));
        for (certificate, file) in &own {
            report.add(match certificate {
                None => Step::failed("certificate", "cannot be read as X.509", "issue it anew").of(file),
                Some(certificate) => own_certificate(certificate, now).of(file),
            });
        }
        own.into_iter().find_map(|(certificate, _)| certificate?.common_name)
    }
}

fn clock<'a>(now: SystemTime, own: impl Iterator<Item = &'a Certificate>) -> Step {
    let issued = own.map(|certificate| certificate.not_before).max();
    let earliest = issued.unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH + Duration::from_secs(EARLIEST));
    if now >= earliest {
        return Step::ok("clock", shown(now));
    }
    let why = match issued.filter(|issued| *issued == earliest) {
        Some(issued) => format!("this client's own certificate was issued at {}", shown(issued)),
        None => "this program is younger than that".to_owned(),
    };
    Step::failed(
        "clock",
        format!(
            "it says {}, which cannot be: {why}. With such a clock TLS takes good certificates for not yet valid and refuses \
             every connection",
            shown(now)
        ),
        "set the clock (NTP, the RTC and its battery); nothing needs a restart, the next attempt to connect goes by the new time",
    )
}

fn own_certificate(certificate: &Certificate, now: SystemTime) -> Step {
    let name =
        certificate.common_name.as_deref().map_or("no common name".to_owned(), |cn| format!("CN {cn}"));
    let says = format!("{name}, {}", certificate.validity(now));
    if now > certificate.not_after {
        let remedy = "renew it; a new file is taken up without a restart. Or is this machine's clock ahead?";
        return Step::failed(
            "certificate",
            format!("{name}, has run out: {}", certificate.validity(now)),
            remedy,
        );
    }
    if now < certificate.not_before {
        let says = format!("{name}, is not valid before {}", shown(certificate.not_before));
        return Step::failed("certificate", says, "set this machine's clock, or wait");
    }
    if certificate.ends_soon(now) {
        return Step::finding("certificate", says, "renew it; a new file is taken up without a restart");
    }
    Step::ok("certificate", says)
}

/// A time as in `2026-11-27T23:30:00Z`.
fn shown(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    DateTime::from_unix_duration(since)
        .map_or_else(|_| "a time out of any range".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    const YEAR_2030: u64 = 1_893_456_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn certificate() -> Certificate {
        Certificate {
            common_name: Some("dev-1".to_owned()),
            not_before: at(YEAR_2030),
            not_after: at(YEAR_2030 + 100 * DAY),
        }
    }

    #[test]
    fn a_device_that_booted_in_1970_is_told_that_its_clock_is_wrong_and_what_that_does() {
        let step = clock(at(60), std::iter::once(&certificate()));
        assert_eq!(step.state, State::Failed);
        for word in ["1970-01-01T00:01:00Z", "2030-01-01", "TLS", "not yet valid"] {
            assert!(step.says.contains(word), "{step}");
        }
        assert!(step.remedy.as_ref().is_some_and(|remedy| remedy.contains("restart")), "{step}");
    }

    #[test]
    fn a_clock_before_this_program_is_wrong_even_where_no_certificate_says_so() {
        assert_eq!(clock(at(EARLIEST - 1), std::iter::empty()).state, State::Failed);
        assert_eq!(clock(at(EARLIEST), std::iter::empty()).state, State::Ok);
        // as after a battery that was changed
        assert_eq!(clock(at(YEAR_2030 - 1), std::iter::once(&certificate())).state, State::Failed);
    }

    #[test]
    fn a_certificate_is_good_then_to_be_renewed_then_gone() {
        for (day, state) in [(0, State::Ok), (78, State::Ok), (80, State::Finding), (101, State::Failed)] {
            let step = own_certificate(&certificate(), at(YEAR_2030 + day * DAY));
            assert_eq!(step.state, state, "day {day}: {step}");
            assert!(step.says.contains("2030-04-11"), "{step}");
        }
    }
}
