//! The device side of keylime-mqtt.
//!
//! The way of the data:
//!
//! ```text
//! TPM, IMA log, UEFI log -> evidence -> exchange::Attester -> MQTT
//! ```
//!
//! [`tpm`] owns the TPM and everything signed by it, [`logs`] reads what the kernel and the firmware wrote down,
//! [`store`] keeps the little that must outlive a restart, and [`config`] says where all of that is. What is sent, and
//! when, is decided by the state machine in `keylime-mqtt-schemas`; nothing here knows the protocol's order.

pub mod cli;
pub mod config;
pub mod doctor;
pub mod evidence;
pub mod logs;
pub mod run;
pub mod store;
pub mod tpm;
