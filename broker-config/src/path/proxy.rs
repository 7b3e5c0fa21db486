//! A tunnel through an HTTP proxy (RFC 9110 §9.3.6, CONNECT), without or with Basic authentication (RFC 7617).
//!
//! Invariant: the credentials go to the proxy and nowhere else, not into an error or a log line either.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zeroize::Zeroizing;

use crate::settings::Proxy;

/// The header of an answer to CONNECT. Squid's are below 1 KiB, and refusals carry their page after it.
const LONGEST_HEADER: usize = 16 * 1024;
/// Read at once; more than most headers.
const CHUNK: usize = 1024;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error(
        "the proxy {proxy} (from {setting}) asks for a user and a password (407): set broker.proxy.user and broker.proxy.password_file"
    )]
    CredentialsMissing { proxy: String, setting: &'static str },
    #[error(
        "the proxy {proxy} (from {setting}) refused the user and password it was given (407): check broker.proxy.user and the contents of broker.proxy.password_file, or the variable if they come from there"
    )]
    CredentialsRefused { proxy: String, setting: &'static str },
    #[error(
        "the proxy {proxy} (from {setting}) authenticates by {offered} alone (407), and this client knows Basic: ask its operator for Basic or an exception for this machine"
    )]
    UnknownScheme { proxy: String, setting: &'static str, offered: String },
    #[error(
        "the proxy {proxy} (from {setting}) forbids connections to {target} ({status}): stock proxies allow port 443 alone, so use a broker at port 443, or have the proxy's operator allow this host and port"
    )]
    Forbidden { proxy: String, setting: &'static str, target: String, status: u16 },
    #[error(
        "the proxy {proxy} (from {setting}) cannot reach {target} ({status}): check broker.host and broker.port as the proxy sees them, and the firewall behind the proxy"
    )]
    BehindProxy { proxy: String, setting: &'static str, target: String, status: u16 },
    #[error(
        "the proxy {proxy} (from {setting}) answered CONNECT with status {status}: see the proxy's log, or check that {setting} names an HTTP proxy"
    )]
    Status { proxy: String, setting: &'static str, status: u16 },
    #[error("what listens at {proxy} does not answer like an HTTP proxy: check {setting}")]
    NotAProxy { proxy: String, setting: &'static str },
    #[error(
        "the proxy {proxy} (from {setting}) closed the connection without an answer ({source}): see the proxy's log"
    )]
    Closed { proxy: String, setting: &'static str, source: io::Error },
}

/// What an answer to CONNECT says, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// The schemes of `Proxy-Authenticate`.
    schemes: Vec<String>,
}

/// Asks the proxy for a tunnel to `target` (`host:port`).
pub(super) async fn tunnel(
    mut stream: TcpStream,
    proxy: &Proxy,
    target: &str,
) -> Result<TcpStream, ProxyError> {
    let (name, setting) = (proxy.address(), proxy.setting());
    let closed = |source| ProxyError::Closed { proxy: name.clone(), setting, source };
    stream.write_all(request(target, proxy).as_bytes()).await.map_err(closed)?;
    let mut header = Vec::new();
    let end = loop {
        if let Some(end) = end_of_header(&header) {
            break end;
        }
        if header.len() > LONGEST_HEADER || !begins_like_http(&header) {
            return Err(ProxyError::NotAProxy { proxy: name, setting });
        }
        header.reserve(CHUNK);
        if stream.read_buf(&mut header).await.map_err(closed)? == 0 {
            return Err(closed(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let answer = header.get(..end).and_then(parse);
    // TLS begins with the client: nothing can rightly follow the header of a tunnel that stands
    let extra = header.len() > end;
    match answer {
        None => Err(ProxyError::NotAProxy { proxy: name, setting }),
        Some(Answer { status: 200..=299, .. }) if extra => {
            Err(ProxyError::NotAProxy { proxy: name, setting })
        }
        Some(Answer { status: 200..=299, .. }) => Ok(stream),
        Some(answer) => Err(refusal(answer, proxy, target)),
    }
}

fn request(target: &str, proxy: &Proxy) -> Zeroizing<String> {
    let mut request = Zeroizing::new(String::with_capacity(CHUNK));
    request.push_str("CONNECT ");
    request.push_str(target);
    request.push_str(" HTTP/1.1\r\nHost: ");
    request.push_str(target);
    if let Some(basic) = proxy.basic() {
        request.push_str("\r\nProxy-Authorization: Basic ");
        request.push_str(&basic);
    }
    request.push_str("\r\n\r\n");
    request
}

fn refusal(Answer { status, schemes }: Answer, proxy: &Proxy, target: &str) -> ProxyError {
    let (name, setting, target) = (proxy.address(), proxy.setting(), target.to_owned());
    match status {
        407 if !schemes.is_empty() && !schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) => {
            ProxyError::UnknownScheme { proxy: name, setting, offered: schemes.join(", ") }
        }
        407 if proxy.basic().is_some() => ProxyError::CredentialsRefused { proxy: name, setting },
        407 => ProxyError::CredentialsMissing { proxy: name, setting },
        403 | 405 | 501 => ProxyError::Forbidden { proxy: name, setting, target, status },
        502..=504 => ProxyError::BehindProxy { proxy: name, setting, target, status },
        _ => ProxyError::Status { proxy: name, setting, status },
    }
}

/// Just after the empty line.
fn end_of_header(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn begins_like_http(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected)
}

fn parse(header: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(header);
    let mut lines = text.split("\r\n");
    let mut status_line = lines.next()?.split(' ');
    let _version = status_line.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = status_line.next().filter(|code| code.len() == 3)?.parse().ok()?;
    let schemes = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authenticate"))
        .filter_map(|(_, challenge)| challenge.split_whitespace().next())
        // goes to the log
        .map(|scheme| scheme.chars().filter(char::is_ascii_alphanumeric).take(20).collect())
        .collect();
    Some(Answer { status, schemes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_and_the_offered_schemes_are_read_and_all_else_is_skipped() {
        let text = b"HTTP/1.1 407 Proxy Authentication Required\r\nServer: squid\r\nProxy-Authenticate: Negotiate\r\n\
                     proxy-authenticate: NTLM realm=\"x\"\r\n\r\n";
        let answer = parse(text).expect("an answer");
        assert_eq!(answer, Answer { status: 407, schemes: vec!["Negotiate".into(), "NTLM".into()] });
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\n\r\n").expect("an answer").status, 200);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 2000 x\r\n\r\n",
            b"\r\n\r\n",
            b"\xff",
        ] {
            assert_eq!(parse(bytes), None);
        }
        assert!(
            begins_like_http(b"HT") && begins_like_http(b"HTTP/1.1 200") && !begins_like_http(b"\x15\x03")
        );
    }
}
