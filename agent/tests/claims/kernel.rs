//! What the kernel does while a device is attested: writes down what it measures and extends PCR 10 with it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::shared_tpm::SharedTpm;

pub(crate) struct Kernel {
    log: File,
    tpm: SharedTpm,
    pub(crate) entries: u64,
}

impl Kernel {
    pub(crate) fn new(log: &Path, tpm: SharedTpm) -> Self {
        Self { log: OpenOptions::new().append(true).open(log).unwrap(), tpm, entries: 0 }
    }

    /// A file of this name is opened: an `ima-ng` entry. Linux, `ima_template_lib.c`.
    pub(crate) fn measure(&mut self, name: &[u8]) {
        let digest = Sha256::digest(name);
        let data =
            [&40_u32.to_le_bytes()[..], b"sha256:\0", &digest, &sized(&[name, b"\0"].concat())].concat();
        let digest = format!("ima-ng sha256:{} ", hex::encode(digest));
        self.write(&data, &[digest.as_bytes(), name].concat());
    }

    /// A buffer is measured: an `ima-buf` entry, whose line is twice as long as the buffer.
    pub(crate) fn measure_buffer(&mut self, name: &str, buffer: &[u8]) {
        let digest = Sha256::digest(buffer);
        let name_field = sized(format!("{name}\0").as_bytes());
        let data = [&40_u32.to_le_bytes()[..], b"sha256:\0", &digest, &name_field, &sized(buffer)].concat();
        let fields = format!("ima-buf sha256:{} {name} {}", hex::encode(digest), hex::encode(buffer));
        self.write(&data, fields.as_bytes());
    }

    /// A file changed while it was measured. Linux, `ima_add_violation`.
    pub(crate) fn violate(&mut self, name: &str) {
        let line = format!("10 {} ima-ng sha256:{} {name}\n", "0".repeat(40), "0".repeat(64));
        self.append(line.as_bytes(), [0xFF; 32]);
    }

    /// A template that nobody but this kernel knows.
    pub(crate) fn measure_strangely(&mut self, name: &str) {
        let line = format!("10 {} my-template|x {name}\n", hex::encode(Sha1::digest(name)));
        self.append(line.as_bytes(), Sha256::digest(name).into());
    }

    fn write(&mut self, data: &[u8], fields: &[u8]) {
        let head = format!("10 {} ", hex::encode(Sha1::digest(data)));
        self.append(&[head.as_bytes(), fields, b"\n"].concat(), Sha256::digest(data).into());
    }

    /// First the log, then the PCR. Linux, `ima_queue.c`.
    fn append(&mut self, line: &[u8], value: [u8; 32]) {
        self.log.write_all(line).unwrap();
        self.tpm.extend(10, value);
        self.entries += 1;
    }
}

fn sized(field: &[u8]) -> Vec<u8> {
    [&u32::try_from(field.len()).unwrap().to_le_bytes()[..], field].concat()
}
