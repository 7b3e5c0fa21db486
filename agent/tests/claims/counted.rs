//! Stands between agent and broker and counts the bytes of each connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

pub(crate) struct Counted {
    pub(crate) port: u16,
    connections: Arc<Mutex<Vec<Bytes>>>,
}

impl Counted {
    pub(crate) fn to(broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let counting = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let broker = TcpStream::connect(("127.0.0.1", broker)).unwrap();
                let number = counting.lock().unwrap().len();
                counting.lock().unwrap().push(Bytes::default());
                let count = |upward: bool| {
                    let counting = Arc::clone(&counting);
                    move |bytes: u64| {
                        let connection = &mut counting.lock().unwrap()[number];
                        *(if upward { &mut connection.up } else { &mut connection.down }) += bytes;
                    }
                };
                copy(client.try_clone().unwrap(), broker.try_clone().unwrap(), count(true));
                copy(broker, client, count(false));
            }
        });
        Self { port, connections }
    }

    pub(crate) fn connections(&self) -> Vec<Bytes> {
        self.connections.lock().unwrap().clone()
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64) + Send + 'static) {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            count(read as u64);
            if to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Both).ok();
    });
}
