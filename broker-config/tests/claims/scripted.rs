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
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.file("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(pki.file("broker.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(pki.file("broker.key")).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { port, listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// The next client that gets through TLS and says CONNECT.
    pub(crate) async fn accept(&self) -> Session {
        within_patience(self.next()).await
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
