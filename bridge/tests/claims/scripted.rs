//! An HTTPS server that plays a script: no Keylime, but everything that Keylime, a proxy or an enemy in its place might answer

use keylime_mqtt_bridge::keylime::{EndpointSettings, trust_from_ca_file};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// One scripted answer
#[derive(Clone)]
pub enum Play {
    /// Status, headers, body
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Takes the request and says nothing until the client gives up
    Silence,
    /// Sends headers that promise more than comes, and closes
    BreakOff,
    /// Sends body bytes for ever
    Endless(u16),
    /// Sends a body that promises to end and comes a byte at a time
    Drip(u16),
    /// Sends bytes that are not HTTP
    NotHttp,
}

/// A request as it arrived
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub struct Scripted {
    pub settings: EndpointSettings,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    dir: TempDir,
}

type Script = Arc<dyn Fn(&Seen) -> Option<Play> + Send + Sync>;

pub fn answer(status: u16, body: impl Into<Vec<u8>>) -> Play {
    Play::Answer(status, vec![], body.into())
}

/// An error as Keylime's v2 renders it
pub fn error_v2(status: u16) -> Play {
    answer(status, format!(r#"{{"code":{status},"status":"said the script","results":{{}}}}"#))
}

/// A JSON:API error as Keylime renders it
pub fn error(status: u16, code: &str) -> Play {
    let body =
        format!(r#"{{"errors":[{{"status":"{status}","code":"{code}","detail":"said the script"}}]}}"#);
    answer(status, body)
}

impl Scripted {
    /// Plays the script over one connection or several, one answer per request, then closes
    pub async fn start(script: Vec<Play>) -> Self {
        Self::start_with(script, |_| {}).await
    }

    pub async fn start_with(script: Vec<Play>, change: impl FnOnce(&mut EndpointSettings)) -> Self {
        let script = Mutex::new(VecDeque::from(script));
        Self::serve(Arc::new(move |_: &Seen| script.lock().unwrap().pop_front()), change).await
    }

    /// Answers each request by what it is
    pub async fn answering(script: impl Fn(&Seen) -> Option<Play> + Send + Sync + 'static) -> Self {
        Self::serve(Arc::new(script), |_| {}).await
    }

    async fn serve(script: Script, change: impl FnOnce(&mut EndpointSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let recorded = seen.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, script, seen) = (acceptor.clone(), script.clone(), recorded.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        play(stream, script.as_ref(), &seen).await;
                    }
                });
            }
        });
        let mut settings = EndpointSettings {
            url: format!("https://localhost:{port}").parse().unwrap(),
            tls: Some(trust_from_ca_file(&ca_file).unwrap()),
            timeout: Duration::from_secs(20),
            lanes: 1,
        };
        change(&mut settings);
        Self { settings, seen, connections, dir }
    }

    /// The CA that the server's certificate leads to
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Connections that were made so far
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn play(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &(dyn Fn(&Seen) -> Option<Play> + Send + Sync),
    seen: &Mutex<Vec<Seen>>,
) {
    while let Some(request) = read_request(&mut stream).await {
        seen.lock().unwrap().push(request.clone());
        let Some(play) = script(&request) else { return };
        let done = match play {
            Play::Answer(status, headers, body) => {
                let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    write!(head, "{name}: {value}\r\n").unwrap();
                }
                head.push_str("\r\n");
                stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err()
            }
            Play::Silence => {
                // held open until the test's runtime ends
                Notify::new().notified().await;
                true
            }
            Play::BreakOff => {
                stream.write_all(b"HTTP/1.1 200 Scripted\r\ncontent-length: 5000\r\n\r\n{\"da").await.ok();
                true
            }
            Play::Endless(status) => {
                let head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: 9000000000\r\n\r\n");
                stream.write_all(head.as_bytes()).await.ok();
                while stream.write_all(&vec![b' '; 65536]).await.is_ok() {}
                true
            }
            Play::Drip(status) => {
                let head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: 100000\r\n\r\n");
                stream.write_all(head.as_bytes()).await.ok();
                while stream.write_all(b" ").await.is_ok() && stream.flush().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                true
            }
            Play::NotHttp => {
                stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.ok();
                true
            }
        };
        stream.flush().await.ok();
        if done {
            stream.shutdown().await.ok();
            return;
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let (line, headers) = head.split_once("\r\n")?;
    let length = headers
        .lines()
        .find_map(|header| header.to_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_owned()))
        .map_or(0, |n| n.parse().unwrap());
    let mut body = bytes[end + 4..].to_vec();
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen { line: line.to_owned(), headers: headers.to_lowercase(), body })
}
