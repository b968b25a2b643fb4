//! What a backup says of itself, and what is signed of that.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{STORE, TRAIL};
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

impl Manifest {
    /// Whether every text in it has the form that it is written in: names become names of files, and all of
    /// it is shown to people before its signature can be verified.
    pub fn is_well_formed(&self) -> bool {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
        (1..=64).contains(&self.program.len())
            && self.program.bytes().all(is_word)
            && is_hex(&self.appliance, 32)
            && is_hex(&self.trail.id, 16)
            && is_head(&self.trail.head)
            && self.parts.iter().all(|part| is_part(&part.name) && is_hex(&part.sha256, 64))
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `seq:hash`.
fn is_head(text: &str) -> bool {
    let fits = |(seq, hash): (&str, &str)| seq.parse::<u64>().is_ok() && is_hex(hash, 64);
    text.split_once(':').is_some_and(fits)
}

/// `store/000001` or `trail/trail-00000000000000000001.jsonl`.
fn is_part(name: &str) -> bool {
    let is_number = |digits: &str, least: usize| {
        (least..=20).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    match (name.strip_prefix(STORE), name.strip_prefix(TRAIL)) {
        (Some(number), _) => is_number(number, 6),
        (None, Some(file)) => {
            let digits = file.strip_prefix("trail-").and_then(|rest| rest.strip_suffix(".jsonl"));
            digits.is_some_and(|digits| is_number(digits, 20))
        }
        (None, None) => false,
    }
}

/// What the signature of a backup is made over; `manifest` is the text as it stands in the archive.
pub fn signed_message(manifest: &[u8]) -> Vec<u8> {
    let digest = hex(Sha256::digest(manifest).as_slice());
    [BACKUP_TAG, digest.as_bytes(), b"\n"].concat()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
