//! A mosquitto process with a directory and a port of its own, ended with its value.

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use rand::Rng;

use crate::pki::Pki;

/// The files this crate ships.
const SHIPPED_CONF: &str = include_str!("../../mosquitto/mosquitto.conf");
const SHIPPED_ACL: &str = include_str!("../../mosquitto/acl");

pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    /// Of the WebSocket listener, where there is one.
    pub(crate) websocket_port: u16,
    conf: std::path::PathBuf,
    process: Child,
}

impl Mosquitto {
    /// TLS with client certificates and no ACL, so that a test may use any topic and any size.
    pub(crate) fn open(pki: &Pki) -> Self {
        Self::open_with(pki, "")
    }

    /// As [`Mosquitto::open`], with more lines in its configuration.
    pub(crate) fn open_with(pki: &Pki, more: &str) -> Self {
        let port = free_port();
        let dir = pki.dir.path().display();
        let conf = format!(
            "listener {port}\ncafile {dir}/ca.pem\ncertfile {dir}/broker.pem\nkeyfile {dir}/broker.key\n\
             require_certificate true\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest stderr\n{more}"
        );
        Self::start(pki.dir.path(), port, conf)
    }

    /// As [`Mosquitto::open`], with a second listener for WebSockets.
    pub(crate) fn with_websocket(pki: &Pki) -> Self {
        let (port, websocket_port) = (free_port(), free_port());
        let dir = pki.dir.path();
        let tls = format!(
            "cafile {0}/ca.pem\ncertfile {0}/broker.pem\nkeyfile {0}/broker.key\nrequire_certificate true\n",
            dir.display()
        );
        let conf = format!(
            "listener {port}\n{tls}listener {websocket_port}\nprotocol websockets\n{tls}\
             allow_anonymous true\nset_tcp_nodelay true\nlog_dest stderr\n"
        );
        let mut broker = Self::start(dir, port, conf);
        broker.websocket_port = websocket_port;
        broker
    }

    /// As [`Mosquitto::as_shipped`], with the shipped listener a second time for WebSockets.
    pub(crate) fn as_shipped_with_websocket(pki: &Pki) -> Self {
        let (port, websocket_port) = (free_port(), free_port());
        let conf = shipped(pki, port);
        let (_, listener) = conf.split_once("tls_version").unwrap();
        let (listener, _) = listener.split_once("allow_anonymous").unwrap();
        let more = "use_identity_as_username true\nuse_username_as_clientid true\n";
        let conf =
            format!("{conf}\nlistener {websocket_port}\nprotocol websockets\ntls_version{listener}{more}");
        let mut broker = Self::start(pki.dir.path(), port, conf);
        broker.websocket_port = websocket_port;
        broker
    }

    /// Exactly what this crate ships, with this test's port and directories put in.
    pub(crate) fn as_shipped(pki: &Pki) -> Self {
        let port = free_port();
        Self::start(pki.dir.path(), port, shipped(pki, port))
    }

    /// Whatever the configuration says, in the directory of its certificates.
    pub(crate) fn from_conf(pki: &Pki, port: u16, conf: String) -> Self {
        Self::start(pki.dir.path(), port, conf)
    }

    fn start(dir: &Path, port: u16, mut conf: String) -> Self {
        // started by root, mosquitto would become another user, who may not read this directory
        writeln!(conf, "user root").unwrap();
        // among this is the line that says that it runs
        writeln!(conf, "log_type information\nlog_type error").unwrap();
        let file = dir.join(format!("mosquitto-{port}.conf"));
        fs::write(&file, conf).unwrap();
        let process = run(&file);
        Self { port, websocket_port: 0, conf: file, process }
    }

    /// As a power cut would end it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.process = run(&self.conf);
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            self.process.wait().unwrap();
        }
    }
}

/// The shipped files, with this test's port and directories put in.
fn shipped(pki: &Pki, port: u16) -> String {
    let dir = pki.dir.path();
    fs::write(dir.join("acl"), SHIPPED_ACL).unwrap();
    let mut conf = SHIPPED_CONF.to_owned();
    for (shipped, here) in [
        ("listener 8883", format!("listener {port}")),
        ("/etc/mosquitto/keylime-mqtt", dir.display().to_string()),
        ("/var/lib/mosquitto/", format!("{}/", dir.display())),
    ] {
        assert!(conf.contains(shipped), "the shipped mosquitto.conf has no {shipped:?} any more");
        conf = conf.replace(shipped, &here);
    }
    conf
}

/// Returns once mosquitto says that it is running.
fn run(conf: &Path) -> Child {
    let mut process = Command::new("mosquitto")
        .arg("-c")
        .arg(conf)
        .stderr(Stdio::piped())
        .spawn()
        .expect("mosquitto is not installed: apt-get install mosquitto");
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = String::new();
    loop {
        let Some(line) = lines.next() else { panic!("mosquitto ended at its start:\n{said}") };
        if line.ends_with(" running") {
            break;
        }
        writeln!(said, "{line}").unwrap();
    }
    // an unread pipe would fill and block it
    thread::spawn(move || lines.for_each(drop));
    process
}

/// A port for a process that has to be told one. Not of those that the kernel gives to outgoing connections, one of
/// which could take it before the process does.
pub(crate) fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    // other test processes begin elsewhere
    let next = NEXT.get_or_init(|| AtomicU16::new(rand::rng().random_range(10_000..30_000)));
    loop {
        let port = next.fetch_add(1, Ordering::Relaxed);
        let is_free = |at: IpAddr| TcpListener::bind((at, port)).is_ok();
        if port < 32_000 && is_free(Ipv4Addr::LOCALHOST.into()) && is_free(Ipv6Addr::UNSPECIFIED.into()) {
            return port;
        }
        if port >= 32_000 {
            next.store(10_000, Ordering::Relaxed);
        }
    }
}
