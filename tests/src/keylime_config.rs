//! Keylime's configuration files, written as an operator would for push mode, with free ports.
//!
//! Options that are named here and not in [`KeylimeSettings`] stand at Keylime's own defaults: the wheel on PyPI
//! brings no configuration files, and Keylime does not start without these options.

use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// What scenarios vary. The default is Keylime's own, but for a short interval and one worker.
#[derive(Clone, Debug)]
pub struct KeylimeSettings {
    /// Seconds between attestations. Keylime's default is 2 already; TIMEOUT comes after five times this.
    pub quote_interval: u32,
    /// Workers of the verifier. Timers for TIMEOUT live in each one of its own, so with more than one a device whose
    /// requests move between them is called TIMEOUT wrongly.
    pub max_workers: u32,
    /// Whether a PASS clears a FAIL without an operator.
    pub auto_recover: bool,
    /// Sessions a minute from one address.
    pub sessions_per_ip: u32,
    /// Sessions a minute for one agent id.
    pub sessions_per_agent: u32,
    /// Seconds that a session's token lasts.
    pub session_lifetime: u32,
    /// The servers' certificate and key, where it is not to be Keylime's own.
    pub server_certificate: Option<(PathBuf, PathBuf)>,
}

impl Default for KeylimeSettings {
    fn default() -> Self {
        Self {
            quote_interval: 2,
            max_workers: 1,
            auto_recover: false,
            sessions_per_ip: 50,
            sessions_per_agent: 15,
            session_lifetime: 180,
            server_certificate: None,
        }
    }
}

/// Ports that a configuration names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeylimePorts {
    pub(crate) verifier: u16,
    pub(crate) registrar: u16,
    pub(crate) registrar_tls: u16,
}

/// Writes all files into `dir`; they have the names of the environment variables that point to them.
pub(crate) fn write(dir: &Path, settings: &KeylimeSettings, ports: KeylimePorts) -> Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("verifier.conf"), verifier(settings, ports))?;
    fs::write(dir.join("registrar.conf"), registrar(settings, ports))?;
    fs::write(dir.join("tenant.conf"), tenant(ports))?;
    fs::write(dir.join("ca.conf"), CA)?;
    fs::write(dir.join("logging.conf"), LOGGING)?;
    Ok(())
}

fn server_files(settings: &KeylimeSettings) -> String {
    match &settings.server_certificate {
        None => "server_key = default\nserver_cert = default\n".to_owned(),
        Some((certificate, key)) => {
            format!("server_key = {}\nserver_cert = {}\n", key.display(), certificate.display())
        }
    }
}

fn verifier(settings: &KeylimeSettings, ports: KeylimePorts) -> String {
    let KeylimeSettings {
        quote_interval,
        max_workers,
        sessions_per_ip,
        sessions_per_agent,
        session_lifetime,
        ..
    } = settings;
    let auto_recover = if settings.auto_recover { "True" } else { "False" };
    // "generate" makes the CA and its certificates once; with other server files they are there already.
    let tls_dir = if settings.server_certificate.is_some() { "cv_ca" } else { "generate" };
    let KeylimePorts { verifier, registrar_tls, .. } = ports;
    let server_files = server_files(settings);
    format!(
        r#"[verifier]
version = 2.6
uuid = default
ip = "127.0.0.1"
port = {verifier}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls}
enable_agent_mtls = True
tls_dir = {tls_dir}
{server_files}server_key_password =
cert_subject_alternative_names =
trusted_client_ca = default
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
num_workers = 0
max_workers = {max_workers}
exponential_backoff = True
retry_interval = 2
max_retries = 5
quote_interval = {quote_interval}
max_upload_size = 104857600
request_timeout = 60.0
measured_boot_policy_name = accept-all
measured_boot_imports = []
measured_boot_evaluate = once
severity_labels = ["info", "notice", "warning", "error", "critical", "alert", "emergency"]
severity_policy = [{{"event_id": ".*", "severity_label": "emergency"}}]
ignore_tomtou_errors = False
durable_attestation_import =
signed_attributes =
require_allow_list_signatures = False
mode = push
challenge_lifetime = 1800
verification_timeout = 0
session_create_rate_limit_per_ip = {sessions_per_ip}
session_create_rate_limit_window_ip = 60
session_create_rate_limit_per_agent = {sessions_per_agent}
session_create_rate_limit_window_agent = 60
session_lifetime = {session_lifetime}
extend_token_on_attestation = True
auto_recover_attestation_failures = {auto_recover}
shutdown_drain_timeout = 2

[revocations]
enabled_revocation_notifications = []
zmq_ip = 127.0.0.1
zmq_port = 8992
webhook_url =
"#
    )
}

fn registrar(settings: &KeylimeSettings, ports: KeylimePorts) -> String {
    let KeylimePorts { registrar, registrar_tls, .. } = ports;
    // "default" is the directory in which the verifier generated its CA.
    let server_files = server_files(settings);
    format!(
        r#"[registrar]
version = 2.6
ip = "127.0.0.1"
port = {registrar}
tls_port = {registrar_tls}
tls_dir = default
{server_files}server_key_password =
cert_subject_alternative_names =
trusted_client_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
max_workers = 1
auto_migrate_db = True
durable_attestation_import =
signed_attributes = ek_tpm,aik_tpm,ekcert
tpm_identity = default
malformed_cert_action = warn
"#
    )
}

fn tenant(ports: KeylimePorts) -> String {
    let KeylimePorts { verifier, registrar_tls, .. } = ports;
    format!(
        r"[tenant]
version = 2.6
verifier_ip = 127.0.0.1
verifier_port = {verifier}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls}
tls_dir = default
enable_agent_mtls = True
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
tpm_cert_store = tpm_cert_store
max_payload_size = 1048576
accept_tpm_hash_algs = ['sha512', 'sha384', 'sha256']
accept_tpm_encryption_algs = ['ecc', 'rsa']
accept_tpm_signing_algs = ['ecschnorr', 'rsassa', 'ecdsa']
exponential_backoff = True
retry_interval = 2
max_retries = 5
request_timeout = 60
require_ek_cert = True
ek_check_script =
mb_refstate =
"
    )
}

const CA: &str = "[ca]
version = 2.6
password = default
cert_country = US
cert_ca_name = Keylime Certificate Authority
cert_state = MA
cert_locality = Lexington
cert_organization = Keylime
cert_org_unit = 53
cert_ca_lifetime = 3650
cert_lifetime = 365
cert_bits = 2048
cert_crl_dist = http://localhost:38080/crl
";

const LOGGING: &str = "[logging]
version = 2.6
[loggers]
keys = root,keylime
[handlers]
keys = consoleHandler
[formatters]
keys = formatter
[formatter_formatter]
format = %(asctime)s.%(msecs)03d - %(process)d - %(name)s - %(levelname)s - %(message)s
datefmt = %Y-%m-%d %H:%M:%S
[logger_root]
level = INFO
handlers = consoleHandler
[handler_consoleHandler]
class = StreamHandler
level = INFO
formatter = formatter
args = (sys.stdout,)
[logger_keylime]
level = INFO
qualname = keylime
handlers = consoleHandler
propagate = 0
";
