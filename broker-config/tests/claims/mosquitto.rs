//! A mosquitto process with a directory and a port of its own, ended with its value.

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use crate::pki::Pki;

/// The files this crate ships.
const SHIPPED_CONF: &str = include_str!("../../mosquitto/mosquitto.conf");
const SHIPPED_ACL: &str = include_str!("../../mosquitto/acl");

pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    conf: std::path::PathBuf,
    process: Child,
}

impl Mosquitto {
    /// TLS with client certificates and no ACL, so that a test may use any topic and any size.
    pub(crate) fn open(pki: &Pki) -> Self {
        let port = free_port();
        let dir = pki.dir.path().display();
        let conf = format!(
            "listener {port}\ncafile {dir}/ca.pem\ncertfile {dir}/broker.pem\nkeyfile {dir}/broker.key\n\
             require_certificate true\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest stderr\n"
        );
        Self::start(pki.dir.path(), port, conf)
    }

    /// Exactly what this crate ships, with this test's port and directories put in.
    pub(crate) fn as_shipped(pki: &Pki) -> Self {
        let port = free_port();
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
        Self::start(dir, port, conf)
    }

    fn start(dir: &Path, port: u16, mut conf: String) -> Self {
        // started by root, mosquitto would become another user, who may not read this directory
        writeln!(conf, "user root").unwrap();
        // among this is the line that says that it runs
        writeln!(conf, "log_type information").unwrap();
        let file = dir.join("mosquitto.conf");
        fs::write(&file, conf).unwrap();
        let process = run(&file);
        Self { port, conf: file, process }
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

pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
