//! A scripted broker, for what no real one does on request: it speaks just enough MQTT 3.1.1 over TLS to accept
//! a client and then acknowledge what, when and in which order the test says.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::ring,
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use crate::{pki::Pki, reader::within_patience};

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

pub(crate) struct ScriptedBroker {
    pub(crate) port: u16,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

/// One client that said CONNECT and was accepted.
pub(crate) struct Session {
    stream: TlsStream<TcpStream>,
}

/// A PUBLISH of QoS 1.
pub(crate) struct Published {
    pub(crate) packet_id: u16,
    pub(crate) payload: Vec<u8>,
}

impl Published {
    fn parse(body: &[u8]) -> Self {
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let packet_id = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
        Self { packet_id, payload: body[4 + topic..].to_vec() }
    }
}

impl ScriptedBroker {
    pub(crate) async fn listen(pki: &Pki, versions: &[&'static SupportedProtocolVersion]) -> Self {
        Self::listen_for(pki, versions, &[]).await
    }

    /// With these protocols for ALPN.
    pub(crate) async fn listen_for(
        pki: &Pki,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.file("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(pki.file("broker.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(pki.file("broker.key")).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { port, listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// The next client that gets through TLS and says CONNECT.
    pub(crate) async fn accept(&self) -> Session {
        within_patience(self.next()).await
    }

    /// Answers the next client that gets through TLS as an HTTP server would; returns the request.
    pub(crate) async fn answer_http(&self, answer: &str) -> String {
        within_patience(async {
            let (socket, _) = self.listener.accept().await.unwrap();
            let mut stream = self.acceptor.accept(socket).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(request).unwrap()
        })
        .await
    }

    async fn next(&self) -> Session {
        loop {
            let (socket, _) = self.listener.accept().await.unwrap();
            let Ok(stream) = self.acceptor.accept(socket).await else { continue };
            let mut session = Session { stream };
            assert_eq!(session.packet().await.expect("CONNECT").0 >> 4, CONNECT);
            // CONNACK: no session present, accepted
            session.stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
            return session;
        }
    }
}

impl Session {
    pub(crate) fn handshake(&self) -> HandshakeKind {
        self.stream.get_ref().1.handshake_kind().unwrap()
    }

    /// The certificate that the client showed.
    pub(crate) fn client_certificate(&self) -> Vec<u8> {
        self.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// Waits for DISCONNECT.
    pub(crate) async fn said_goodbye(&mut self) {
        within_patience(async { while self.packet().await.expect("DISCONNECT").0 >> 4 != DISCONNECT {} })
            .await;
    }

    /// The next PUBLISH, or `None` after the client closed the connection.
    pub(crate) async fn published(&mut self) -> Option<Published> {
        within_patience(async {
            loop {
                let (first, body) = self.packet().await?;
                if first >> 4 == PUBLISH {
                    return Some(Published::parse(&body));
                }
            }
        })
        .await
    }

    /// What is published until the client pings, which is left unanswered.
    pub(crate) async fn published_until_pinged(&mut self) -> Vec<Published> {
        within_patience(async {
            let mut published = Vec::new();
            loop {
                match self.packet().await.expect("PINGREQ") {
                    (first, body) if first >> 4 == PUBLISH => published.push(Published::parse(&body)),
                    (first, _) if first >> 4 == PINGREQ => return published,
                    _ => {}
                }
            }
        })
        .await
    }

    /// Waits until the client pings, and leaves that unanswered.
    pub(crate) async fn pinged(&mut self) {
        within_patience(async { while self.packet().await.expect("PINGREQ").0 >> 4 != PINGREQ {} }).await;
    }

    pub(crate) async fn acknowledge(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.stream.write_all(&[0x40, 2, high, low]).await.unwrap();
    }

    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((first, body))
    }
}
