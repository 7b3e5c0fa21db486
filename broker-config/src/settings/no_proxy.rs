//! `NO_PROXY`: which hosts are reached without the proxy of the environment.
//!
//! There is no standard. Taken here is what curl, Go and Python's requests agree on: names match themselves and
//! what is below them, a leading dot changes nothing, `*` matches all, addresses match as addresses or networks,
//! a port after the name narrows it. This machine itself is never reached through a proxy, as in Go.

use std::net::IpAddr;

pub(super) fn excepts(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    if host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|at| at.is_loopback()) {
        return true;
    }
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        entry == "*"
            || match address {
                Some(address) => covers_address(entry, address, port),
                None => covers_name(&entry.to_ascii_lowercase(), &host, port),
            }
    })
}

fn covers_name(entry: &str, host: &str, port: u16) -> bool {
    let (name, only_port) = entry.rsplit_once(':').map_or((entry, None), |(name, port)| (name, Some(port)));
    if only_port.is_some_and(|only| only.parse() != Ok(port)) {
        return false;
    }
    let name = name.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
    !name.is_empty() && host.strip_suffix(name).is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

fn covers_address(entry: &str, address: IpAddr, port: u16) -> bool {
    if let Some((network, prefix)) = entry.split_once('/') {
        return network
            .parse()
            .ok()
            .zip(prefix.parse().ok())
            .is_some_and(|(network, prefix)| in_network(address, network, prefix));
    }
    if let Ok(only) = entry.parse::<std::net::SocketAddr>() {
        return only.ip() == address && only.port() == port;
    }
    entry.trim_start_matches('[').trim_end_matches(']').parse() == Ok(address)
}

fn in_network(address: IpAddr, network: IpAddr, prefix: u32) -> bool {
    let (address, network, bits) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    // a shift by all the bits would be an overflow, and means "every address"
    prefix <= bits && (address ^ network).checked_shr(bits - prefix).is_none_or(|differs| differs == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_themselves_and_what_is_below_them() {
        for list in [
            "example.org",
            ".example.org",
            "*.example.org",
            "a, example.org",
            "EXAMPLE.org",
            "x example.org",
            "example.org:443",
            "*",
        ] {
            assert!(excepts(list, "broker.example.org", 443), "{list}");
        }
        for list in ["", "ample.org", "broker.example", "example.org:8883", "b.broker.example.org", ".", ","]
        {
            assert!(!excepts(list, "broker.example.org", 443), "{list}");
        }
    }

    #[test]
    fn addresses_match_as_addresses_networks_and_with_a_port() {
        for list in ["192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "192.0.2.7:443", "192.0.2.7/32"] {
            assert!(excepts(list, "192.0.2.7", 443), "{list}");
        }
        for list in
            ["192.0.2.70", "192.0.3.0/24", "192.0.2.7:8883", "2.7", "192.0.2.0/33", "::/0", "192.0.2.6/32"]
        {
            assert!(!excepts(list, "192.0.2.7", 443), "{list}");
        }
        for list in ["2001:db8::7", "[2001:db8::7]", "2001:db8::/32", "[2001:db8::7]:443", "::/0"] {
            assert!(excepts(list, "2001:db8::7", 443), "{list}");
        }
        assert!(!excepts("2001:db8:1::/48", "2001:db8::7", 443));
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        for host in ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            assert!(excepts("", host, 443), "{host}");
        }
    }
}
