//! The network between client and broker, which can be cut, stalled and turned into a black hole.
//!
//! A fate befalls the connections that exist at that moment; later ones pass.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

/// Small, so that a stalled connection fills up after a few messages.
const RECEIVE_BUFFER: u32 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Passes,
    /// Reset both ways.
    Cut,
    /// Nothing is read any more: the sender's window closes.
    Stalls,
    /// Everything is read and thrown away.
    BlackHole,
}

pub(crate) struct Relay {
    pub(crate) port: u16,
    /// The fate of connections with a number up to this one.
    fate: watch::Sender<(u64, Fate)>,
    accepted: watch::Receiver<u64>,
}

impl Relay {
    pub(crate) fn to(broker: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fate, fates) = watch::channel((0, Fate::Passes));
        let (count, accepted) = watch::channel(0);
        tokio::spawn(accept(listener, broker, fates, count));
        Self { port, fate, accepted }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> u64 {
        *self.accepted.borrow()
    }

    pub(crate) fn cut(&self) {
        self.fate.send_replace((self.accepted(), Fate::Cut));
    }

    pub(crate) fn stall(&self) {
        self.fate.send_replace((self.accepted(), Fate::Stalls));
    }

    pub(crate) fn swallow(&self) {
        self.fate.send_replace((self.accepted(), Fate::BlackHole));
    }
}

async fn accept(
    listener: TcpListener,
    broker: u16,
    fates: watch::Receiver<(u64, Fate)>,
    count: watch::Sender<u64>,
) {
    let count = Arc::new(count);
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let mut number = 0;
        count.send_modify(|accepted| {
            *accepted += 1;
            number = *accepted;
        });
        tokio::spawn(carry(client, broker, number, fates.clone()));
    }
}

async fn carry(client: TcpStream, broker: u16, number: u64, fates: watch::Receiver<(u64, Fate)>) {
    // a broker that is away looks like a connection closed at once
    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)).await else { return };
    client.set_nodelay(true).unwrap();
    broker.set_nodelay(true).unwrap();
    let (client_in, client_out) = client.into_split();
    let (broker_in, broker_out) = broker.into_split();
    tokio::select! {
        () = pump(client_in, broker_out, number, fates.clone()) => {}
        () = pump(broker_in, client_out, number, fates) => {}
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    number: u64,
    mut fates: watch::Receiver<(u64, Fate)>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let (up_to, fate) = *fates.borrow_and_update();
        let fate = if number <= up_to { fate } else { Fate::Passes };
        if fate == Fate::Cut {
            return;
        }
        tokio::select! {
            changed = fates.changed() => if changed.is_err() { return },
            read = from.read(&mut buffer), if fate != Fate::Stalls => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if fate == Fate::BlackHole => {}
                Ok(length) => if to.write_all(&buffer[..length]).await.is_err() { return },
            },
        }
    }
}
