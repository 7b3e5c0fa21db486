//! A network namespace with a hosts file of its own.

use super::command::run;
use crate::process::remove_netns_at_exit;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;

/// A namespace that is removed with this value, and with it every interface in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, loopback up, where `name` is not taken.
    pub fn add(name: &str) -> Result<Self> {
        run(&["ip", "netns", "add", name])?;
        remove_netns_at_exit(name);
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        // what kernels have where nobody chose another, and what a namespace may choose always; both suffer most from cuts
        let choose =
            |congestion_control| namespace.sysctl("net/ipv4/tcp_congestion_control", congestion_control);
        choose("cubic").or_else(|_| choose("reno"))?;
        Ok(namespace)
    }

    /// What `ip netns` calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as a file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        run(&[&["ip", "-n", &self.name], arguments].concat())
    }

    /// Another program inside, to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&[&["ip", "netns", "exec", &self.name], arguments].concat())
    }

    /// What starts a program inside, with these variables; it becomes the program.
    pub fn launcher(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let mut command = ["ip", "netns", "exec", &self.name, "env"].map(str::to_owned).to_vec();
        command.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
        command
    }

    /// Sets `/proc/sys/{key}` inside.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let write = "printf %s \"$1\" > \"/proc/sys/$0\"";
        self.run(&["sh", "-c", write, key, value]).map(drop)
    }

    /// Names known inside, and no DNS.
    pub fn knows(&self, names: &[(&str, &str)]) -> Result<()> {
        let files = PathBuf::from("/etc/netns").join(&self.name);
        fs::create_dir_all(&files).with_context(|| format!("cannot create {}", files.display()))?;
        let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (address, name) in names {
            writeln!(hosts, "{address} {name}")?;
        }
        fs::write(files.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        Ok(fs::write(files.join("hosts"), hosts)?)
    }

    /// Calls `inside` on a thread that is in it, and brings back what it made.
    pub(super) fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let door = File::open(self.path())?;
        std::thread::scope(|scope| {
            let visitor = scope.spawn(move || {
                nix::sched::setns(door, nix::sched::CloneFlags::CLONE_NEWNET)?;
                inside()
            });
            visitor.join().map_err(|_| anyhow::anyhow!("a thread in {} panicked", self.name))?
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&["ip", "netns", "del", &self.name]).ok();
        fs::remove_dir_all(PathBuf::from("/etc/netns").join(&self.name)).ok();
    }
}
