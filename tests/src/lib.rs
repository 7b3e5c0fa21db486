//! End to end: a harness of real parts, and scenarios named as claims.
//!
//! Nothing here imitates: Keylime is the published one, TPMs are swtpm with EK certificates, brokers are mosquitto
//! and rumqttd, agent and bridge run as the binaries that are shipped. A test calls [`world`] and gets a small
//! world of its own, with its own Keylime, broker, CAs and ports, and all of it ends with the test.
//!
//! **One Keylime per test**, although a start costs about three seconds: a verifier that is killed, restarted or
//! configured by one scenario is nobody else's, session limits are not shared, and the same tests run one per
//! process (nextest) or as threads of one (`cargo test`). What makes a start cheap is the template in
//! [`keylime`]: CA, keys and migrated databases are made once and copied.
//!
//! | module | part |
//! |---|---|
//! | [`world`] | all of the below in one call, with devices and scenario steps |
//! | [`keylime`], [`keylime_config`], [`operator`] | registrar, verifier; `keylime_tenant` as an operator uses it |
//! | [`swtpm`], [`mux`], [`tpm`] | a device's TPM and a way to share it |
//! | [`device`], [`bridge`] | agent and bridge as shipped |
//! | [`measured_boot`], [`ima`], [`programs`] | firmware's and kernel's measurements, in logs and PCRs |
//! | [`broker`], [`pki`] | mosquitto and rumqttd; certificates |
//! | [`chain`], [`stand_in`], [`clock`] | an IoT gateway's broker before the cloud's; a cloud's limits; a device's wall clock |
//! | [`between`], [`stranger`] | a hostile broker: two real ones and a liar between them, with a key of its own |
//! | [`campaign`] | a fleet under lies, and what is true in the end |
//! | [`netlab`] | devices behind firewalls, NAT, proxies and bad links |
//! | [`link`], [`disk`] | ways that are cut, stalled or slow; disks that are full |
//! | [`held`] | what a process that lives on holds |
//! | [`secrets`] | what must show nowhere |
//! | [`observe`] | a client that sees what relying parties see, and one that sees everything |
//! | [`process`], [`scratch`], [`ports`], [`eventually`], [`binaries`] | nothing left behind, nothing fixed, nothing guessed |

// A harness that panics fails the test that uses it, which is what it is for.
#![allow(clippy::expect_used)]

pub mod between;
pub mod binaries;
pub mod bridge;
pub mod broker;
pub mod campaign;
pub mod chain;
pub mod clock;
pub mod device;
pub mod disk;
pub mod eventually;
pub mod held;
pub mod ima;
pub mod keylime;
pub mod keylime_config;
pub mod link;
pub mod measured_boot;
pub mod mux;
pub mod netlab;
pub mod observe;
pub mod operator;
pub mod pki;
pub mod ports;
pub mod process;
pub mod programs;
pub mod scratch;
pub mod secrets;
pub mod squid;
pub mod stand_in;
pub mod stranger;
pub mod swtpm;
pub mod tpm;
pub mod world;
