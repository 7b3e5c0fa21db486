//! The way to one broker: name, proxy, TCP, TLS, WebSocket. What comes out is a byte stream for MQTT.
//!
//! ```text
//! resolve -> TCP -> [CONNECT through the proxy] -> TLS -> [WebSocket upgrade] -> ByteStream
//! ```
//!
//! Invariant: TLS is with the broker itself on every way. A proxy sees the broker's name and port and nothing
//! else; the certificate is verified for `host`, whatever address or proxy led there.

mod proxy;
mod tcp;
mod websocket;

use std::{fmt, io, net::SocketAddr, sync::Arc};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub(crate) use self::{proxy::ProxyError, websocket::UpgradeError};
use crate::settings::{Headers, Proxy};

/// What MQTT needs of a connection.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Where a broker is and how it is reached; the credentials are apart, for they change.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) server_name: ServerName<'static>,
    pub(crate) websocket: Option<Upgrade>,
    pub(crate) proxy: Option<Proxy>,
}

/// What the WebSocket upgrade asks for.
#[derive(Debug, Clone)]
pub(crate) struct Upgrade {
    pub(crate) path: String,
    pub(crate) headers: Headers,
}

/// A step of the way that was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// A name led to addresses.
    Resolved {
        /// The broker's name, or the proxy's.
        name: String,
        /// In the order in which they are tried.
        addresses: Vec<SocketAddr>,
    },
    /// A TCP connection stands.
    Connected {
        /// The broker, or the proxy.
        to: SocketAddr,
    },
    /// The proxy opened a tunnel to the broker.
    Tunnelled {
        /// `host:port` of the proxy.
        proxy: String,
    },
    /// TLS with the broker: its certificate is of a trusted CA, for its name, and valid now.
    Secured {
        /// As in `TLSv1_3`.
        version: String,
        /// What the broker chose of the protocols offered, if it chose any.
        alpn: Option<String>,
        /// The broker's certificate, DER.
        certificate: Option<Leaf>,
    },
    /// The WebSocket stands.
    Upgraded {
        /// The path asked for.
        path: String,
    },
}

/// A certificate as it was shown, DER. Debug output, which is logged with the way, has its size alone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Leaf(pub(crate) Vec<u8>);

impl fmt::Debug for Leaf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Leaf({} bytes)", self.0.len())
    }
}

impl fmt::Display for Milestone {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolved { name, addresses } => write!(out, "{name} has {} address(es)", addresses.len()),
            Self::Connected { to } => write!(out, "TCP connection to {to}"),
            Self::Tunnelled { proxy } => write!(out, "tunnel through the proxy {proxy}"),
            Self::Secured { version, alpn: None, .. } => write!(out, "{version} with the broker"),
            Self::Secured { version, alpn: Some(alpn), .. } => {
                write!(out, "{version} with the broker, ALPN {alpn}")
            }
            Self::Upgraded { path } => write!(out, "WebSocket at {path}"),
        }
    }
}

/// Who was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    Broker { address: String },
    Proxy { address: String, setting: &'static str },
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker { address } => write!(out, "the broker {address}"),
            Self::Proxy { address, setting } => write!(out, "the proxy {address} (from {setting})"),
        }
    }
}

impl Peer {
    /// What to look at.
    fn remedy(&self) -> String {
        match self {
            Self::Broker { .. } => {
                "check broker.host, broker.port, whether the broker runs, and the firewalls \
                                    on the way (is a proxy needed?)"
                    .into()
            }
            Self::Proxy { setting, .. } => format!("check {setting} and whether the proxy runs"),
        }
    }
}

/// Where the way ended, whose fault that is and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error("no address for {peer} ({source}): {}, and this machine's name resolution", peer.remedy())]
    Unresolved { peer: Peer, source: io::Error },
    #[error("cannot reach {peer} ({source}): {}", peer.remedy())]
    Unreachable { peer: Peer, source: io::Error },
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Holds a [`rustls::Error`], or says that the connection ended.
    #[error("TLS with the broker failed: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    WebSocket(#[from] UpgradeError),
}

impl Route {
    /// `host:port`, with brackets around an IPv6 address.
    pub(crate) fn address(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Walks the way, noting each step that was passed. Takes as long as it takes: the caller has the clock.
    pub(crate) async fn open(
        &self,
        tls: &Arc<ClientConfig>,
        passed: &mut Vec<Milestone>,
    ) -> Result<Box<dyn ByteStream>, PathError> {
        let tcp = match &self.proxy {
            None => {
                let peer = Peer::Broker { address: self.address() };
                tcp::connect(&self.host, self.port, &peer, passed).await?
            }
            Some(proxy) => {
                let peer = Peer::Proxy { address: proxy.address(), setting: proxy.setting() };
                let tcp = tcp::connect(proxy.host(), proxy.port(), &peer, passed).await?;
                let tunnel = proxy::tunnel(tcp, proxy, &self.address()).await?;
                passed.push(Milestone::Tunnelled { proxy: proxy.address() });
                tunnel
            }
        };
        let secured = TlsConnector::from(Arc::clone(tls))
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(PathError::Tls)?;
        let (_, session) = secured.get_ref();
        passed.push(Milestone::Secured {
            version: session.protocol_version().map(|version| format!("{version:?}")).unwrap_or_default(),
            alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            certificate: session
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|leaf| Leaf(leaf.to_vec())),
        });
        let Some(upgrade) = &self.websocket else { return Ok(Box::new(secured)) };
        let stream = websocket::upgrade(secured, &self.host, self.port, upgrade).await?;
        passed.push(Milestone::Upgraded { path: upgrade.path.clone() });
        Ok(Box::new(stream))
    }
}

/// RFC 3986 §3.2.2: an IPv6 address stands in brackets before a port.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether the peer, or something on the way, ended the connection.
pub(crate) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
