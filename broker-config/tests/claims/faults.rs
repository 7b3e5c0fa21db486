//! What stands in the way is named, with what to do about it.

use keylime_mqtt_broker_config::{Report, State};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::rustls::version::TLS13;

use crate::{
    mosquitto::{Mosquitto, free_port},
    pki::Pki,
    reader::Client,
    scripted::ScriptedBroker,
    squid::{PASSWORD, Squid},
};

/// The reason of the first attempt.
async fn reason(pki: &Pki, port: u16, more: &str) -> String {
    Client::start(pki.client("client", port, more), "client", &[]).loss().await
}

fn says(reason: &str, words: &[&str]) {
    for word in words {
        assert!(reason.contains(word), "{reason:?} does not say {word:?}");
    }
    assert!(!reason.contains(PASSWORD), "the password is in {reason:?}");
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_says_407_and_the_keys_to_set_or_to_check() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let squid = Squid::with_basic(broker.port);
    let none = reason(&pki, broker.port, &squid.table(None)).await;
    says(&none, &["407", "asks for", "broker.proxy.user", "broker.proxy.password_file"]);
    let wrong = reason(&pki, broker.port, &squid.table(Some("wrong"))).await;
    says(&wrong, &["407", "refused the user and password", "broker.proxy.password_file"]);
}

#[tokio::test]
async fn a_proxy_that_offers_no_basic_authentication_is_said_to_do_so() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let squid = Squid::with_digest(broker.port);
    says(&reason(&pki, broker.port, &squid.table(Some(PASSWORD))).await, &["Digest", "knows Basic"]);
}

#[tokio::test]
async fn a_stock_proxy_refuses_other_ports_than_443_and_the_reason_says_so() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    let squid = Squid::open(443);
    says(&reason(&pki, broker.port, &squid.table(None)).await, &["403", "port 443", "localhost:"]);
}

#[tokio::test]
async fn a_broker_that_the_proxy_cannot_reach_is_not_taken_for_a_missing_proxy() {
    let pki = Pki::new();
    let closed = free_port();
    let squid = Squid::open(closed);
    says(&reason(&pki, closed, &squid.table(None)).await, &["503", "broker.port", "as the proxy sees them"]);
    let missing = format!("[proxy]\nurl = 'http://127.0.0.1:{}'", free_port());
    says(&reason(&pki, closed, &missing).await, &["cannot reach the proxy", "broker.proxy.url"]);
    let unknown = "[proxy]\nurl = 'http://proxy.invalid:3128'";
    says(&reason(&pki, closed, unknown).await, &["no address for the proxy", "broker.proxy.url"]);
}

/// The `[proxy]` table of something that says this to whoever connects, and `more` until the client has enough of it.
async fn no_proxy(first: &'static [u8], more: &'static [u8]) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(first).await.unwrap();
                while !more.is_empty() && stream.write_all(more).await.is_ok() {}
            });
        }
    });
    format!("[proxy]\nurl = 'http://127.0.0.1:{port}'")
}

#[tokio::test]
async fn what_is_no_proxy_is_said_not_to_be_one() {
    let pki = Pki::new();
    let table = no_proxy(b"220 mail.test ESMTP\r\n\r\n", b"").await;
    says(&reason(&pki, 8883, &table).await, &["like an HTTP proxy", "broker.proxy.url"]);
}

#[tokio::test]
async fn of_an_answer_without_an_end_no_more_is_read_than_a_header_has() {
    let pki = Pki::new();
    let table = no_proxy(b"HTTP/1.1 200 Connection established\r\n", b"X-More: to come\r\n").await;
    says(&reason(&pki, 8883, &table).await, &["like an HTTP proxy", "broker.proxy.url"]);
}

#[tokio::test]
async fn tls_of_another_ca_behind_a_proxy_is_refused_as_an_interception_would_be() {
    let (pki, other) = (Pki::new(), Pki::named("proxy that inspects"));
    let broker = Mosquitto::open(&other);
    let squid = Squid::open(broker.port);
    let said = reason(&pki, broker.port, &squid.table(None)).await;
    says(&said, &["broker.ca_file", "a proxy that inspects TLS", "exempt this host"]);
}

#[tokio::test]
async fn a_scripted_broker_without_the_protocols_offered_refuses_and_is_understood() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen_for(&pki, &[&TLS13], &[b"http/1.1"]).await;
    let port = broker.port;
    tokio::spawn(async move { broker.accept().await });
    says(&reason(&pki, port, "alpn = ['mqtt']").await, &["broker.alpn"]);
    // what is offered beside it is taken
    let both = pki.client("client", port, "alpn = ['mqtt', 'http/1.1']");
    Client::connected(both, "client", &[]).await;
}

