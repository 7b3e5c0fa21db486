//! The HTTP proxy on the way: a squid with the rules that Debian ships, as far as they concern CONNECT.

use super::command::run;
use super::internet::Internet;
use super::namespace::Namespace;
use crate::eventually::eventually;
use crate::process::{Process, remove_at_exit};
use crate::scratch::{Scratch, read_log};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use tempfile::TempDir;

/// The proxy's name.
pub const PROXY: &str = "proxy.example.net";
/// Who may use it, where it asks.
pub const USER: &str = "device";
/// With what password; not all of it may stand in a URL as it is.
pub const PASSWORD: &str = "s3cret pass";
pub(super) const PROXY_ADDRESS: &str = "203.0.113.254";

/// One squid listens at several ports, each with its own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPort {
    /// Asks for [`USER`] and [`PASSWORD`]
    pub asks: bool,
    /// Its operator has allowed port 8883 beside 443
    pub allows_mqtt: bool,
}

impl ProxyPort {
    /// The port.
    pub fn number(self) -> u16 {
        3128 + u16::from(self.asks) + 2 * u16::from(self.allows_mqtt)
    }
}

/// A running squid in a namespace of its own.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    dir: TempDir,
    _namespace: Namespace,
}

impl Proxy {
    /// Starts it.
    pub(super) fn start(internet: &Internet, broker: &str, scratch: &Scratch) -> Result<Self> {
        let namespace = Namespace::add(&internet.name("proxy"))?;
        let router = internet.namespace();
        run(&[
            "ip",
            "link",
            "add",
            "eth",
            "netns",
            namespace.name(),
            "type",
            "veth",
            "peer",
            "name",
            "proxy",
            "netns",
            router.name(),
        ])?;
        router.ip(&["address", "add", "203.0.113.253/30", "dev", "proxy"])?;
        router.ip(&["link", "set", "proxy", "up"])?;
        namespace.ip(&["address", "add", &format!("{PROXY_ADDRESS}/30"), "dev", "eth"])?;
        namespace.ip(&["link", "set", "eth", "up"])?;
        namespace.ip(&["route", "add", "default", "via", "203.0.113.253"])?;
        namespace.knows(&[(super::internet::BROKER_V4, broker)])?;

        // started by root, squid becomes the user proxy, who may not read the scratch directory
        let dir = tempfile::Builder::new().prefix("keylime-mqtt-squid-").tempdir()?;
        remove_at_exit(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let hashed = run(&["openssl", "passwd", "-apr1", PASSWORD])?;
        fs::write(dir.path().join("passwords"), format!("{USER}:{hashed}"))?;
        fs::write(dir.path().join("hosts"), format!("{} {broker}\n", super::internet::BROKER_V4))?;
        let access = dir.path().join("access.log");
        fs::write(&access, "")?;
        fs::set_permissions(&access, fs::Permissions::from_mode(0o666))?;
        let file = dir.path().join("squid.conf");
        fs::write(&file, configuration(&dir))?;
        let launcher = namespace.launcher(&[]);
        let (program, arguments) = launcher.split_first().context("an empty launcher")?;
        let mut command = Command::new(program);
        let service = internet.name("").replace('-', "");
        command.args(arguments).args(["squid", "-N", "-d", "1", "-n", &service, "-f"]).arg(&file);
        let log = scratch.log("squid");
        let mut process = Process::spawn("squid", &mut command, &log)?;
        eventually("squid serves", &scratch.logs(), || {
            ensure!(process.is_running(), "squid ended: {}", read_log(&log));
            let said = read_log(&log);
            Ok((said.matches("Accepting HTTP Socket connections").count() == 4).then_some(()))
        })?;
        Ok(Self { process, dir, _namespace: namespace })
    }

    /// What it was asked for, and what came of it.
    pub fn log(&self) -> String {
        read_log(&self.dir.path().join("access.log"))
    }

    /// Its process, to freeze it.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// `SSL_ports` is 443 alone, as in the stock file; of the four ports two allow 8883 too, and two ask who is there.
fn configuration(dir: &TempDir) -> String {
    let dir = dir.path().display();
    format!(
        "http_port 3128 name=open\nhttp_port 3129 name=asks\nhttp_port 3130 name=open_mqtt\nhttp_port 3131 name=asks_mqtt\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {dir}/passwords\nauth_param basic children 2\n\
         auth_param basic realm site\n\
         acl SSL_ports port 443\nacl mqtt port 8883\nacl CONNECT method CONNECT\n\
         acl extended myportname open_mqtt asks_mqtt\nacl asked myportname asks asks_mqtt\n\
         acl known proxy_auth REQUIRED\n\
         http_access deny !CONNECT\nhttp_access deny CONNECT !SSL_ports !mqtt\n\
         http_access deny CONNECT mqtt !extended\nhttp_access deny asked !known\nhttp_access allow all\n\
         hosts_file {dir}/hosts\ndns_nameservers 127.0.0.1\ndns_timeout 1 second\nvisible_hostname {PROXY}\n\
         pinger_enable off\naccess_log stdio:{dir}/access.log\ncache_log /dev/null\ncache_store_log none\n\
         pid_filename none\nshutdown_lifetime 0\nmemory_cache_shared off\nnetdb_filename none\nvia off\n"
    )
}
