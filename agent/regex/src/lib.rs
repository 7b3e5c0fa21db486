//! `regex-lite` under the name `regex`.
//!
//! tss-esapi reads the name of a TCTI (`swtpm:host=…,port=…`) with nine patterns of a few characters, and its types can be
//! made in no other way. The full regex engine for that, with its Unicode tables, is a fifth of the agent's program.
//! regex-lite is by the same authors and has the same API without them.

pub use regex_lite::*;
