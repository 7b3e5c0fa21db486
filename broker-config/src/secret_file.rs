//! Who else may read a file with a secret.

use std::env;
use std::ffi::OsStr;
use std::path::{Component, Path};

/// Group and others: the owner alone may read or write it.
const OTHERS: u32 = 0o077;
/// What is left of [`OTHERS`] for a credential of systemd. It gives the service's user access by an ACL, whose mask shows as a
/// group that may read; group and others have nothing of it (systemd.exec(5), `LoadCredential=`).
const OTHERS_OF_A_CREDENTIAL: u32 = 0o037;

/// Whether anyone but its owner may read or change a file of this mode.
///
/// Files in `$CREDENTIALS_DIRECTORY`, which the service manager makes for this process, may show the bit of their ACL.
pub fn is_exposed(file: &Path, mode: u32) -> bool {
    let directory = env::var_os("CREDENTIALS_DIRECTORY");
    is_exposed_beside(directory.as_deref(), file, mode)
}

fn is_exposed_beside(credentials: Option<&OsStr>, file: &Path, mode: u32) -> bool {
    let plain = |path: &Path| !path.components().any(|part| part == Component::ParentDir);
    let is_credential = credentials.is_some_and(|directory| {
        let directory = Path::new(directory);
        directory.is_absolute() && plain(file) && file.parent() == Some(directory)
    });
    mode & if is_credential { OTHERS_OF_A_CREDENTIAL } else { OTHERS } != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone() {
        let file = Path::new("/etc/keylime-mqtt/device.key");
        for credentials in [None, Some(OsStr::new("/run/credentials/agent.service")), Some(OsStr::new(""))] {
            for mode in [0o600, 0o400] {
                assert!(!is_exposed_beside(credentials, file, mode), "{mode:o}");
            }
            for mode in [0o640, 0o604, 0o440, 0o620, 0o601] {
                assert!(is_exposed_beside(credentials, file, mode), "{mode:o}");
            }
        }
    }

    #[test]
    fn a_credential_may_show_its_acl_and_nothing_more() {
        let credentials = Some(OsStr::new("/run/credentials/agent.service"));
        let file = Path::new("/run/credentials/agent.service/device.key");
        for (mode, exposed) in [(0o400, false), (0o440, false), (0o444, true), (0o460, true), (0o450, true)] {
            assert_eq!(is_exposed_beside(credentials, file, mode), exposed, "{mode:o}");
        }
        assert!(is_exposed_beside(None, file, 0o440), "without a service manager it is any file");
        let elsewhere = Path::new("/run/credentials/agent.service/../other/device.key");
        assert!(is_exposed_beside(credentials, elsewhere, 0o440));
    }
}
