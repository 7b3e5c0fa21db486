//! The contract between the agent on a device and the bridge beside a broker.
//!
//! ```text
//! agent   evidence -> exchange::Attester -> codec, fragment -> MQTT
//! bridge  MQTT -> codec, fragment -> exchange::Relay -> Keylime
//! ```
//!
//! Everything here is pure: no I/O, no clock, no randomness. `keylime-mqtt.cddl` beside this crate is the grammar
//! of what travels; [`messages`] are the same as types; [`codec`] holds both to the one deterministic form;
//! [`exchange`] says who answers what, and when.

pub mod agent_id;
pub mod codec;
pub mod compact;
pub mod exchange;
pub mod fragment;
pub mod ima;
pub mod messages;
pub mod statement;
pub mod topics;
pub mod wire;

pub use agent_id::AgentId;
