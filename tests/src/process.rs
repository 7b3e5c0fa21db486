//! Processes that cannot be left behind.
//!
//! Every part runs in a process group of its own, and a guard, a shell that outlives this process by a moment,
//! knows them all. Dropping a [`Process`] kills its group; and when this process ends in any other way (a panic,
//! Ctrl-C, SIGKILL by a test runner), the guard sees its pipe close and kills what is left, grandchildren too,
//! and removes the scratch directories and network namespaces. `PR_SET_PDEATHSIG` would reach neither Keylime's forked workers nor
//! survive the end of the thread that spawned.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Told of every group and scratch directory; acts on what it still holds when its input ends.
const GUARD: &str = r#"
groups=" " dirs="" spaces=""
while read -r what which; do
  case $what in
    +group) groups="$groups$which " ;;
    -group) groups=$(printf %s "$groups" | sed "s/ $which / /") ;;
    +dir) dirs="$dirs$which
" ;;
    +netns) spaces="$spaces$which " ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
for space in $spaces; do ip netns del "$space" 2>/dev/null; rm -rf -- "/etc/netns/$space"; done
printf %s "$dirs" | while read -r dir; do rm -rf -- "$dir"; done
"#;

/// How long a SIGTERM is given before the next; Keylime drains for less when nothing is under way.
const ASK_AGAIN: Duration = Duration::from_secs(4);
/// How often a dying process is looked at.
const REAP_EVERY: Duration = Duration::from_millis(20);

/// Killed processes are gone at once; this long means that the kernel itself is stuck.
const KILL_GRACE: Duration = Duration::from_secs(10);

fn tell_guard(line: &str) {
    static GUARD_INPUT: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let input = GUARD_INPUT.get_or_init(|| {
        #[expect(clippy::zombie_processes, reason = "it outlives this process: that is its task")]
        let mut guard = Command::new("sh")
            .args(["-c", GUARD])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("no `sh` to guard the processes");
        Mutex::new(guard.stdin.take().expect("its input was piped"))
    });
    let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(input, "{line}").expect("the guard ended before the processes it guards");
}

/// Has `dir` removed when this process ends without removing it.
pub(crate) fn remove_at_exit(dir: &Path) {
    tell_guard(&format!("+dir {}", dir.display()));
}

/// Has the network namespace `name` and its files in /etc/netns removed when this process ends without removing them.
pub fn remove_netns_at_exit(name: &str) {
    tell_guard(&format!("+netns {name}"));
}

/// A running part with its log. Dropping it kills it and everything it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command` in a process group of its own, with standard output and error appended to `log`.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let errors = File::try_clone(&output)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        tell_guard(&format!("+group {}", child.id()));
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// Process id, and the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the whole group to end (SIGTERM) and waits; an error if it had to be killed.
    pub fn terminate(mut self, grace: Duration) -> Result<ExitStatus> {
        let status = self.ask_to_end(grace)?;
        // Helpers of a parent that ended well are given the time to follow it.
        let deadline = Instant::now() + grace;
        while !group_members(self.pid()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(REAP_EVERY);
        }
        Ok(status)
    }

    /// Sends SIGTERM until it is heard: Keylime loses one that comes while it forks its workers.
    fn ask_to_end(&mut self, grace: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + grace;
        loop {
            self.signal(Signal::SIGTERM);
            if let Ok(status) = self.wait(ASK_AGAIN) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {grace:?}; its log is {}", self.name, self.log.display());
            }
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {at_most:?}; its log is {}", self.name, self.log.display());
            }
            std::thread::sleep(REAP_EVERY);
        }
    }

    /// Kills it without a warning, as a power cut or the kernel's OOM killer would.
    pub fn kill(self) {
        drop(self);
    }

    /// Stops it in its tracks (SIGSTOP): it holds its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        // A group that has just ended by itself is what every caller wants in the end.
        killpg(group(self.pid()), signal).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let deadline = Instant::now() + KILL_GRACE;
        self.child.wait().ok();
        while !group_members(self.pid()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(REAP_EVERY);
        }
        tell_guard(&format!("-group {}", self.pid()));
    }
}

fn group(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process ids fit an i32"))
}

/// Ids of the processes of a group that have not ended: what a part has left behind.
pub fn group_members(group: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut members = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // proc(5): the name may hold spaces, so fields are counted after it: state, parent, group.
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let mut fields = fields.split(' ');
        let ended = matches!(fields.next(), Some("Z" | "X"));
        if !ended && fields.nth(1).and_then(|field| field.parse().ok()) == Some(group) {
            members.push(pid);
        }
    }
    members
}