#[tokio::test]
async fn a_broker_that_ignored_alpn_and_then_hung_up_is_suspected_not_to_be_one() {
    let pki = Pki::new();
    // refuses the client's certificate only after TLS was done, as an HTTPS server would its first bytes
    let broker = Mosquitto::with_websocket(&pki);
    let said = reason(&pki, broker.websocket_port, "alpn = ['mqtt']").await;
    says(&said, &["broker.alpn"]);
}

#[tokio::test]
async fn a_port_without_tls_and_a_port_without_websocket_are_recognized() {
    let pki = Pki::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            // closing with unread bytes would reset the connection before the answer is read
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
    });
    says(&reason(&pki, port, "").await, &["does not speak TLS", "broker.port"]);
    let broker = Mosquitto::open(&pki);
    let said = reason(&pki, broker.port, "transport = 'websocket'").await;
    says(&said, &["WebSocket", "broker.transport"]);
}

#[tokio::test]
async fn a_refused_websocket_upgrade_says_the_status_and_the_key_to_look_at() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS13]).await;
    let port = broker.port;
    let statuses = [
        ("403 Forbidden", "broker.websocket_headers"),
        ("404 Not Found", "broker.websocket_path"),
        ("200 OK", "a web server"),
    ];
    let serving = tokio::spawn(async move {
        for (status, _) in statuses {
            let request =
                broker.answer_http(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
            assert!(request.starts_with("GET /ws?x=1 HTTP/1.1\r\n"), "{request}");
            assert!(
                request.to_ascii_lowercase().contains("\r\nsec-websocket-protocol: mqtt\r\n"),
                "{request}"
            );
            assert!(request.to_ascii_lowercase().contains("\r\nx-token: t0ken\r\n"), "{request}");
        }
    });
    let more =
        "transport = 'websocket'\nwebsocket_path = '/ws?x=1'\nwebsocket_headers = { X-Token = 't0ken' }";
    let mut client = Client::start(pki.client("client", port, more), "client", &[]);
    for (status, key) in statuses {
        let said = client.loss().await;
        says(&said, &[status.split(' ').next().unwrap(), key]);
        assert!(!said.contains("t0ken"), "a header's value is in {said:?}");
    }
    serving.await.unwrap();
}

#[tokio::test]
async fn a_silent_way_says_how_far_it_got() {
    let pki = Pki::new();
    // accepts by the kernel's backlog and never answers
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = reason(&pki, port, "connect_timeout_seconds = 1").await;
    says(&said, &["broker.connect_timeout_seconds", "TCP connection to 127.0.0.1"]);
}

#[tokio::test]
async fn a_doctor_walks_to_every_broker_and_says_how_far_it_got_without_disturbing_a_client() {
    let pki = Pki::new();
    let broker = Mosquitto::with_websocket(&pki);
    let squid = Squid::open(broker.websocket_port);
    let closed = free_port();
    let more = format!(
        "{}[[fallback]]\nhost = 'localhost'\nport = {}\ntransport = 'websocket'\n[[fallback]]\nhost = 'localhost'\n\
         port = {closed}\nproxy = 'none'\n",
        squid.table(None).replace("[proxy]\n", "").replace("url", "proxy.url"),
        broker.websocket_port,
    );
    let checked = pki.client("client", broker.port, &more);
    let mut client =
        Client::connected(pki.client("client", broker.port, "proxy = 'none'"), "client", &["t"]).await;
    let mut report = Report::new("doctor", None);
    assert_eq!(checked.check_ways(&mut report).await, [1], "the second is open");
    let steps: Vec<_> = report.steps().iter().map(|step| (step.step, step.state)).collect();
    let passed = ["name", "tcp"].map(|step| (step, State::Ok));
    let forbidden = [("proxy", State::Failed), ("tls", State::NotChecked)];
    let open = ["name", "tcp", "proxy", "tls", "websocket"].map(|step| (step, State::Ok));
    let absent = [("name", State::Ok), ("tcp", State::Failed), ("tls", State::NotChecked)];
    assert_eq!(steps, [&passed[..], &forbidden, &open, &absent].concat());
    let text: Vec<String> = report.steps().iter().map(ToString::to_string).collect();
    says(&text[2], &["403"]);
    for (said, word) in
        text[4..].iter().zip(["127.0.0.1", "TCP", "tunnel through", "TLSv1_3", "WebSocket at /mqtt"])
    {
        says(said, &[word]);
    }
    says(&text[10], &["cannot reach the broker", &format!("localhost:{closed}")]);
    client.round_trip("t").await;
}
