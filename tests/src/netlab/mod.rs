//! A network of namespaces: devices behind firewalls, NAT, proxies and bad links, and brokers far away.
//!
//! ```text
//!  site, one per device                                    internet
//!  +--------+  TUN, link  +------+  veth   +---------------------------------------+  veth
//!  | device | ----------- | edge | ------- | 8883 mosquitto, 443 haproxy by ALPN   | ------ this machine:
//!  +--------+             +------+         +-----------------+---------------------+        bridge, Keylime
//!               firewall, NAT, [gateway's mosquitto]         | veth
//!                                                     proxy: squid
//! ```
//!
//! Each box is a namespace of its own. Nothing of this machine's own network is touched but one veth interface; names
//! come from hosts files, so nobody asks a DNS server. All of it ends with its value, and with the process however
//! that ends (see [`crate::process`]).

mod command;
mod gateway;
mod internet;
mod link;
mod listeners;
mod namespace;
mod proxy;
mod shaper;
mod site;
mod ways;
mod world;

pub use command::run;
pub use gateway::Gateway;
pub use internet::{BROKER, BROKER_PORT, Internet, SHARED_PORT};
pub use link::{Carried, LinkProfile, Outage};
pub use listeners::{Listeners, listening};
pub use namespace::Namespace;
pub use proxy::{PASSWORD, PROXY, Proxy, ProxyPort, USER};
pub use site::{GATEWAY, Hole, Site, SiteSettings};
pub use ways::{Carrier, Told, Way};
pub use world::{NetWorld, why_not};
