//! Stands before a software TPM and answers commands in its place: the only way to make it say "retry".

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::ports::PortPair;

pub(crate) struct RetryProxy {
    port: u16,
    /// How many commands are still answered here, and with which response code.
    plan: Arc<Mutex<(u32, u32)>>,
}

/// As a TPM's TCTI wants them: commands on a port, control on the one after it.
pub(crate) fn listeners() -> (TcpListener, TcpListener, u16) {
    let ports = PortPair::claim();
    let listen = |port| TcpListener::bind(("127.0.0.1", port)).unwrap();
    (listen(ports.first()), listen(ports.first() + 1), ports.first())
}

impl RetryProxy {
    pub(crate) fn before(tpm: u16) -> Self {
        let (data, control, port) = listeners();
        let plan = Arc::new(Mutex::new((0, 0)));
        let shared = Arc::clone(&plan);
        thread::spawn(move || {
            for client in data.incoming() {
                let (client, shared) = (client.unwrap(), Arc::clone(&shared));
                let tpm = TcpStream::connect(("127.0.0.1", tpm)).unwrap();
                thread::spawn(move || serve(client, tpm, &shared));
            }
        });
        thread::spawn(move || {
            for client in control.incoming() {
                let client = client.unwrap();
                let tpm = TcpStream::connect(("127.0.0.1", tpm + 1)).unwrap();
                copy(client.try_clone().unwrap(), tpm.try_clone().unwrap());
                copy(tpm, client);
            }
        });
        Self { port, plan }
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    pub(crate) fn answer_next(&self, commands: u32, code: u32) {
        *self.plan.lock().unwrap() = (commands, code);
    }
}

pub(crate) fn copy(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        std::io::copy(&mut from, &mut to).ok();
        to.shutdown(std::net::Shutdown::Both).ok();
    });
}

/// Commands and responses both carry their size in bytes 2 to 5.
pub(crate) fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 10];
    stream.read_exact(&mut message).ok()?;
    let size = u32::from_be_bytes(message[2..6].try_into().unwrap());
    message.resize(size as usize, 0);
    stream.read_exact(&mut message[10..]).ok()?;
    Some(message)
}

fn serve(mut client: TcpStream, mut tpm: TcpStream, plan: &Mutex<(u32, u32)>) {
    while let Some(command) = message(&mut client) {
        let refused = {
            let mut plan = plan.lock().unwrap();
            let refused = (plan.0 > 0).then_some(plan.1);
            plan.0 = plan.0.saturating_sub(1);
            refused
        };
        let response = if let Some(code) = refused {
            [&[0x80, 0x01, 0, 0, 0, 10][..], &code.to_be_bytes()].concat()
        } else {
            tpm.write_all(&command).unwrap();
            let Some(response) = message(&mut tpm) else { return };
            response
        };
        if client.write_all(&response).is_err() {
            return;
        }
    }
}
