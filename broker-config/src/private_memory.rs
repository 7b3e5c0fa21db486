//! What is in memory stays there: keys, tickets and session tokens.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// Lets the kernel write no core file of this process, and no other process of its user read its memory.
///
/// Where the system refuses, as some sandboxes do, it is said and the process goes on.
pub fn keep_memory_private() {
    for refused in
        [set_dumpable(false).err(), setrlimit(Resource::RLIMIT_CORE, 0, 0).err()].into_iter().flatten()
    {
        tracing::warn!(error = %refused, "a core file of this process might be written: forbid it in its service unit");
    }
}
