//! MQTT in a WebSocket (OASIS MQTT 3.1.1 §6): the upgrade, and frames that look like a byte stream.
//!
//! Invariant: MQTT packets and WebSocket frames need not begin or end together (§6.0.0-3), so bytes are passed on
//! as they come. Frames of text are a protocol error.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        error::{ProtocolError, SubProtocolError},
        handshake::client::Request,
        http::{HeaderName, HeaderValue, Uri},
        protocol::WebSocketConfig,
    },
};

use super::{ByteStream, Upgrade, is_end};

/// As IANA registers it for MQTT 3.1.1 and 5.
const SUBPROTOCOL: &str = "mqtt";
/// Above what MQTT itself may bring (see the driver), so that the limit there is the one that counts.
const LARGEST_MESSAGE: usize = 8 * 1024 * 1024;
/// Not named in the Host header, as browsers do.
const HTTPS: u16 = 443;

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the peer refused a WebSocket at {path} (status {status}): {}", hint(*status))]
    Refused { path: String, status: u16 },
    #[error(
        "the WebSocket at {path} does not carry MQTT (no subprotocol \"mqtt\" in the answer): check broker.websocket_path"
    )]
    NotMqtt { path: String },
    #[error(
        "the peer does not answer like a WebSocket ({reason}): check broker.port and broker.websocket_path, or set broker.transport = \"tls\""
    )]
    NotWebSocket { reason: String },
    #[error("broker.websocket_path or broker.websocket_headers cannot be sent ({reason})")]
    Request { reason: String },
    #[error(
        "the peer closed the connection instead of answering the WebSocket upgrade: it refused broker.cert_file, or it expects no WebSocket, so check broker.port, or set broker.transport = \"tls\""
    )]
    Closed,
    /// The connection below failed; may hold a [`rustls::Error`].
    #[error("{0}")]
    Io(io::Error),
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "check broker.websocket_headers and what the broker's listener asks for",
        404 | 405 => "check broker.websocket_path",
        200..=299 => {
            "a web server listens there; check broker.websocket_path, or set broker.transport = \"tls\""
        }
        300..=399 => {
            "it redirects elsewhere; set broker.host, broker.port and broker.websocket_path to there"
        }
        _ => "see the log of the broker, or of what stands before it",
    }
}

/// Upgrades a stream on which TLS was done already.
pub(super) async fn upgrade<S: ByteStream>(
    stream: S,
    host: &str,
    port: u16,
    wanted: &Upgrade,
) -> Result<Frames<S>, UpgradeError> {
    let request = request(host, port, wanted)?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((frames, _)) => Ok(Frames { frames, unread: Bytes::new() }),
        Err(error) => Err(refusal(error, &wanted.path)),
    }
}

fn request(host: &str, port: u16, wanted: &Upgrade) -> Result<Request, UpgradeError> {
    let unusable = |reason: String| UpgradeError::Request { reason };
    let authority = match (port, host.contains(':')) {
        (HTTPS, true) => format!("[{host}]"),
        (HTTPS, false) => host.to_owned(),
        _ => super::authority(host, port),
    };
    let uri: Uri =
        format!("wss://{authority}{}", wanted.path).parse().map_err(|_| unusable("not a path".into()))?;
    let mut request = uri.into_client_request().map_err(|error| unusable(error.to_string()))?;
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    for (name, value) in wanted.headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let mut value = HeaderValue::from_str(value).map_err(|error| unusable(error.to_string()))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(request)
}

fn refusal(error: tungstenite::Error, path: &str) -> UpgradeError {
    use tungstenite::Error;
    match error {
        Error::Http(answer) => {
            UpgradeError::Refused { path: path.to_owned(), status: answer.status().as_u16() }
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => UpgradeError::NotMqtt { path: path.to_owned() },
        Error::Io(error) if is_end(&error) => UpgradeError::Closed,
        Error::Io(error) => UpgradeError::Io(error),
        Error::Protocol(ProtocolError::HandshakeIncomplete) | Error::ConnectionClosed => UpgradeError::Closed,
        error => UpgradeError::NotWebSocket { reason: error.to_string() },
    }
}

/// The frames of a WebSocket as a byte stream.
pub(super) struct Frames<S> {
    frames: WebSocketStream<S>,
    /// Of the last binary frame.
    unread: Bytes,
}

impl<S: ByteStream> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.frames).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                // tungstenite has answered the ping
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let error = "a WebSocket frame that is not binary";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
                Some(Err(error)) => return Poll::Ready(ended(error)),
            }
        }
        let count = self.unread.len().min(out.remaining());
        out.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncWrite for Frames<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let frames = Pin::new(&mut self.frames);
        if let Err(error) = ready!(frames.poll_ready(cx)) {
            return Poll::Ready(Err(broken(error)));
        }
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        match Pin::new(&mut self.frames).start_send(message) {
            Ok(()) => Poll::Ready(Ok(bytes.len())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_close(cx).map_err(broken)
    }
}

/// A WebSocket that was closed in order is the end of the stream.
fn ended(error: tungstenite::Error) -> io::Result<()> {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Ok(()),
        error => Err(broken(error)),
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::UnexpectedEof.into()
        }
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::BrokenPipe.into()
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}
