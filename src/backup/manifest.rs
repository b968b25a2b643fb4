//! What a backup says of itself, and what is signed of that.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::custody::BACKUP_TAG;

/// What it is a backup of, and what is in it. Members may be added; those that are there stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    /// The appliance's id, 32 hex digits.
    pub appliance: String,
    /// The moment that it shows.
    pub created_at: Timestamp,
    /// The master generations that keys may be wrapped under, the one in use among them.
    pub generations: Vec<u32>,
    pub trail: TrailPart,
    /// How many addresses the store's parts have, counting again what comes again.
    pub addresses: u64,
    /// All parts before the manifest, in their order.
    pub parts: Vec<Part>,
}

/// Which lines of the trail are in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailPart {
    /// Which trail, 16 hex digits.
    pub id: String,
    /// The last line and its hash: `seq:hash`.
    pub head: String,
}

/// A member of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
    /// 64 hex digits.
    pub sha256: String,
}

/// What the signature of a backup is made over; `manifest` is the text as it stands in the archive.
pub fn signed_message(manifest: &[u8]) -> Vec<u8> {
    let digest = hex(Sha256::digest(manifest).as_slice());
    [BACKUP_TAG, digest.as_bytes(), b"\n"].concat()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
