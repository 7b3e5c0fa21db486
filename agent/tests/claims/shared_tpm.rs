//! Stands before a software TPM, counts the commands that an agent sends, and lets the test extend PCRs beside it, as the
//! kernel does: swtpm itself serves one connection at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::retry_proxy::{copy, message};

/// TPM 2.0 Part 2, 6.5.2.
pub(crate) const QUOTE: u32 = 0x158;
pub(crate) const PCR_READ: u32 = 0x17E;
const PCR_EXTEND: u32 = 0x182;

#[derive(Clone)]
pub(crate) struct SharedTpm {
    port: u16,
    tpm: Arc<Mutex<TcpStream>>,
    commands: Arc<Mutex<BTreeMap<u32, u32>>>,
    /// A command after each of which a PCR is extended.
    restless: Arc<Mutex<Option<(u32, u8)>>>,
}

impl SharedTpm {
    pub(crate) fn before(tpm: u16) -> Self {
        let (data, control, port) = crate::retry_proxy::listeners();
        let shared = Self {
            port,
            tpm: Arc::new(Mutex::new(TcpStream::connect(("127.0.0.1", tpm)).unwrap())),
            commands: Arc::default(),
            restless: Arc::default(),
        };
        let serving = shared.clone();
        thread::spawn(move || {
            for client in data.incoming() {
                let (client, serving) = (client.unwrap(), serving.clone());
                thread::spawn(move || serving.serve(client));
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
        shared
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Command codes and how often each was sent since the last call.
    pub(crate) fn commands(&self) -> BTreeMap<u32, u32> {
        std::mem::take(&mut self.commands.lock().unwrap())
    }

    /// TPM2_PCR_Extend with an empty password. TPM 2.0 Part 3, 22.2.
    pub(crate) fn extend(&self, pcr: u8, digest: [u8; 32]) {
        let body = [
            &PCR_EXTEND.to_be_bytes()[..],
            &u32::from(pcr).to_be_bytes(),
            &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0x00, 0x0B],
            &digest,
        ]
        .concat();
        let size = u32::try_from(body.len() + 6).unwrap();
        let command = [&[0x80, 0x02][..], &size.to_be_bytes(), &body].concat();
        assert_eq!(self.transmit(&command)[6..10], [0; 4]);
    }

    /// From now on extends `pcr` after each of these commands.
    pub(crate) fn extend_at_each(&self, command: u32, pcr: u8) {
        *self.restless.lock().unwrap() = Some((command, pcr));
    }

    fn serve(&self, mut client: TcpStream) {
        while let Some(command) = message(&mut client) {
            let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
            *self.commands.lock().unwrap().entry(code).or_default() += 1;
            let response = self.transmit(&command);
            if let Some((_, pcr)) = self.restless.lock().unwrap().filter(|(after, _)| *after == code) {
                self.extend(pcr, [1; 32]);
            }
            if client.write_all(&response).is_err() {
                return;
            }
        }
    }

    fn transmit(&self, command: &[u8]) -> Vec<u8> {
        let mut tpm = self.tpm.lock().unwrap();
        tpm.write_all(command).unwrap();
        message(&mut tpm).unwrap()
    }
}
