//! The HTTP proxy on the way: a squid on this machine that lets CONNECT through to one port and asks for a password.

use crate::eventually::eventually;
use crate::ports::Port;
use crate::process::{Process, remove_at_exit};
use crate::scratch::{Scratch, read_log};
use crate::secrets::Secret;
use anyhow::{Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Whom it knows.
const USER: &str = "bridge";
const PASSWORD: &str = "s3cret pass";

/// A running squid.
#[derive(Debug)]
pub struct Squid {
    port: Port,
    dir: TempDir,
    process: Process,
}

impl Squid {
    /// Starts it; CONNECT is allowed to the port `allowed` alone, as to 443 in the stock rules.
    pub fn start(allowed: u16, scratch: &Scratch) -> Result<Self> {
        // started by root, squid becomes the user proxy, who may not read the scratch directory
        let dir = tempfile::Builder::new().prefix("keylime-mqtt-squid-").tempdir()?;
        remove_at_exit(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let hashed = Command::new("openssl").args(["passwd", "-apr1", PASSWORD]).output()?;
        let hashed = String::from_utf8_lossy(&hashed.stdout).into_owned();
        fs::write(dir.path().join("passwords"), format!("{USER}:{hashed}"))?;
        fs::write(dir.path().join("access.log"), "")?;
        fs::set_permissions(dir.path().join("access.log"), fs::Permissions::from_mode(0o666))?;
        let port = Port::claim()?;
        let number = port.number();
        let here = dir.path().display();
        fs::write(
            dir.path().join("squid.conf"),
            format!(
                "auth_param basic program /usr/lib/squid/basic_ncsa_auth {here}/passwords\n\
                 auth_param basic children 1\nauth_param basic realm site\nacl known proxy_auth REQUIRED\n\
                 acl SSL_ports port {allowed}\nhttp_access deny CONNECT !SSL_ports\nhttp_access allow known\n\
                 http_access deny all\nhttp_port 127.0.0.1:{number}\nvisible_hostname squid.test\n\
                 pinger_enable off\naccess_log stdio:{here}/access.log\ncache_log /dev/null\n\
                 cache_store_log none\npid_filename none\nshutdown_lifetime 0\nmemory_cache_shared off\n\
                 netdb_filename none\n"
            ),
        )?;
        let mut command = Command::new("squid");
        command
            .args(["-N", "-d", "1", "-n", &format!("harness{number}"), "-f"])
            .arg(dir.path().join("squid.conf"));
        let log = scratch.log("squid");
        let mut process = Process::spawn("squid", &mut command, &log)?;
        eventually("squid serves", &scratch.logs(), || {
            ensure!(process.is_running(), "squid ended: {}", read_log(&log));
            Ok(read_log(&log).contains("Accepting HTTP Socket connections").then_some(()))
        })?;
        Ok(Self { port, dir, process })
    }

    /// The table `[broker.proxy]` for it.
    pub fn table(&self) -> Result<String> {
        let file = self.password_file();
        fs::write(&file, format!("{PASSWORD}\n"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(format!(
            "[broker.proxy]\nurl = \"http://127.0.0.1:{}\"\nuser = \"{USER}\"\npassword_file = \"{}\"\n",
            self.port.number(),
            file.display()
        ))
    }

    /// What it was asked for, and what came of it.
    pub fn log(&self) -> String {
        read_log(&self.dir.path().join("access.log"))
    }

    /// Its process, to freeze it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// User and password, as they are sent together, and the password.
    pub fn credentials(&self) -> [Secret; 2] {
        [format!("{USER}:{PASSWORD}"), PASSWORD.to_owned()]
            .map(|text| Secret::kept_in("proxy's password", text, &self.password_file()))
    }

    /// Where [`table`](Self::table) has written the password.
    pub fn password_file(&self) -> PathBuf {
        self.dir.path().join("password")
    }
}
