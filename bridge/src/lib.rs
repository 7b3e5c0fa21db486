//! Server side: Keylime REST, restoring evidence, scheduling
