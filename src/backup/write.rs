//! Writes a backup as a stream: nothing of it is kept but one part of the store.

use std::io::{self, Read, Write};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::manifest::{Manifest, Part, TrailPart, hex};
use super::{FORMAT, MANIFEST, SIGNATURE, STORE, TRAIL, entry, header, signed_message};
use crate::store::Copied;

/// A part of the store is closed when it has this many bytes.
const PART: usize = 4 * 1024 * 1024;

/// Writes the parts in their order.
pub struct Writer<W: Write> {
    archive: tar::Builder<W>,
    parts: Vec<Part>,
    /// The part of the store that is being filled.
    filling: Vec<u8>,
    addresses: u64,
}

/// What the manifest says besides the parts.
pub struct Facts {
    pub appliance: String,
    pub created_at: Timestamp,
    pub generations: Vec<u32>,
    pub trail: TrailPart,
}

/// A backup that only lacks its signature.
pub struct Unsigned<W: Write> {
    archive: tar::Builder<W>,
    /// What has to be signed.
    pub message: Vec<u8>,
    pub addresses: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Self {
        let (archive, parts) = (tar::Builder::new(to), Vec::new());
        Self { archive, parts, filling: Vec::new(), addresses: 0 }
    }

    /// Adds addresses of the store.
    pub fn store(&mut self, page: &[Copied]) -> io::Result<()> {
        for one in page {
            entry::write(&mut self.filling, one);
            self.addresses += 1;
            if self.filling.len() >= PART {
                self.close_part()?;
            }
        }
        Ok(())
    }

    /// Adds a file of the trail: the first `bytes` of it.
    pub fn trail(&mut self, name: &str, bytes: u64, file: impl Read) -> io::Result<()> {
        self.close_part()?;
        self.part(&format!("{TRAIL}{name}"), bytes, file.take(bytes))
    }

    /// Writes the manifest.
    pub fn manifest(mut self, facts: Facts) -> io::Result<Unsigned<W>> {
        self.close_part()?;
        let Facts { appliance, created_at, generations, trail } = facts;
        let manifest = Manifest {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            appliance,
            created_at,
            generations,
            trail,
            addresses: self.addresses,
            parts: std::mem::take(&mut self.parts),
        };
        let mut text = serde_json::to_vec_pretty(&manifest)?;
        text.push(b'\n');
        self.part(MANIFEST, text.len() as u64, text.as_slice())?;
        let (archive, addresses) = (self.archive, self.addresses);
        Ok(Unsigned { archive, message: signed_message(&text), addresses })
    }

    fn close_part(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let filled = std::mem::take(&mut self.filling);
        let name = format!("{STORE}{:06}", self.parts.len() + 1);
        self.part(&name, filled.len() as u64, filled.as_slice())
    }

    fn part(&mut self, name: &str, bytes: u64, from: impl Read) -> io::Result<()> {
        let mut hashing = Hashing { from, digest: Sha256::new(), bytes: 0 };
        self.archive.append(&header(name, bytes)?, &mut hashing)?;
        if hashing.bytes != bytes {
            // The archive would not hold together; whoever takes it gets no end.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let sha256 = hex(&hashing.digest.finalize());
        self.parts.push(Part { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }
}

impl<W: Write> Unsigned<W> {
    /// Adds the signature, the end of the archive, and returns what it was written to.
    pub fn finish(mut self, signature: &[u8; 64]) -> io::Result<W> {
        let header = header(SIGNATURE, signature.len() as u64)?;
        self.archive.append(&header, signature.as_slice())?;
        self.archive.into_inner()
    }
}

/// Computes the SHA-256 of what is read through it.
struct Hashing<R> {
    from: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.digest.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read)
    }
}
