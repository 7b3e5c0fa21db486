//! Name to addresses to one TCP connection.
//!
//! A name may lead to addresses that do not answer, typically IPv6 behind a firewall that drops it. So the next
//! address gets its turn while earlier ones are still silent (RFC 8305), and the first that answers wins. Those that stay
//! silent are asked again, for TCP by itself would find a link that is back after a cut late.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::sleep,
};

use super::{Milestone, PathError, Peer};

/// RFC 8305 §8 allows up to 2 s. On a metered link of such a round trip, less would open connections that are
/// not needed.
const HEAD_START: Duration = Duration::from_secs(2);
/// TCP asks again after twice as long each time; a link that is back after a cut is found within this.
const AGAIN: Duration = Duration::from_secs(5);
/// At once, of both kinds.
const MOST_ATTEMPTS: usize = 16;
/// A name with more addresses than this does not become more reachable by trying all.
const MOST_ADDRESSES: usize = 8;

pub(super) async fn connect(
    host: &str,
    port: u16,
    peer: &Peer,
    passed: &mut Vec<Milestone>,
) -> Result<TcpStream, PathError> {
    let unresolved = |source| PathError::Unresolved { peer: peer.clone(), source };
    let addresses = by_turns(lookup_host((host, port)).await.map_err(unresolved)?.collect());
    if addresses.is_empty() {
        return Err(unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    passed.push(Milestone::Resolved { name: host.to_owned(), addresses: addresses.clone() });
    let stream = first_to_answer(addresses)
        .await
        .map_err(|source| PathError::Unreachable { peer: peer.clone(), source })?;
    // Without TCP_NODELAY, Nagle and delayed ACK cost 44 ms per message.
    let set_up = stream.set_nodelay(true).and_then(|()| stream.peer_addr());
    let to = set_up.map_err(|source| PathError::Unreachable { peer: peer.clone(), source })?;
    passed.push(Milestone::Connected { to });
    Ok(stream)
}

/// RFC 8305 §4: the resolver's order, with the address families taking turns.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (leading, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|at| at.is_ipv6() == first);
    let mut other = other.into_iter();
    let mut mixed = Vec::new();
    for address in leading {
        mixed.push(address);
        mixed.extend(other.next());
    }
    mixed.extend(other);
    mixed.truncate(MOST_ADDRESSES);
    mixed
}

async fn first_to_answer(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    // dropped on return, which ends the attempts that are still under way
    let mut attempts = JoinSet::new();
    let mut waiting = VecDeque::from(addresses);
    let mut silent = VecDeque::new();
    let mut last_error = None;
    loop {
        if let Some(address) = waiting.pop_front() {
            attempts
                .spawn(async move { TcpStream::connect(address).await.map_err(|error| (address, error)) });
            silent.push_back(address);
        }
        let pause = if waiting.is_empty() { AGAIN } else { HEAD_START };
        tokio::select! {
            attempt = attempts.join_next() => match attempt {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err((address, error)))) => {
                    silent.retain(|other| *other != address);
                    last_error = Some(error);
                }
                Some(Err(error)) => last_error = Some(io::Error::other(error)),
                None => break,
            },
            () = sleep(pause) => {
                if waiting.is_empty() && attempts.len() < MOST_ATTEMPTS {
                    waiting.extend(silent.pop_front());
                }
            }
        }
    }
    Err(last_error.unwrap_or_else(|| io::Error::other("no attempt was made")))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    #[test]
    fn address_families_take_turns_in_the_resolvers_order() {
        let six = |last| SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last), 1));
        let four = |last| SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 1));
        let mixed = by_turns(vec![six(1), six(2), six(3), four(1), four(2)]);
        assert_eq!(mixed, [six(1), four(1), six(2), four(2), six(3)]);
        assert_eq!(by_turns(vec![four(1), six(1)]), [four(1), six(1)]);
        assert_eq!(by_turns((0..20).map(four).collect()).len(), MOST_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_stays_silent_does_not_stand_in_the_way_of_the_next() {
        let there = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let answers = there.local_addr().expect("its address");
        let refuses = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        // RFC 5737: goes nowhere, and may be refused at once where there is no route; either must be survived
        let silent = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
        let reached = first_to_answer(vec![silent, refuses, answers]).await.expect("the last one answers");
        assert_eq!(reached.peer_addr().expect("a peer"), answers);
    }

    #[tokio::test]
    async fn with_nothing_reachable_the_last_error_is_reported() {
        let refuses = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let error = first_to_answer(vec![refuses, refuses]).await.expect_err("nothing listens there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
