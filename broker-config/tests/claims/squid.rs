//! A squid process with a directory and a port of its own, ended with its value.
//!
//! Its rules are those of Debian's `squid.conf` as far as they concern CONNECT: one port is allowed. That port is
//! 443 in the stock file; a test, which cannot listen there, puts its broker's port in its place.

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::mosquitto::free_port;

/// The user and password that a squid with authentication knows.
pub(crate) const USER: &str = "device";
pub(crate) const PASSWORD: &str = "s3cret pass";

pub(crate) struct Squid {
    pub(crate) port: u16,
    dir: TempDir,
    process: Child,
}

impl Squid {
    /// Without authentication; CONNECT is allowed to this port alone.
    pub(crate) fn open(allowed: u16) -> Self {
        Self::start(allowed, "", "http_access allow localhost\n")
    }

    /// As [`Squid::open`], for who says [`USER`] and [`PASSWORD`].
    pub(crate) fn with_basic(allowed: u16) -> Self {
        let auth = "auth_param basic program /usr/lib/squid/basic_ncsa_auth {dir}/passwords\n\
                    auth_param basic children 1\nauth_param basic realm test\nacl known proxy_auth REQUIRED\n";
        Self::start(allowed, auth, "http_access allow known\n")
    }

    /// Asks for a scheme that this project does not know.
    pub(crate) fn with_digest(allowed: u16) -> Self {
        let auth = "auth_param digest program /usr/lib/squid/digest_file_auth {dir}/passwords\n\
                    auth_param digest children 1\nauth_param digest realm test\nacl known proxy_auth REQUIRED\n";
        Self::start(allowed, auth, "http_access allow known\n")
    }

    fn start(allowed: u16, auth: &str, who: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // started by root, squid becomes the user proxy
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("passwords"), format!("{USER}:{}\n", hashed(PASSWORD))).unwrap();
        // a name that squid knows and this machine does not; without the other, squid would ask DNS for it
        fs::write(dir.path().join("hosts"), "127.0.0.1 localhost broker.test\n").unwrap();
        let port = free_port();
        let mut conf = String::new();
        write!(
            conf,
            "{}acl SSL_ports port {allowed}\nhttp_access deny CONNECT !SSL_ports\n{who}http_access deny all\n\
             http_port 127.0.0.1:{port}\nhosts_file {}/hosts\nvisible_hostname squid.test\npinger_enable off\n\
             access_log none\ncache_log /dev/null\ncache_store_log none\npid_filename none\nshutdown_lifetime 0\n\
             memory_cache_shared off\nnetdb_filename none\n",
            auth.replace("{dir}", &dir.path().display().to_string()),
            dir.path().display(),
        )
        .unwrap();
        let file = dir.path().join("squid.conf");
        fs::write(&file, conf).unwrap();
        Self { port, process: run(&file, port), dir }
    }

    /// The `[proxy]` table for this squid, with credentials if a password is given.
    pub(crate) fn table(&self, password: Option<&str>) -> String {
        let mut table = format!("[proxy]\nurl = 'http://127.0.0.1:{}'\n", self.port);
        if let Some(password) = password {
            let file = self.password_file(password);
            write!(table, "user = '{USER}'\npassword_file = '{}'\n", file.display()).unwrap();
        }
        table
    }

    fn password_file(&self, password: &str) -> PathBuf {
        let file = self.dir.path().join("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        file
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            self.process.wait().unwrap();
        }
    }
}

/// Returns once squid says that it listens.
fn run(conf: &Path, port: u16) -> Child {
    let mut process = Command::new("squid")
        .args(["-N", "-d", "1", "-n", &format!("test{port}"), "-f"])
        .arg(conf)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("squid is not installed: apt-get install squid");
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = String::new();
    loop {
        let Some(line) = lines.next() else { panic!("squid ended at its start:\n{said}") };
        if line.contains("Accepting HTTP Socket connections") {
            break;
        }
        writeln!(said, "{line}").unwrap();
    }
    // an unread pipe would fill and block it
    thread::spawn(move || lines.for_each(drop));
    // squid says so just before it does so
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(process.try_wait().unwrap().is_none(), "squid ended at its start");
    }
    process
}

/// As htpasswd would write it.
fn hashed(password: &str) -> String {
    let output = Command::new("openssl").args(["passwd", "-apr1", password]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
